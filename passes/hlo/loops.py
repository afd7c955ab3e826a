"""How often loops run.

CPU and GPU compilers write `known_trip_count`; libtpu does not, so that it is derived: of the
values that a loop carries, one changes by a constant step and decides the condition.
"""

import re

from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.scalars import Evaluator, Value

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d{1,15})"')
_MOST_TRIPS = 1 << 40
_MAX_CARRIED = 2000
_MAX_VIEWS = 64


def trip_count(module: HloModule, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None where it cannot be told.

    Args:
      module: the program.
      computation: where the loop stands.
      loop: the `while` instruction.
    """
    known = _KNOWN.search(loop.attributes.get("backend_config", ""))
    if known is not None:
        return int(known[1]) if int(known[1]) <= _MOST_TRIPS else None
    names = [loop.attributes.get(key, "").lstrip("%") for key in ("condition", "body")]
    condition, body = (module.computations.get(name) for name in names)
    start = computation.by_name.get(loop.operands[0]) if loop.operands else None
    if condition is None or body is None or start is None:
        return None
    evaluator = Evaluator(module)
    initial = evaluator.operand(computation, start.name)
    wanted = _elements_used(condition)
    if not isinstance(initial, tuple) or len(initial) > _MAX_CARRIED:
        return None
    values: list[Value] = [v if isinstance(v, int) else None for v in initial]
    steps = {e: _step(evaluator, body, values, e) for e in wanted if e < len(values)}
    moving = [e for e, step in steps.items() if step]
    if len(moving) != 1 or None in steps.values():
        return None
    return _first_failure(evaluator, condition, values, moving[0], steps[moving[0]] or 0)


def _elements_used(condition: Computation) -> list[int]:
    """Numbers of the carried values that a condition reads."""
    parameter = condition.parameters.get(0)
    if parameter is None:
        return []
    found = [
        i.ints("index")[0]
        for i in condition.instructions
        if i.opcode == "get-tuple-element" and parameter.name in i.operands and i.ints("index")
    ]
    return list(dict.fromkeys(found))


def _step(evaluator: Evaluator, body: Computation, values: list[Value], element: int) -> int | None:
    """By how much an iteration changes a carried value; None where that is no constant."""
    start = values[element]
    root = body.root
    if not isinstance(start, int):
        return None
    for _ in range(_MAX_VIEWS):
        if root.opcode not in ("copy", "bitcast") or not root.operands:
            break
        root = body.by_name.get(root.operands[0], root)
    if root.opcode != "tuple" or element >= len(root.operands):
        return None
    found = set()
    for offset in (0, 1, 5):
        arguments = {0: tuple(v if e != element else start + offset for e, v in enumerate(values))}
        after = evaluator.operand(body, root.operands[element], arguments)
        if not isinstance(after, int):
            return None
        found.add(after - start - offset)
    return found.pop() if len(found) == 1 else None


def _first_failure(
    evaluator: Evaluator, condition: Computation, values: list[Value], element: int, step: int
) -> int | None:
    """The first iteration at which the condition does not hold; it is taken to be monotonic."""
    start = values[element]
    if not isinstance(start, int):
        return None

    def arguments(iteration: int) -> dict[int, Value]:
        now = tuple(v if e != element else start + iteration * step for e, v in enumerate(values))
        return {0: now}

    def holds(iteration: int) -> Value:
        return evaluator.root(condition.name, arguments(iteration))

    if condition.root.attributes.get("direction") == "NE":  # not monotonic: the two sides meet once
        gaps = [_gap(evaluator, condition, arguments(iteration)) for iteration in (0, 1)]
        return _meeting(*gaps)
    low, high = -1, 1
    while (held := holds(high - 1)) == 1:
        low, high = high - 1, high * 2
        if high > _MOST_TRIPS:
            return None
    if not isinstance(held, int):
        return None
    high -= 1
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle) == 1:
            low = middle
        else:
            high = middle
    return high


def _gap(evaluator: Evaluator, condition: Computation, arguments: dict[int, Value]) -> int | None:
    """The difference of the two sides of a comparison."""
    sides = [evaluator.operand(condition, n, arguments) for n in condition.root.operands]
    numbers = [side for side in sides if isinstance(side, int)]
    return numbers[0] - numbers[1] if len(numbers) == len(sides) == 2 else None


def _meeting(first: int | None, second: int | None) -> int | None:
    """The iteration at which a gap that changes steadily is closed; None if it never is."""
    if first is None or second is None:
        return None
    if first == 0:
        return 0
    closing = first - second
    iterations, rest = divmod(first, closing) if closing else (-1, 0)
    return iterations if 0 < iterations <= _MOST_TRIPS and not rest else None
