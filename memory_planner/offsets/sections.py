"""From buffers to sections: the stretches of time in which a maximal set of buffers is live.

Two buffers constrain each other only if they are live at one time, and then some section holds
both: the sections stand for the whole axis of time.
"""

import dataclasses
import math

from memory_planner.offsets.problem import OffsetProblem, Section


@dataclasses.dataclass(frozen=True)
class Clique:
    """Buffers live in one half-open interval, by index, ascending; no neighbour holds them all."""

    begin: int
    end: int
    members: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Partition:
    """Sections whose buffers are live in none outside: a problem of its own.

    Attributes:
      buffers: their indices in the problem, ascending.
      cliques: in order of time.
    """

    buffers: tuple[int, ...]
    cliques: tuple[Clique, ...]


def cliques(problem: OffsetProblem) -> tuple[Clique, ...]:
    """The sections of a problem, in order of time; buffers that occupy nothing are in none."""
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for index, buffer in enumerate(problem.buffers):
        for begin, end in buffer.pieces:
            begins.setdefault(begin, []).append(index)
            ends.setdefault(end, []).append(index)
    found = []
    live: set[int] = set()
    grown_at: int | None = None
    for time in sorted(begins.keys() | ends.keys()):
        if time in ends:
            if grown_at is not None:
                found.append(Clique(grown_at, time, tuple(sorted(live))))
                grown_at = None
            live.difference_update(ends[time])
        if time in begins:
            live.update(begins[time])
            grown_at = time
    return tuple(found)


def partitions(found: tuple[Clique, ...]) -> tuple[Partition, ...]:
    """Split sections wherever no buffer lives on both sides."""
    last: dict[int, int] = {}
    for position, clique in enumerate(found):
        last.update(dict.fromkeys(clique.members, position))
    result = []
    begin = until = 0
    for position, clique in enumerate(found):
        until = max(until, *(last[index] for index in clique.members))
        if position == until:
            own = found[begin : position + 1]
            members = sorted({index for clique in own for index in clique.members})
            result.append(Partition(tuple(members), own))
            begin = until = position + 1
    return tuple(result)


def load_bytes(problem: OffsetProblem, clique: Clique) -> int:
    """Sum of the sizes of a section's buffers."""
    return sum(problem.buffers[index].size_bytes for index in clique.members)


def describe(problem: OffsetProblem, clique: Clique) -> Section:
    """A section as results name it."""
    names = tuple(problem.buffers[index].name for index in clique.members)
    return Section(clique.begin, clique.end, load_bytes(problem, clique), names)


def granularity_bytes(problem: OffsetProblem) -> int:
    """A number that divides every offset and height of a canonical packing.

    Buffers stand on one another: their offsets are sums of sizes, rounded up to alignments, on
    fixed offsets.
    """
    parts = [0]
    for buffer in problem.buffers:
        parts += [buffer.size_bytes, buffer.offset or 0]
        if buffer.alignment > 1:
            parts.append(buffer.alignment)
    return math.gcd(*parts) or 1


def lower_bound_bytes(problem: OffsetProblem) -> int:
    """A height below which no packing exists: the largest load, and where fixed buffers end."""
    loads = (load_bytes(problem, clique) for clique in cliques(problem))
    tops = (b.offset + b.size_bytes for b in problem.buffers if b.offset is not None)
    return max((0, *loads, *tops))
