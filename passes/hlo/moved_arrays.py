"""Every array that the collectives of a compiled program move in a step, loops multiplied."""

import collections
import dataclasses
from collections.abc import Iterator

from passes.hlo.collectives import Phase, safe_collective_of
from passes.hlo.loops import trip_count
from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.opcodes import COLLECTIVES

_MAX_DEPTH = 24
_MAX_SEARCHED = 64


@dataclasses.dataclass(frozen=True)
class MovedArray:
    """An array that a collective moves; one operation may move several.

    Attributes:
      kind: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all`, `collective-permute`, ...
      payload_bytes: on a device: the gathered result, the input of a reduction.
      devices: how many take part together; 0 between slices, 2 in a permute.
      count: how often a step moves it.
      source: `file.py:line (function)`, of the collective or of what makes the array; empty if
        unknown.
      op_name: JAX's name of the operation.
      instruction: its name in the program.
      in_loop: whether it stands in a loop.
    """

    kind: str
    payload_bytes: int
    devices: int
    count: int
    source: str
    op_name: str
    instruction: str
    in_loop: bool


def moved_arrays(module: HloModule) -> tuple[MovedArray, ...]:
    """All arrays moved in a step, in the order of the text; of a conditional, in every branch.

    A loop whose trip count is unknown counts once. What cannot be read is left out; the simulation
    of the schedule lists it.
    """
    return tuple(_walk(module, module.entry, 1, 0, in_loop=False))


def _walk(
    module: HloModule, name: str, times: int, depth: int, in_loop: bool
) -> Iterator[MovedArray]:
    computation = module.computations.get(name)
    if computation is None or depth > _MAX_DEPTH:
        return
    for i in computation.instructions:
        collective, _ = safe_collective_of(module, computation, i)
        if collective is not None:
            if collective.phase is not Phase.DONE:
                devices = max(map(len, collective.groups), default=0)
                sources = _sources(module, computation, i, len(collective.array_bytes))
                for size, source in zip(collective.array_bytes, sources, strict=True):
                    yield MovedArray(
                        collective.kind, size, devices, times, source, i.op_name, i.name, in_loop
                    )
        elif i.opcode == "while":
            trips = trip_count(module, computation, i)
            body = i.attributes.get("body", "").lstrip("%")
            yield from _walk(module, body, times * (1 if trips is None else trips), depth + 1, True)
        elif i.opcode in ("call", "async-start", "call-start", "conditional"):
            for called in i.called:
                yield from _walk(module, called, times, depth + 1, in_loop)


def _sources(module: HloModule, computation: Computation, i: Instruction, arrays: int) -> list[str]:
    """The source of each array.

    One array has that of the collective. Of several, each has that of what makes it: the compiler
    combined them and kept one collective's source.
    """
    inner = module.computations.get(i.called[0]) if i.called else None
    inside = inner.instructions if inner is not None else ()
    plain = next((j for j in inside if j.opcode.removesuffix("-start") in COLLECTIVES), None)
    own = (module.source(plain) if plain is not None else "") or module.source(i)
    if arrays == 1 and own:
        return [own]
    if plain is None or inner is None:
        made = [_made(module, computation, name) for name in i.operands]
    else:
        made = [_made(module, inner, name, (computation, i)) for name in plain.operands]
    made += [""] * (arrays - len(made))
    return [source or own for source in made[:arrays]]


def _made(
    module: HloModule,
    computation: Computation,
    name: str,
    outside: tuple[Computation, Instruction] | None = None,
) -> str:
    """The source of the nearest instruction, towards the inputs, that has one.

    Args:
      module: the program.
      computation: where to begin.
      name: the value.
      outside: the fusion around `computation` and where that stands.
    """
    waiting = collections.deque([(computation, name)])
    seen: set[tuple[str, str]] = set()
    while waiting and len(seen) < _MAX_SEARCHED:
        place, name = waiting.popleft()
        i = place.by_name.get(name)
        if i is None or (place.name, name) in seen:
            continue
        seen.add((place.name, name))
        looped = _loop_result(module, place, i)
        if looped is not None:
            waiting.append(looped)
        elif module.source(i):
            return module.source(i)
        elif i.opcode == "parameter" and outside is not None and place is computation:
            number = int(i.literal) if i.literal.isdigit() else len(outside[1].operands)
            waiting.extend((outside[0], n) for n in outside[1].operands[number : number + 1])
        else:
            waiting.extend((place, n) for n in i.operands)
    return ""


def _loop_result(
    module: HloModule, computation: Computation, i: Instruction
) -> tuple[Computation, str] | None:
    """Where the body of a loop makes the result that `i` takes out of it."""
    if i.opcode != "get-tuple-element" or not i.operands or not i.ints("index"):
        return None
    loop = computation.by_name.get(i.operands[0])
    if loop is None or loop.opcode != "while":
        return None
    body = module.computations.get(loop.attributes.get("body", "").lstrip("%"))
    number = i.ints("index")[0]
    if body is None or body.root.opcode != "tuple" or number >= len(body.root.operands):
        return None
    return body, body.root.operands[number]
