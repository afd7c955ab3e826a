"""Evaluates the few integer scalars of a program that decide how often its loops run."""

import dataclasses
import operator
from collections.abc import Callable, Mapping

from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.shapes import Array

_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": max,
    "minimum": min,
    "and": operator.and_,
    "or": operator.or_,
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge,
    "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip
_SAME = frozenset(("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"))
_MAX_STEPS = 4000
_MAX_DEPTH = 200

Value = int | tuple[object, ...] | None


@dataclasses.dataclass
class Evaluator:
    """Evaluates scalars of one module, each call with a budget of steps.

    A value is an integer, a tuple of values, or None where it cannot be told.
    """

    module: HloModule
    _steps: int = 0
    _depth: int = 0

    def root(self, computation: str, arguments: Mapping[int, Value]) -> Value:
        """The result of a computation, given some of its parameters."""
        self._steps = 0
        found = self.module.computations.get(computation)
        return None if found is None else self._value(found, found.root, arguments)

    def operand(
        self, computation: Computation, name: str, arguments: Mapping[int, Value] | None = None
    ) -> Value:
        """The value of an instruction."""
        self._steps = 0
        instruction = computation.by_name.get(name)
        if instruction is None:
            return None
        return self._value(computation, instruction, arguments or {})

    def _value(self, c: Computation, i: Instruction, arguments: Mapping[int, Value]) -> Value:
        self._steps += 1
        if self._steps > _MAX_STEPS or self._depth > _MAX_DEPTH:
            return None
        self._depth += 1
        value = self._computed(c, i, arguments)
        self._depth -= 1
        return value

    def _computed(self, c: Computation, i: Instruction, arguments: Mapping[int, Value]) -> Value:
        if i.opcode == "parameter":
            return None if i.number is None else arguments.get(i.number)
        if i.opcode == "constant":
            return _constant(i)
        if i.opcode not in _INTERPRETED or (isinstance(i.shape, Array) and i.shape.size != 1):
            return None
        if i.opcode == "get-tuple-element":
            return self._element(c, i, arguments)
        if i.opcode in _SAME:  # of tuples, too
            source = c.by_name.get(i.operands[0]) if len(i.operands) == 1 else None
            return None if source is None else self._value(c, source, arguments)
        operands = [c.by_name.get(name) for name in i.operands]
        if None in operands or self._steps > _MAX_STEPS - len(operands):
            return None
        values = [self._value(c, o, arguments) for o in operands if o is not None]
        if i.opcode == "tuple":
            return tuple(values)
        if i.opcode in ("fusion", "call"):
            inner = self.module.computations.get(i.called[0]) if i.called else None
            if inner is None or inner is c:
                return None
            return self._value(inner, inner.root, dict(enumerate(values)))
        return _apply(i, values)

    def _element(self, c: Computation, i: Instruction, arguments: Mapping[int, Value]) -> Value:
        source = c.by_name.get(i.operands[0]) if i.operands else None
        index = i.ints("index")
        if source is None or not index:
            return None
        if source.opcode == "tuple":  # only the one that is asked for
            name = source.operands[index[0]] if index[0] < len(source.operands) else ""
            element = c.by_name.get(name)
            return None if element is None else self._value(c, element, arguments)
        whole = self._value(c, source, arguments)
        if not isinstance(whole, tuple) or index[0] >= len(whole):
            return None
        item = whole[index[0]]
        return item if isinstance(item, int | tuple) else None


_INTERPRETED = frozenset(
    {*_BINARY, *_SAME, "compare", "not", "select", "tuple", "get-tuple-element", "fusion", "call"}
)


def _constant(i: Instruction) -> Value:
    if not isinstance(i.shape, Array) or i.shape.size != 1:
        return None
    text = i.literal.strip("{} ")
    if text in ("true", "false"):
        return int(text == "true")
    digits = text.removeprefix("-")
    return int(text) if digits.isdecimal() and len(digits) < 20 else None


def _apply(i: Instruction, values: list[Value]) -> Value:
    numbers = [v for v in values if isinstance(v, int)]
    if len(numbers) < len(values):
        return None
    if i.opcode in _BINARY and len(numbers) == 2:
        return _BINARY[i.opcode](*numbers)
    if i.opcode == "compare" and len(numbers) == 2:
        compare = _COMPARE.get(i.attributes.get("direction", ""))
        return None if compare is None else int(compare(*numbers))
    if i.opcode == "not" and len(numbers) == 1:
        return int(not numbers[0])
    if i.opcode == "select" and len(numbers) == 3:
        return numbers[1] if numbers[0] else numbers[2]
    return None
