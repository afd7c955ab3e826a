"""HBM over a step, from the schedule: what is alive when.

Buffers are the results of instructions; views, tuples, loops and in-place updates share the buffer
of their operand. The curve is ours and shows where memory goes; how much a program needs is the
compiler's figure (`memory_analysis`), which also counts what its allocator loses.
"""

import dataclasses
import itertools
import re

from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.shapes import Array, Shape
from passes.hlo.simulate import Walk
from passes.hlo.timeline import MemoryCurve

_VIEWS = frozenset(
    """bitcast get-tuple-element tuple copy-done slice-done dynamic-slice-done optimization-barrier
    opt-barrier add-dependency async-done domain""".split()
)
_MOST_NAMED = 24
_MAX_NESTING = 32

# A buffer: (computation, instruction, number of the array in its result).
Buffer = tuple[str, str, int]
Value = tuple[Buffer, ...]


@dataclasses.dataclass(frozen=True)
class _Live:
    """A buffer's life within one computation, as positions in its schedule, both inclusive."""

    buffer: Buffer
    size_bytes: int
    begin: int
    end: int


def _flatten(shape: Shape) -> list[Array]:
    return [shape] if isinstance(shape, Array) else [a for e in shape.elements for a in _flatten(e)]


class _Buffers:
    """Assigns buffers to the values of one computation."""

    def __init__(self, module: HloModule, computation: Computation) -> None:
        self.module, self.computation = module, computation
        self.values: dict[str, Value] = {}
        self.made: dict[Buffer, tuple[int, int]] = {}  # -> (position, bytes)
        self.last: dict[Buffer, int] = {}
        self.donated = _donated(module) if computation.is_entry else frozenset[int]()

    def run(self) -> list[_Live]:
        for position, i in enumerate(self.computation.instructions):
            for name in i.operands:
                for buffer in self.values.get(name, ()):
                    self.last[buffer] = position
            self.values[i.name] = self._value(i, position)
        end = len(self.computation.instructions)
        for number, buffer in enumerate(self.values.get(self.computation.root.name, ())):
            self.last[buffer] = end
            if number in self.donated and buffer in self.made:
                self.made[buffer] = (self.made[buffer][0], 0)  # it lies where an input was
        return [
            _Live(buffer, size, begin, self.last.get(buffer, begin))
            for buffer, (begin, size) in self.made.items()
            if size
        ]

    def _value(self, i: Instruction, position: int) -> Value:
        shapes = _flatten(i.shape)
        given = [self.values.get(name, ()) for name in i.operands]
        if i.opcode == "parameter":
            return tuple((self.computation.name, i.name, n) for n in range(len(shapes)))
        if i.opcode == "tuple":
            parts = itertools.chain.from_iterable(given)
            return tuple(itertools.islice(parts, len(shapes)))
        if i.opcode == "get-tuple-element":
            return self._element(i, given)
        if i.opcode in _VIEWS and given:
            return given[0][: len(shapes)]
        if i.opcode == "while" and given and len(given[0]) == len(shapes):
            return given[0]
        if i.opcode == "dynamic-update-slice" and given:
            return given[0]
        return self._fresh(i, position, shapes, given)

    def _element(self, i: Instruction, given: list[Value]) -> Value:
        source = self.computation.by_name.get(i.operands[0]) if i.operands else None
        index = i.ints("index")
        if source is None or isinstance(source.shape, Array) or not index or not given:
            return ()
        elements = source.shape.elements
        if index[0] >= len(elements):
            return ()
        begin = sum(len(_flatten(e)) for e in elements[: index[0]])
        return given[0][begin : begin + len(_flatten(elements[index[0]]))]

    def _fresh(
        self, i: Instruction, position: int, shapes: list[Array], given: list[Value]
    ) -> Value:
        shared = {**_aliased(i, shapes, given), **self._in_place(i, shapes, given)}
        value = []
        for number, shape in enumerate(shapes):
            buffer = shared.get(number)
            if buffer is None:
                buffer = (self.computation.name, i.name, number)
                size = shape.padded_bytes if shape.space == 0 and shape.dims else 0
                self.made[buffer] = (position, 0 if i.opcode == "constant" else size)
            value.append(buffer)
        return tuple(value)

    def _in_place(
        self, i: Instruction, shapes: list[Array], given: list[Value]
    ) -> dict[int, Buffer]:
        """Results of a fusion that are written into an operand's buffer."""
        inner = self.module.computations.get(i.called[0]) if i.called else None
        if i.opcode != "fusion" or inner is None:
            return {}
        root = inner.root
        names = root.operands if root.opcode == "tuple" else (root.name,)
        found: dict[int, Buffer] = {}
        for number, name in enumerate(names[: len(shapes)]):
            parameter = _updated_parameter(inner, inner.by_name.get(name))
            if parameter is not None and parameter < len(given) and len(given[parameter]) == 1:
                found[number] = given[parameter][0]
        return found


_ALIAS = re.compile(r"\{(\d{0,6})\}: \((\d{1,6}), \{\}")


def _aliased(i: Instruction, shapes: list[Array], given: list[Value]) -> dict[int, Buffer]:
    """Results that are an operand's buffer: as the compiler writes, or handed on by a start."""
    found: dict[int, Buffer] = {}
    for output, operand in _ALIAS.findall(i.attributes.get("output_to_operand_aliasing", "")):
        number = int(output or 0)
        if number < len(shapes) and int(operand) < len(given) and len(given[int(operand)]) == 1:
            found[number] = given[int(operand)][0]
    if i.opcode.endswith("-start"):
        # The operand stands among the results, behind or before what is made.
        left = [buffer for value in given for buffer in value]
        order = range(len(shapes)) if i.opcode != "copy-start" else range(len(shapes) - 1, -1, -1)
        for number in order:
            if left and shapes[number].dims and number not in found:
                found[number] = left.pop(0)
    return found


def _updated_parameter(inner: Computation, i: Instruction | None) -> int | None:
    """Number of the parameter that a result updates in place or hands on; None if neither."""
    for _ in range(_MAX_NESTING):
        if i is None:
            return None
        if i.opcode == "parameter":
            return i.number
        if i.opcode not in ("dynamic-update-slice", "bitcast") or not i.operands:
            return None
        i = inner.by_name.get(i.operands[0])
    return None


def _donated(module: HloModule) -> frozenset[int]:
    """Numbers of the program's results that reuse an input's buffer."""
    text = module.attributes.get("input_output_alias", "")
    return frozenset(int(n) for n in re.findall(r"\{(\d{1,6})\}: \(", text))


@dataclasses.dataclass(frozen=True)
class _Curve:
    """Bytes of temporaries at each position of a computation, nested loops included."""

    times_s: tuple[float, ...]
    live_bytes: tuple[int, ...]
    peak: int
    peak_buffers: tuple[tuple[str, str, int], ...]  # (computation, instruction, bytes)


def _curve(module: HloModule, walk: Walk, offset_s: float, depth: int = 0) -> _Curve:
    lives = _Buffers(module, walk.computation).run()
    count = len(walk.computation.instructions)
    changes = [0] * (count + 2)
    for life in lives:
        changes[life.begin] += life.size_bytes
        changes[life.end + 1] -= life.size_bytes
    inner = {e.instruction.name: e for e in walk.events if e.loop is not None}
    times: list[float] = []
    totals: list[int] = []
    live = peak = peak_at = 0
    nested: tuple[tuple[str, str, int], ...] = ()
    for position, i in enumerate(walk.computation.instructions):
        live += changes[position]
        times.append(offset_s + walk.starts_s[position])
        totals.append(live)
        top, below = live, nested
        event = inner.get(i.name)
        if event is not None and event.loop is not None and depth < _MAX_NESTING:
            body = _curve(module, event.loop, offset_s + event.start_s, depth + 1)
            times += body.times_s
            totals += [live + b for b in body.live_bytes]
            top, below = live + body.peak, body.peak_buffers
        else:
            below = ()
        if top > peak:
            peak, peak_at, nested = top, position, below
    alive = [
        (life.buffer[0], life.buffer[1], life.size_bytes)
        for life in lives
        if life.begin <= peak_at <= life.end
    ]
    return _Curve(tuple(times), tuple(totals), peak, (*alive, *nested))


def memory_curve(module: HloModule, walk: Walk) -> MemoryCurve:
    """HBM over the step that `walk` walked; the program's inputs are alive throughout."""
    entry = module.entry_computation
    inputs = sum(
        a.padded_bytes for p in entry.parameters.values() for a in _flatten(p.shape) if a.space == 0
    )
    curve = _curve(module, walk, 0.0)
    times: list[float] = []
    totals: list[int] = []
    for time, total in zip(curve.times_s, curve.live_bytes, strict=True):
        if times and time == times[-1]:
            totals[-1] = max(totals[-1], inputs + total)
        elif not totals or inputs + total != totals[-1]:
            times.append(time)
            totals.append(inputs + total)
    largest = sorted(curve.peak_buffers, key=lambda b: -b[2])[:_MOST_NAMED]
    named = []
    for computation, name, size in largest:
        i = module.computations[computation].by_name.get(name)
        named.append((name, size, module.source(i) if i is not None else ""))
    return MemoryCurve(tuple(times), tuple(totals), tuple(named))
