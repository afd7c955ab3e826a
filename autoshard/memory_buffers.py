"""Which values of a step are held in memory, from when to when: what holds under every layout.

A rough model of what XLA does with a program:

- Products, convolutions, lookups, sorts and the like write their result. Elementwise operations
  that alone use it are done on the way (an epilogue), and what comes out of them is written.
- Other elementwise operations, views and casts are fused into every operation that reads them: what
  is held is what they are made of. An operand of products that needs a transcendental function is
  made for them, and again in the backward pass.
- What enters a loop or is stacked by one is written. A loop's inputs are held until its end; its
  stacks are allocated at its beginning.
- Times are positions in the order of the traced program.

Donated state is updated in place, so that the optimizer holds nothing of its own, and what is
written into a cache needs no other.
"""

import bisect
import dataclasses
import enum
from collections.abc import Iterable, Iterator, Sequence

import jax.numpy as jnp

from autoshard import graph as graphs
from autoshard.graph import Loop, Op
from autoshard.named_dims import Analysis
from autoshard.program_flow import VIEWS, ParameterUse, ProgramFlow
from passes.ir import PRODUCTS
from passes.program import Role


class Kind(enum.Enum):
    """What a buffer holds.

    ACTIVATION: a value of the forward or backward pass.
    GRADIENT: a parameter's gradient, before or while it is summed over devices.
    GRADIENT_STACK: gradients that a loop stacks, layer by layer.
    PARAMETER: parameters cast for use, as they are stored.
    GATHERED: a parameter, or a slice of one, gathered for use, if it is stored otherwise.
    """

    ACTIVATION = "activation"
    GRADIENT = "gradient"
    GRADIENT_STACK = "gradient_stack"
    PARAMETER = "parameter"
    GATHERED = "gathered"


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A value held in memory.

    Attributes:
      value: its number in the graph.
      begin, end: first and last operation at which it is held, both inclusive.
      kind: what it holds.
      position: of the parameter it belongs to; -1 for activations.
      use: what a parameter is gathered for.
      dtype: in which it is held.
    """

    value: int
    begin: int
    end: int
    kind: Kind
    position: int = -1
    use: ParameterUse | None = None
    dtype: str = ""


# Done inside the operation that reads the result. What is not here is taken to write its result.
_VIEWS = frozenset(
    """reshape transpose broadcast_in_dim squeeze expand_dims slice rev stop_gradient name copy
    split sharding_constraint optimization_barrier pcast""".split()
)
_CHEAP = _VIEWS | frozenset(
    """abs add add_any and atan2 bitcast_convert_type ceil clamp concatenate convert_element_type
    copy_p div dynamic_slice eq floor ge gt imag integer_pow iota is_finite le lt max min mul ne neg
    nextafter not or pad population_count random_wrap random_unwrap real reduce_precision rem round
    select_and_gather_add select_n shift_left shift_right_arithmetic shift_right_logical sign sqrt
    rsqrt square sub xor stack unstack tile""".split()
)
_TRANSCENDENTAL = frozenset(
    """acos acosh asin asinh atan atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma
    log log1p logistic pow sin sinh tan tanh""".split()
)
_FUSED = _CHEAP | _TRANSCENDENTAL
_SUMS = frozenset({"add", "add_any", "sub"})
_WRITE = "dynamic_update_slice"
_REDUCES = ("reduce_", "argm")
_NONE: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class FusionHabits:
    """What XLA's compilers fuse, and when they do what.

    Attributes:
      makes_again: an elementwise operation is fused into each of several that read its result; else
        the result is written.
      makes_operands: what a product or convolution reads is computed inside it; else it is written
        where it is defined, once for all that read it. A sum that only becomes an operand is then
        not written itself.
      puts_off: what makes a parameter's gradient before a loop of the backward pass is done after
        it, and what it reads is held until then.
    """

    makes_again: bool = True
    makes_operands: bool = True
    puts_off: bool = False


_HABITS = {
    "tpu": FusionHabits(),
    "cpu": FusionHabits(makes_again=False),
    # It hands products to kernels that read memory, and schedules from the end of the step.
    "gpu": FusionHabits(makes_operands=False, puts_off=True),
}


def fusion_habits_of(platform: str) -> FusionHabits:
    """The habits of the compiler for a `Topology.platform`.

    Raises:
      KeyError: there is no such platform.
    """
    return _HABITS[platform]


def find_buffers(
    analysis: Analysis, flow: ProgramFlow, habits: FusionHabits | None = None
) -> tuple[Buffer, ...]:
    """The buffers of a (gradient or forward) program, in the order of their values' operations.

    Args:
      analysis: of the program.
      flow: of the program.
      habits: of the compiler; those of the one for TPU where not given.
    """
    return _Walk(analysis, flow, habits or FusionHabits()).run()


class _Walk:
    def __init__(self, analysis: Analysis, flow: ProgramFlow, habits: FusionHabits) -> None:
        self.habits = habits
        self.graph = analysis.graph
        self.sources = analysis.sources
        self.flow = flow
        count = len(self.graph.values)
        self.live = _live_operations(self.graph.ops, self.graph.outputs)
        self.users = [[u for u in users if u < 0 or self.live[u]] for users in flow.users]
        self.made_of = [_NONE] * count  # the buffers that a value is computed from when it is read
        self.computed = [False] * count  # not just a view of a buffer or an input
        self.costly = [False] * count  # needs a transcendental function
        self.defined = [-1] * count
        self.parameter = [-1] * count  # position of the parameter of which it is a cast or view
        # Unfinished results: when they are written, what is read on the way.
        self.epilogue: dict[int, tuple[int, list[int]]] = {}
        self.of_product: set[int] = set()  # results of products, epilogues included
        self.begins: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.operands: dict[int, list[int]] = {}  # where products read what is made for them
        self.products: list[int] = []
        self.donated: set[int] = set()  # caches, before and after what is written into them
        self.inside: list[Loop] = []  # loops around the operation at hand, outermost first
        inputs = zip(analysis.program.inputs, self.graph.inputs, strict=True)
        for position, (leaf, value) in enumerate(inputs):
            if leaf.role is Role.PARAMETER:
                self.parameter[value] = position
            elif leaf.role is Role.CACHE:
                self.donated.add(value)

    def run(self) -> tuple[Buffer, ...]:
        loops = sorted(self.graph.loops, key=lambda loop: (loop.begin, -loop.end))
        upcoming = loops[::-1]
        for index, op in enumerate(self.graph.ops):
            while self.inside and self.inside[-1].end <= index:
                self.inside.pop()
            while upcoming and upcoming[-1].begin <= index:
                loop = upcoming.pop()
                if loop.end > index:
                    self.inside.append(loop)
            if self.live[index]:
                self._operation(index, op)
        found = [self._buffer(value, begin) for value, begin in self.begins.items()]
        found += self._made_operands()
        found += self._gathered()
        return tuple(sorted(found, key=lambda b: (b.begin, b.value)))

    def _gathered(self) -> Iterator[Buffer]:
        """Parameters at their uses, and fetched while the product before them runs."""
        awaited = [
            index
            for index in self.products
            if not any(v in self.flow.gradient_of for v in self.graph.ops[index].outputs)
        ]
        for position, uses in self.flow.uses.items():
            value, used = self.graph.inputs[position], -1
            for use in sorted(uses, key=lambda use: use.op):
                loops = [o.begin for o in self.graph.loops if o.begin <= use.op < o.end]
                place = bisect.bisect_left(awaited, use.op)
                begin = max([awaited[place - 1] if place else use.op, used + 1, *loops])
                yield Buffer(value, min(begin, use.op), use.until, Kind.GATHERED, position, use)
                used = use.until

    def _made_operands(self) -> Iterator[Buffer]:
        """Operands that products have made for them, once in each pass."""
        for value, reads in self.operands.items():
            if self._in_place(value, reads):
                continue
            for forward in (True, False):
                own = [index for index in reads if self.flow.forward[index] == forward]
                if own:
                    yield Buffer(value, own[0], own[-1], Kind.ACTIVATION)

    def _in_place(self, value: int, reads: Sequence[int]) -> bool:
        """Whether an operand can be written over what it is made of, which nothing else reads."""
        return any(
            self._elements(b) == self._elements(value)
            and self.graph.values[b].dtype == self.graph.values[value].dtype
            and self.ends.get(b, -1) <= reads[-1]
            for b in self.made_of[value]
        )

    def _buffer(self, value: int, begin: int) -> Buffer:
        end = self.ends.get(value, begin)
        position = self.flow.gradient_of.get(value, -1)
        if position >= 0:
            op = self.graph.ops[self.defined[value]]
            if op.primitive == graphs.SCAN_YS:
                return Buffer(value, begin, end, Kind.GRADIENT_STACK, position)
            made = max(self._after(begin), self._done(begin, op))
            return Buffer(value, min(made, end), end, Kind.GRADIENT, position)
        position = self.parameter[value]
        kind = Kind.PARAMETER if position >= 0 else Kind.ACTIVATION
        dtype = self.graph.values[value].dtype
        if self.flow.forward[begin] == self.flow.forward[end]:  # not saved for the backward pass
            dtype = self._made_dtype(value)
        return Buffer(value, begin, end, kind, position, dtype=dtype)

    def _made_dtype(self, value: int) -> str:
        """The value's own, unless its last step widens it, which those that read it can do."""
        dtype = self.graph.values[value].dtype
        at = self.defined[value]
        if not self.habits.makes_again or at < 0:
            return dtype
        op = self.graph.ops[at]
        if op.primitive not in VIEWS:
            return dtype
        source = self._made_dtype(op.inputs[0])
        if op.primitive == "convert_element_type":
            widens = jnp.promote_types(source, dtype) == dtype
            return source if widens else dtype
        return source

    def _after(self, index: int) -> int:
        """When a parameter's gradient is made: after the product that the layer before waits for.

        The two read the same cotangent.
        """
        place = bisect.bisect_right(self.products, index)
        if place == len(self.products):
            return index
        here, following = self.graph.ops[index], self.graph.ops[self.products[place]]
        return index if set(here.inputs).isdisjoint(following.inputs) else self.products[place] + 1

    def _operation(self, index: int, op: Op) -> None:
        for value in op.outputs:
            self.defined[value] = index
        self._enter_loops(op)
        if op.primitive == graphs.TIE:
            self._read(op.inputs[:1], index)
        elif op.primitive == graphs.ALIAS:
            self._alias(index, op)
        elif op.primitive == graphs.SCAN_XS:
            self._view(op)
        elif op.primitive == graphs.SCAN_YS:
            self._read(op.inputs, index)
            self._hold(op.outputs[0], self.inside[-1].begin)
            self.ends[op.outputs[0]] = self.inside[-1].end - 1
        elif op.primitive == _WRITE and op.inputs[0] in self.donated:
            self._read(op.inputs[1:], index)
            self._view(op)
            self.donated.add(op.outputs[0])
        elif op.primitive in _FUSED:
            self._fused(index, op)
        else:
            self._writes(index, op)

    def _enter_loops(self, op: Op) -> None:
        """Write what an operation in a loop reads from outside, unless it is there already."""
        if not self.inside:
            return
        for value in op.inputs:
            outside = self.defined[value] < self.inside[-1].begin
            made = self.sources[value] or self.made_of[value]  # else: a mask or a constant
            if outside and made and self.computed[value] and value not in self.begins:
                self._read([value], self.defined[value], around=())
                self._hold(value, self.defined[value])

    def _hold(self, value: int, begin: int) -> None:
        begin, read = self.epilogue.pop(value, (begin, []))
        self._read(read, begin)
        self.begins[value] = begin
        self.made_of[value] = frozenset({value})
        self.computed[value] = False

    def _read(
        self, values: Iterable[int], index: int, around: Sequence[Loop] | None = None
    ) -> None:
        """Hold what values are made of until `index`, or to the end of a loop that it entered."""
        around = self.inside if around is None else around
        for value in values:
            if value in self.epilogue:
                self._hold(value, self.defined[value])
            for buffer in self.made_of[value]:
                begin = self.begins[buffer]
                ends = (loop.end - 1 for loop in around if begin < loop.begin)
                end = max(index, next(ends, index))
                self.ends[buffer] = max(end, self.ends.get(buffer, end))

    def _alias(self, index: int, op: Op) -> None:
        """A loop's carry is one buffer: what enters is read at once, and each round rewrites it."""
        source, result = op.inputs[0], op.outputs[0]
        if self.inside and self.defined[source] < self.inside[-1].begin:
            self._read([source], index, around=self.inside[:-1])
            self._hold(result, index)
        else:
            self._view(op)

    def _view(self, op: Op) -> None:
        source, result = op.inputs[0], op.outputs[0]
        self._finish(source)
        self.made_of[result] = self.made_of[source]
        self.computed[result] = self.computed[source]
        self.costly[result] = self.costly[source]
        self.parameter[result] = self.parameter[source]

    def _finish(self, value: int) -> None:
        if value in self.epilogue:
            self._hold(value, self.defined[value])

    def _fused(self, index: int, op: Op) -> None:
        waiting = [v for v in op.inputs if v in self.epilogue]
        result = op.outputs[0]
        if waiting and len(op.outputs) == 1:
            for value in waiting[1:]:
                self._finish(value)
            time, read = self.epilogue.pop(waiting[0])
            others = [v for v in op.inputs if v != waiting[0]]
            ready = [self.begins[b] for v in others for b in self.made_of[v]]
            if waiting[0] in self.of_product:
                self.of_product.add(result)
            self._written(result, max([time, *ready]), [*read, *others])
            return
        for value in waiting:
            self._finish(value)
        for value in op.outputs:
            self.made_of[value] = frozenset().union(*(self.made_of[v] for v in op.inputs))
            self.computed[value] = op.primitive not in _VIEWS or any(
                self.computed[v] for v in op.inputs
            )
            self.costly[value] = op.primitive in _TRANSCENDENTAL or any(
                self.costly[v] and self._elements(v) == self._elements(value) for v in op.inputs
            )
        if op.primitive in VIEWS and len(op.inputs) == 1:
            self.parameter[result] = self.parameter[op.inputs[0]]
        shared = len(self.users[result]) > 1 and bool(self.made_of[result])
        if op.primitive not in _VIEWS and shared and not self.habits.makes_again:
            written = True
        elif op.primitive in _SUMS and shared:
            written = self._joins(op) and not self._becomes_operand(result)
        else:
            written = op.primitive in _CHEAP - VIEWS and self._between_products(op)
        if written:
            self._read(op.inputs, index)
            self._hold(result, index)

    def _between_products(self, op: Op) -> bool:
        """Whether this operation is all that happens between one product and the next."""
        read = [v for v in op.inputs if self.made_of[v]]
        users = [self.graph.ops[u].primitive for u in self.users[op.outputs[0]] if u >= 0]
        return (
            len(read) == 1
            and read[0] in self.of_product
            and any(primitive in PRODUCTS for primitive in users)
        )

    def _becomes_operand(self, value: int) -> bool:
        """Whether what is made of a value is written as an operand; the value is made with it."""
        if self.habits.makes_operands:
            return False
        readers = (self.graph.ops[u] for u in self.users[value] if u >= 0)
        return any(
            self.graph.ops[user].primitive in PRODUCTS
            for reader in readers
            if reader.primitive in _FUSED
            and self._elements(reader.outputs[0]) == self._elements(value)
            for user in self.users[reader.outputs[0]]
            if user >= 0
        )

    def _joins(self, op: Op) -> bool:
        """Whether branches of full size meet."""
        size = self._elements(op.outputs[0])
        branches = {b for v in op.inputs for b in self.made_of[v] if self._elements(b) == size}
        return len(branches) > 1

    def _elements(self, value: int) -> int:
        count = 1
        for size in self.graph.shape(value):
            count *= size
        return count

    def _writes(self, index: int, op: Op) -> None:
        if not self._made_inside(op):
            for value in op.inputs:
                if self.computed[value] and self.made_of[value]:
                    self._read([value], self.defined[value])
                    self._hold(value, self.defined[value])
        self._read(op.inputs, self._done(index, op))
        if op.primitive in PRODUCTS:
            self.products.append(index)
            self.of_product.update(op.outputs)
            for value in op.inputs:
                if self.costly[value] and self._made_inside(op):
                    self.operands.setdefault(value, []).append(index)
        for value in op.outputs:
            self._written(value, index, [])

    def _made_inside(self, op: Op) -> bool:
        """Whether what an operation reads is computed inside it, not written before."""
        if op.primitive in PRODUCTS:
            return self.habits.makes_operands
        return op.primitive.startswith(_REDUCES)

    def _done(self, index: int, op: Op) -> int:
        """When an operation is done: after the loops behind it, where it is put off."""
        gradient = any(value in self.flow.gradient_of for value in op.outputs)
        loops = self.graph.loops
        inside = any(loop.begin <= index < loop.end for loop in loops)
        if inside or not (self.habits.puts_off and gradient):
            return index
        return max([index, *(loop.end for loop in loops if loop.begin > index)])

    def _written(self, value: int, index: int, read: list[int]) -> None:
        """A result that is written at `index`, unless the one operation that reads it goes on.

        Made with what is `read`.
        """
        users = self.users[value]
        if len(users) == 1 and users[0] >= 0 and value not in self.flow.gradient_of:
            user = self.graph.ops[users[0]]
            in_loop = all(users[0] < loop.end for loop in self.inside)
            same = len(user.outputs) == 1 and self._elements(user.outputs[0]) == self._elements(
                value
            )
            if user.primitive in _FUSED and same and in_loop:
                self.epilogue[value] = (index, read)
                return
        self._read(read, index)
        self._hold(value, index)


def _live_operations(ops: Sequence[Op], outputs: Iterable[int]) -> list[bool]:
    """Which operations a result depends on."""
    needed = set(outputs)
    live = [False] * len(ops)
    for index in range(len(ops) - 1, -1, -1):
        op = ops[index]
        if op.primitive == graphs.TIE or not needed.isdisjoint(op.outputs):
            live[index] = True
            needed.update(op.inputs)
    return live
