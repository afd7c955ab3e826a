"""Arrays in host memory that a program updates, a piece at a time.

An optimizer's state is touched once a step and element by element, so it need not live on the
device. Fetching it all at once would raise the peak instead of lowering it; here each array is cut
into pieces (the layers of a stack), and a loop fetches a piece, computes with it, and puts it back
where it came from:

    host     [ mu 0 | mu 1 | mu 2 | ... ]         one buffer, updated in place
                      |         ^
                      v         |                 the gradient's and the parameter's piece 1
    device          mu 1 -> update -> mu 1        are slices of arrays on the device

Deep Optimizer States (Maurya et al., 2024) and MEMO (Zhao et al., 2024) move state in subgroups for
the same reason. What the program computes of whole arrays, as a global norm does, is computed once,
before the loops, and must not need what is on the host.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding

from passes import ir
from passes.errors import PassError
from passes.host_cuts import Cut
from passes.inline_calls import inline_calls

HOST, DEVICE = "pinned_host", "device"

# One element of each operand makes one of the result; scalars may stand beside arrays.
_ELEMENTWISE = frozenset(
    """abs add add_any and cbrt ceil clamp convert_element_type copy copy_p cos div eq erf exp exp2
    expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul name ne neg not or
    pow real reduce_precision rem round rsqrt select_n sign sin sqrt square stop_gradient sub tanh
    xor""".split()
)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Arrays of one shape of which a program's elements depend on each other's only.

    Attributes:
      name: for messages: the parameter's path.
      cut: of each of them.
      reads: positions of inputs that are read only: a gradient.
      replaced: (input, output) positions of arrays that are updated in place: a parameter and its
        optimizer state. Each returns to the memory that it came from. All but the first may be on
        the host.
    """

    name: str
    cut: Cut
    reads: tuple[int, ...]
    replaced: tuple[tuple[int, int], ...]


def in_memory(sharding: NamedSharding, kind: str) -> NamedSharding:
    """The same sharding in a memory, `HOST` or `DEVICE`.

    Devices that are there only to compile for may know no memories, and a sharding on them forgets
    its own (the GPU's do). Then it is one over the abstract mesh: lower under `jax.set_mesh`, and
    give every argument and result of the program a memory, or donation mistakes one for another.
    """
    made = sharding.with_memory_kind(kind)
    if made.memory_kind == kind:
        return made
    return NamedSharding(sharding.mesh.abstract_mesh, sharding.spec, memory_kind=kind)


def is_on_host(array: Any) -> bool:
    """Whether an array, or what stands for one while a program is traced, is in host memory."""
    return bool(jax.typeof(array).memory_space == jax.memory.Space.Host)


def streamed(
    program: ir.ClosedJaxpr, groups: Sequence[Sequence[Stream]]
) -> Callable[..., list[Any]]:
    """A function from the program's flat inputs to its flat outputs that computes in pieces.

    Args:
      program: traced of arrays on the device.
      groups: streams that share a loop; all of a group have the same number of pieces. Groups run
        one after another, so that only one has pieces on the device.

    Raises:
      PassError: an output of a stream depends on other elements than its own, or something that is
        computed of whole arrays needs one that is on the host.
    """
    jaxpr, consts = ir.closed(inline_calls(program))
    split = _Split(jaxpr)
    parts = [[split.part(stream) for stream in group] for group in groups]
    taken = {output for group in groups for s in group for _, output in s.replaced}
    rest: list[Any] = [x for i, x in enumerate(jaxpr.outvars) if i not in taken]
    scalars = [x for group in parts for p in group for x in p.scalars]
    makes: list[ir.Var] = list(dict.fromkeys([*scalars, *(x for x in rest if _is_var(x))]))
    whole = split.whole(makes, [s for group in groups for s in group])

    def run(*inputs: Any) -> list[Any]:
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        with jax.named_scope("whole"):
            env.update(zip(makes, whole(env), strict=True))
        arrays = list(inputs)
        results = {i: _value(env, x) for i, x in enumerate(jaxpr.outvars) if i not in taken}
        last: list[Any] = []
        for group, part in zip(groups, parts, strict=True):
            new = _run_group(group, part, arrays, env, last)
            results.update(new)
            last = [x for x in new.values() if not is_on_host(x)]
        return [results[i] for i in range(len(jaxpr.outvars))]

    return run


def _is_var(atom: Any) -> bool:
    return not ir.is_literal(atom)


def _value(env: dict[Any, Any], atom: Any) -> Any:
    return atom.val if ir.is_literal(atom) else env[atom]


def _run_group(
    group: Sequence[Stream],
    parts: "Sequence[_Part]",
    arrays: Sequence[Any],
    env: dict[Any, Any],
    last: Sequence[Any],
) -> dict[int, Any]:
    """The outputs of the streams of one loop, by position.

    `last`: what the loop before made; this one begins after that is there.
    """
    reads = [_opened(arrays[i], s.cut) for s in group for i in s.reads]
    held = [_opened(arrays[i], s.cut) for s in group for i, _ in s.replaced]
    if last:
        reads, _ = lax.optimization_barrier((reads, list(last)))
    cuts = [s.cut for s in group for _ in s.replaced]
    (count,) = {s.cut.count for s in group}

    def body(index: Any, held: list[Any]) -> list[Any]:
        pieces = iter([_fetched(x, cut, index) for x, cut in zip(held, cuts, strict=True)])
        read = iter(reads)
        made: list[Any] = []
        for stream, part in zip(group, parts, strict=True):
            own = [_fetched(next(read), stream.cut, index) for _ in stream.reads]
            made += part(env, [*own, *(next(pieces) for _ in stream.replaced)])
        return [_put(x, new, c, index) for x, new, c in zip(held, made, cuts, strict=True)]

    with jax.named_scope(f"stream:{group[0].name}"):
        results = lax.fori_loop(0, count, body, held)
    outputs = [(i, output) for s in group for i, output in s.replaced]
    return {
        output: _closed(x, cut, arrays[i].shape)
        for (i, output), x, cut in zip(outputs, results, cuts, strict=True)
    }


def _place(cut: Cut) -> int:
    """Where the dimension that is cut is in the view."""
    return cut.order.index(cut.dim) if cut.order else cut.dim


def _opened(array: Any, cut: Cut) -> Any:
    """A view with the dimension that is cut split into (shards, what each shard has)."""
    view = lax.transpose(array, cut.order) if cut.order else array
    place, shape = _place(cut), view.shape
    size = shape[place] // cut.shards
    return lax.reshape(view, (*shape[:place], cut.shards, size, *shape[place + 1 :]))


def _closed(view: Any, cut: Cut, shape: tuple[int, ...]) -> Any:
    """The array of which `_opened` made a view."""
    order = cut.order or tuple(range(len(shape)))
    array = lax.reshape(view, tuple(shape[dim] for dim in order))
    inverse = tuple(order.index(dim) for dim in range(len(shape)))
    return lax.transpose(array, inverse) if cut.order else array


def _fetched(array: Any, cut: Cut, index: Any) -> Any:
    """Piece `index` of an array, on the device."""
    place = _place(cut) + 1
    size = array.shape[place] // cut.count
    piece = lax.dynamic_slice_in_dim(array, index * size, size, place)
    return jax.device_put(piece, jax.memory.Space.Device) if is_on_host(array) else piece


def _put(array: Any, piece: Any, cut: Cut, index: Any) -> Any:
    """The array with a new piece, in the memory where it was."""
    if is_on_host(array):
        piece = jax.device_put(piece, jax.memory.Space.Host)
    place = _place(cut) + 1
    start = index * (array.shape[place] // cut.count)
    return lax.dynamic_update_slice_in_dim(array, piece, start, place)


@dataclasses.dataclass(frozen=True)
class _Part:
    """What a program does to the arrays of one stream, as a function of pieces of them.

    Attributes:
      eqns: in order.
      reads: variables of the pieces.
      makes: the results.
      scalars: variables of single values that it needs.
      shape: of the whole arrays.
    """

    eqns: tuple[ir.JaxprEqn, ...]
    reads: tuple[ir.Var, ...]
    makes: tuple[Any, ...]
    scalars: tuple[ir.Var, ...]
    shape: tuple[int, ...]

    def __call__(self, scalars: dict[Any, Any], pieces: Sequence[Any]) -> list[Any]:
        env: dict[Any, Any] = {x: scalars[x] for x in self.scalars}
        env.update(zip(self.reads, pieces, strict=True))
        shape = pieces[0].shape
        for eqn in self.eqns:
            operands = [_value(env, x) for x in eqn.invars]
            if eqn.primitive.name == "broadcast_in_dim":
                env[eqn.outvars[0]] = lax.broadcast(operands[0], shape)
            else:
                env[eqn.outvars[0]] = eqn.primitive.bind(*operands, **eqn.params)
        return [_value(env, x) for x in self.makes]


class _Split:
    """Which equations of a program make what."""

    def __init__(self, jaxpr: ir.Jaxpr) -> None:
        self._jaxpr = jaxpr
        self._maker = {x: eqn for eqn in jaxpr.eqns for x in eqn.outvars}

    def part(self, stream: Stream) -> _Part:
        """The equations between a stream's pieces and its results.

        Raises:
          PassError: one of them is not elementwise.
        """
        positions = (*stream.reads, *(i for i, _ in stream.replaced))
        reads = tuple(self._jaxpr.invars[i] for i in positions)
        makes = tuple(self._jaxpr.outvars[o] for _, o in stream.replaced)
        shape = tuple(ir.spec(reads[0]).shape)
        inside, scalars = self._reached(makes, frozenset(reads))
        for eqn in inside:
            self._check(eqn, shape, stream)
        missing = [x for x in scalars if ir.spec(x).shape]
        if missing:
            raise PassError(_refusal(stream, "it depends on another array as a whole"))
        for x in makes:
            if tuple(ir.spec(x).shape) != shape:
                raise PassError(_refusal(stream, f"a result is of shape {ir.spec(x).shape}"))
        return _Part(tuple(inside), reads, makes, tuple(scalars), shape)

    def _reached(
        self, makes: Iterable[Any], reads: frozenset[ir.Var]
    ) -> tuple[list[ir.JaxprEqn], list[ir.Var]]:
        """(equations from the results back to `reads` and to scalars, other variables read)."""
        needed = {x for x in makes if _is_var(x)}
        inside, outside = [], dict.fromkeys(x for x in needed if self._ends(x, reads))
        for eqn in reversed(self._jaxpr.eqns):
            if not any(x in needed and not self._ends(x, reads) for x in eqn.outvars):
                continue
            inside.append(eqn)
            operands: list[Any] = [x for x in eqn.invars if _is_var(x)]
            needed.update(operands)
            outside.update((x, None) for x in operands if self._ends(x, reads))
        return inside[::-1], [x for x in outside if x not in reads]

    def _ends(self, var: ir.Var, reads: frozenset[ir.Var]) -> bool:
        return var in reads or var not in self._maker or not ir.spec(var).shape

    def _check(self, eqn: ir.JaxprEqn, shape: tuple[int, ...], stream: Stream) -> None:
        name = eqn.primitive.name
        from_scalar = name == "broadcast_in_dim" and not ir.spec(eqn.invars[0]).shape
        shapes = {tuple(ir.spec(x).shape) for x in (*eqn.invars, *eqn.outvars)}
        same = shapes <= {shape, ()} and len(eqn.outvars) == 1 and not eqn.effects
        if not same or not (from_scalar or name in _ELEMENTWISE):
            raise PassError(_refusal(stream, f"{name} is not elementwise"))

    def whole(
        self, makes: Sequence[ir.Var], streams: Sequence[Stream]
    ) -> Callable[[dict[Any, Any]], list[Any]]:
        """What is made of whole arrays, as a function of the inputs' values.

        Raises:
          PassError: it reads what a stream updates besides the parameter that comes first.
        """
        eqns: list[ir.JaxprEqn] = []
        needed: set[Any] = set(makes)
        for eqn in reversed(self._jaxpr.eqns):
            if eqn.effects or any(x in needed for x in eqn.outvars):
                eqns.append(eqn)
                needed.update(x for x in eqn.invars if _is_var(x))
        for stream in streams:
            for position, _ in stream.replaced[1:]:
                if self._jaxpr.invars[position] in needed:
                    raise PassError(_refusal(stream, "something needs all of its state at once"))
        reads = [x for x in needed if x not in self._maker]
        function = ir.part(self._jaxpr, eqns[::-1], reads, makes)
        return lambda env: list(function(*(env[x] for x in reads)))


def _refusal(stream: Stream, why: str) -> str:
    return (
        f"the optimizer's state of {stream.name!r} cannot be updated a piece at a time: {why}. "
        "Keep it on the device, or use an optimizer that works element by element, such as adamw"
    )
