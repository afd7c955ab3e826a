"""A program whose inputs are gathered where they are used, not in front of it.

ZeRO-3 stores a parameter in shards and gathers it for use. Gathered in front of the program, all
copies would live at once, a stack of layers would be gathered whole before the loop over it, and
autodiff would save the copies for the backward pass. So the program is evaluated equation by
equation on *lazy* inputs: an input, how it is gathered, and the casts and views that the program
applies to it. The first equation that does something else with it gathers it:

    plain equation   gather and equation become a region of `jax.checkpoint`, which saves the
                     equation's results but no gathered copy: the backward pass gathers again
    jit              its equations, one by one
    checkpoint       gathered inside, at each use; the region gathers again anyway
    scan             a stack that is scanned over goes in as stored, and the body gathers its slice;
                     what is not scanned over is gathered once, before the loop
    gather           where fewer rows are looked up than there are, they are looked up in the shards
                     (`row_lookup`)
    the last product gathers without a region: its copy is what the backward pass begins with
    anything else    as a plain equation (a `cond`, a `while`, a custom derivative, a kernel)

The values do not change: gathering is an identity, and casts commute with it.

A policy of an outer region replaces those of the regions inside it (that is how JAX evaluates
`jax.checkpoint` partially), which is why there is no region around the whole program.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp

from passes import ir
from passes.program import Gather
from passes.row_lookup import lookup_of
from passes.spec import Spec

# What a lazy input goes through without being gathered. All but the last three keep the elements of
# a slice along the leading dimension together, so that a stack may be scanned over after them.
SLICED_THROUGH = frozenset("convert_element_type transpose copy name".split())
_VIEWS = SLICED_THROUGH | frozenset("reshape broadcast_in_dim squeeze".split())

# Made again in the backward pass rather than saved: a gathered copy, and what is a view of one.
_REMADE = (_VIEWS - {"name"}) | {"sharding_constraint"}

_HEAVY = ir.PRODUCTS | {"scan"}

_Step = Callable[[Any], Any]


def _is_view(eqn: ir.JaxprEqn) -> bool:
    if eqn.primitive.name not in _VIEWS or len(eqn.invars) != 1:
        return False
    result: Any = eqn.outvars[0].aval
    floating = jnp.issubdtype(result.dtype, jnp.inexact)
    return bool(floating) and eqn.params.get("sharding") is None


@dataclasses.dataclass(frozen=True)
class _Cast:
    dtype: Any

    def __call__(self, x: Any) -> Any:
        return jax.lax.convert_element_type(x, self.dtype)


@dataclasses.dataclass(frozen=True)
class _Transpose:
    permutation: tuple[int, ...]

    def __call__(self, x: Any) -> Any:
        return jax.lax.transpose(x, self.permutation)


@dataclasses.dataclass(frozen=True)
class _View:
    eqn: ir.JaxprEqn
    jaxpr: ir.Jaxpr

    def __call__(self, x: Any) -> Any:
        return ir.part(self.jaxpr, [self.eqn], _variables(self.eqn.invars), self.eqn.outvars)(x)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class _Lazy:
    """An input that is not gathered yet.

    Attributes:
      stored: the array as stored.
      gather: lays it out for use.
      before: casts to types that are no wider, on the shards: they make the gather cheaper.
      after: the views and other casts, on the gathered copy.
    """

    stored: Any
    gather: Gather
    before: tuple[_Cast, ...] = ()
    after: tuple[_Step, ...] = ()

    def through(self, eqn: ir.JaxprEqn, jaxpr: ir.Jaxpr) -> "_Lazy":
        name, params = eqn.primitive.name, eqn.params
        if name in ("copy", "name"):
            return self
        if name == "transpose":
            step: _Step = _Transpose(tuple(params["permutation"]))
        elif name == "convert_element_type":
            cast = _Cast(params["new_dtype"])
            old: Any = eqn.invars[0].aval
            narrow = cast.dtype.itemsize <= old.dtype.itemsize
            if narrow and not any(isinstance(x, _Cast) for x in self.after):
                return dataclasses.replace(self, before=(*self.before, cast))
            step = cast
        else:
            step = _View(eqn, jaxpr)
        return dataclasses.replace(self, after=(*self.after, step))

    def gathered(self, user: ir.JaxprEqn | None) -> Any:
        """The array for use by an equation; None is the program's result."""

        def made(x: Any) -> Any:
            with jax.named_scope(f"gather:{self.gather.path}"):
                for cast in self.before:
                    x = cast(x)
                x = self.gather(x)
            for step in self.after:
                x = step(x)
            return x

        return (made if user is None else ir.located(made, user))(self.stored)

    def scanned(self) -> "tuple[Any, Callable[[Any], _Lazy]] | None":
        """(array to scan over, from its slice to a lazy slice), or None where it must be whole."""
        dim, before = 0, self.after
        for step in reversed(self.after):
            if isinstance(step, _View):
                return None
            if isinstance(step, _Transpose):
                dim = step.permutation[dim]
        gather = self.gather.of_slice(dim)
        if gather is None:
            return None
        stack = jnp.moveaxis(self.stored, dim, 0) if dim else self.stored
        after: list[_Step] = []
        for step in before:
            if isinstance(step, _Transpose):
                kept = [d for d in step.permutation if d != dim]
                after.append(_Transpose(tuple(d - (d > dim) for d in kept)))
                dim = step.permutation.index(dim)
            else:
                after.append(step)
        return stack, lambda x: _Lazy(x, gather, self.before, tuple(after))


@dataclasses.dataclass(frozen=True)
class _Scope:
    """Where an equation stands.

    Attributes:
      regions: whether a gather needs a region of its own, or is inside one of the user's.
      prevent_cse: whether the compiler could undo a region, which it cannot from loop to loop.
      at_end: whether nothing outside is gathered after it.
      specs: how variables are sharded; one that is not there is whole, or nobody knows.
    """

    regions: bool
    prevent_cse: bool
    at_end: bool
    specs: Mapping[ir.Var, Spec]


def _is_lazy(value: Any) -> TypeGuard[_Lazy]:
    return isinstance(value, _Lazy)


def _save_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in _REMADE


def _sparing(policy: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """A user's policy, but that gathered copies are not saved."""
    if policy is None:
        return None

    def saved(primitive: Any, *args: Any, **params: Any) -> Any:
        return policy(primitive, *args, **params) if primitive.name not in _REMADE else False

    return saved


def with_lazy_inputs(
    program: ir.ClosedJaxpr,
    gathers: Sequence[Gather | None],
    specs: Mapping[ir.Var, Spec] | None = None,
) -> Callable[..., list[Any]]:
    """A function from the program's flat inputs, as stored, to its flat outputs.

    Args:
      program: the program, as traced.
      gathers: how each input is gathered; None where it is used as it is stored.
      specs: how the program's variables are sharded, as far as that is known.
    """
    jaxpr, consts = ir.closed(program)

    def function(*inputs: Any) -> list[Any]:
        operands = [
            x if gather is None else _Lazy(x, gather)
            for x, gather in zip(inputs, gathers, strict=True)
        ]
        results = _evaluate(jaxpr, consts, operands, _Scope(True, True, True, specs or {}))
        return [x.gathered(None) if _is_lazy(x) else x for x in results]

    return function


def _evaluate(
    jaxpr: ir.Jaxpr, consts: Sequence[Any], operands: Sequence[Any], scope: _Scope
) -> list[Any]:
    """The results of a program on operands some of which are lazy; results may be lazy, too."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, operands, strict=True))
    waiting: list[ir.JaxprEqn] = []  # equations that read nothing lazy: evaluated in one go
    end = _last_product(jaxpr, {x for x, value in env.items() if _is_lazy(value)})

    for index, eqn in enumerate(jaxpr.eqns):
        if not any(_is_lazy(env.get(x)) for x in _variables(eqn.invars)):
            waiting.append(eqn)
            continue
        if not _is_view(eqn):
            _run(jaxpr, waiting, env)
            waiting = []
        inputs = [ir.read(env, x) for x in eqn.invars]
        here = dataclasses.replace(scope, at_end=scope.at_end and index >= end)
        results = _equation(eqn, jaxpr, inputs, here)
        env.update(zip(eqn.outvars, results, strict=True))
    _run(jaxpr, waiting, env)
    return [ir.read(env, x) for x in jaxpr.outvars]


def _last_product(jaxpr: ir.Jaxpr, lazy: set[ir.Var]) -> int:
    """The number of the last product, loop or call that reads what is lazy, else of any equation.

    What comes after it (a bias, a scale) is small.
    """
    last = {True: -1, False: -1}
    for index, eqn in enumerate(jaxpr.eqns):
        if lazy.isdisjoint(_variables(eqn.invars)):
            continue
        if _is_view(eqn):
            lazy.update(eqn.outvars)
        else:
            last[eqn.primitive.name in _HEAVY or ir.callee(eqn) is not None] = index
    return last[True] if last[True] >= 0 else last[False]


def _variables(atoms: Sequence[Any]) -> list[ir.Var]:
    return [x for x in atoms if not ir.is_literal(x)]


def _run(jaxpr: ir.Jaxpr, eqns: Sequence[ir.JaxprEqn], env: dict[Any, Any]) -> None:
    """Evaluate equations that read nothing lazy, and add their results to `env`."""
    if not eqns:
        return
    makes = [x for eqn in eqns for x in eqn.outvars if not ir.is_dropped(x)]
    made = set(makes)
    reads = list(dict.fromkeys(x for e in eqns for x in _variables(e.invars) if x not in made))
    results = ir.part(jaxpr, eqns, reads, makes)(*(env[x] for x in reads))
    env.update(zip(makes, results, strict=True))


def _equation(
    eqn: ir.JaxprEqn, jaxpr: ir.Jaxpr, operands: Sequence[Any], scope: _Scope
) -> Sequence[Any]:
    """The results of an equation that reads something lazy."""
    name = eqn.primitive.name
    if _is_view(eqn):
        return [operands[0].through(eqn, jaxpr)]
    if name == "scan":
        return _scan(eqn, operands, scope)
    called = ir.callee(eqn)
    if called is not None and name in ir.PLAIN_CALLS:
        return _evaluate(ir.inlined(called[0], eqn), called[1], operands, scope)
    if called is not None and name in ir.CHECKPOINTS:
        with jax.named_scope(str(eqn.source_info.name_stack)):
            return _checkpoint(eqn, *called, operands, scope)

    def use(*values: Any) -> list[Any]:
        reads = list(dict.fromkeys(_variables(eqn.invars)))
        by_variable = {x: v for x, v in zip(eqn.invars, values, strict=True) if x in reads}
        return list(ir.part(jaxpr, [eqn], reads, eqn.outvars)(*(by_variable[x] for x in reads)))

    rows = _rows(eqn, use, operands, scope) if name == "gather" else None
    if rows is not None:
        return rows
    in_region = scope.regions and not scope.at_end and not eqn.effects
    return _with_gathered(eqn, use, operands, in_region, scope)


def _rows(
    eqn: ir.JaxprEqn, use: Callable[..., list[Any]], operands: Sequence[Any], scope: _Scope
) -> list[Any] | None:
    """The rows that an equation looks up in the shards; None where the table is gathered."""
    table, result = operands[0], eqn.outvars[0]
    spec = scope.specs.get(result)
    if spec is None or not _is_lazy(table) or _is_lazy(operands[1]) or table.after:
        return None
    aval: Any = result.aval
    lookup = lookup_of(eqn.params, table.stored.shape, aval.shape, spec)
    gather = None if lookup is None else table.gather.of_rows(lookup)
    if gather is None:
        return None

    def made(stored: Any, indices: Any) -> Any:
        with jax.named_scope(f"look up:{table.gather.path}"):
            for cast in table.before:
                stored = cast(stored)
            return gather(stored, indices, lambda *values: use(*values)[0])

    return [ir.located(made, eqn)(table.stored, operands[1])]


def _with_gathered(
    eqn: ir.JaxprEqn,
    use: Callable[..., Any],
    operands: Sequence[Any],
    in_region: bool,
    scope: _Scope,
) -> Any:
    """`use` of the operands, lazy ones gathered for it, so that no gathered copy is saved."""

    def region(*arrays: Any) -> Any:
        bound = _bind(operands, arrays)
        return use(*(x.gathered(eqn) if _is_lazy(x) else x for x in bound))

    if in_region:
        # A barrier keeps the compiler from sharing the two gathers; other operands need none, and
        # it would keep them from being fused.
        barriers = tuple(scope.prevent_cse and _is_lazy(x) for x in operands)
        region = jax.checkpoint(region, policy=_save_all_but_gathered, prevent_cse=barriers)
    return region(*_arrays(operands))


def _arrays(operands: Sequence[Any]) -> list[Any]:
    """The operands as stored."""
    return [x.stored if _is_lazy(x) else x for x in operands]


def _bind(operands: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """The operands with other arrays behind them: those of the region or loop that they entered."""
    return [
        dataclasses.replace(x, stored=array) if _is_lazy(x) else array
        for x, array in zip(operands, arrays, strict=True)
    ]


@dataclasses.dataclass
class _Passed:
    """Which results of a traced body are lazy operands that it hands on untouched.

    A body returns arrays, so these results are left out and looked up by the number of the operand.
    """

    of_result: list[int | None] = dataclasses.field(default_factory=list)

    def split(self, results: Sequence[Any], bound: Sequence[Any]) -> list[Any]:
        """The results that remain; any other lazy one is gathered."""
        position = {id(x): i for i, x in enumerate(bound) if _is_lazy(x)}
        self.of_result = [position.get(id(x)) for x in results]
        rest = [x for x, i in zip(results, self.of_result, strict=True) if i is None]
        return [x.gathered(None) if _is_lazy(x) else x for x in rest]

    def join(self, rest: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        """All results, outside the body."""
        remaining = iter(rest)
        return [next(remaining) if i is None else operands[i] for i in self.of_result]


def _checkpoint(
    eqn: ir.JaxprEqn,
    jaxpr: ir.Jaxpr,
    consts: Sequence[Any],
    operands: Sequence[Any],
    scope: _Scope,
) -> list[Any]:
    passed = _Passed()

    def region(*arrays: Any) -> list[Any]:
        bound = _bind(operands, arrays)
        inside = dataclasses.replace(scope, regions=False)
        return passed.split(_evaluate(jaxpr, consts, bound, inside), bound)

    rest = jax.checkpoint(
        region, policy=_sparing(eqn.params["policy"]), prevent_cse=eqn.params["prevent_cse"]
    )(*_arrays(operands))
    return passed.join(rest, operands)


def _scan(eqn: ir.JaxprEqn, operands: Sequence[Any], scope: _Scope) -> list[Any]:
    body, consts = ir.closed(eqn.params["jaxpr"])
    num_consts, num_carry = ir.scan_counts(eqn)
    first_xs = num_consts + num_carry
    stacks = {i: x.scanned() for i, x in enumerate(operands) if i >= first_xs and _is_lazy(x)}
    sliced = {i: found for i, found in stacks.items() if found is not None}
    passed = _Passed()

    def loop(*values: Any) -> Any:
        def once(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            lazies = [sliced[i][1](x) if i in sliced else x for i, x in enumerate(slices, first_xs)]
            inside = _Scope(True, prevent_cse=False, at_end=False, specs=scope.specs)
            bound = [*values[:num_consts], *carry, *lazies]
            results = _evaluate(body, consts, bound, inside)
            carried = [x.gathered(None) if _is_lazy(x) else x for x in results[:num_carry]]
            return carried, passed.split(results[num_carry:], bound)

        return jax.lax.scan(
            once,
            list(values[num_consts:first_xs]),
            list(values[first_xs:]),
            **{name: eqn.params[name] for name in ("length", "reverse", "unroll")},
        )

    entering = [sliced[i][0] if i in sliced else x for i, x in enumerate(operands)]
    # A region around the loop would replace the policies of the user's own regions inside it: where
    # there are some, what was gathered for the whole loop is saved.
    own = any(e.primitive.name in ir.CHECKPOINTS for e in ir.equations(body))
    whole = any(map(_is_lazy, entering))
    in_region = whole and scope.regions and not own and not eqn.effects
    located = ir.located(loop, eqn)
    carry, rest = _with_gathered(eqn, located, entering, in_region, scope)
    return [*carry, *passed.join(rest, operands)]
