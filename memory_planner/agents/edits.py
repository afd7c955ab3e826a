"""Changes of an order that may matter: one buffer placed first or last, its copies early or late.

Most buffers of a program change nothing wherever they are placed: they fit anyway, or nothing waits
for them. What is at stake with each is read off a mapping, and changes are drawn in proportion.
"""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np

from memory_planner.agents.candidates import Candidate
from memory_planner.problem import MemoryMapping, MemoryProblem, Stay

# Changes of when copies begin rarely harm: so many are tried at a time.
GROUP = 3


class Kind(enum.Enum):
    """What is done with a buffer."""

    FIRST = "placed first"
    LAST = "placed last"
    EARLIEST = "copied as early as can be"
    LATEST = "copied as late as can be"


_EAGERNESS = {Kind.EARLIEST: 1, Kind.LATEST: 2}


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
      buffer: its number.
      kind: of the change.
    """

    buffer: int
    kind: Kind


def applied(candidate: Candidate, edits: Sequence[Edit]) -> Candidate:
    """A candidate with changes made to it, one after the other; its score is not known."""
    order, eagerness = list(candidate.order), list(candidate.eagerness)
    for edit in edits:
        if edit.kind in _EAGERNESS:
            eagerness[edit.buffer] = _EAGERNESS[edit.kind]
        else:
            order.remove(edit.buffer)
            order.insert(0 if edit.kind is Kind.FIRST else len(order), edit.buffer)
    return Candidate(tuple(order), tuple(eagerness), -np.inf)


def stakes(problem: MemoryProblem, mapping: MemoryMapping) -> dict[Edit, float]:
    """What each change could save at most, ns of a step; those that can save nothing are left out.

    FIRST: what the mapping misses of the buffer's own benefit. LAST: what it misses of others
    whose lives overlap with the buffer's stays, each as far as the buffer's room would hold it.
    EARLIEST and LATEST: the benefit of uses that copies serve, or that nothing does.
    """
    missed = [0.0] * len(problem.buffers)
    copied = [0.0] * len(problem.buffers)
    served = _served(mapping)
    for number, buffer in enumerate(problem.buffers):
        for n, use in enumerate(buffer.uses):
            benefit = use.benefit_ns * problem.operations[use.time].repeats
            stay = served.get((number, n))
            missed[number] += benefit if stay is None else 0.0
            copied[number] += benefit if stay is None or stay.is_copied else 0.0
        if not buffer.starts_in_hbm and not _is_born_fast(problem, mapping, number):
            missed[number] += buffer.benefit_ns * problem.operations[buffer.begin].repeats
    found = {Edit(n, Kind.FIRST): value for n, value in enumerate(missed)}
    found |= {Edit(n, kind): value for n, value in enumerate(copied) for kind in _EAGERNESS}
    for number in {stay.buffer for stay in mapping.stays}:
        found[Edit(number, Kind.LAST)] = _displaced(problem, mapping, number, missed)
    return {edit: value for edit, value in found.items() if value > 0}


class Queue:
    """Groups of changes still to be tried, each once, in an order drawn by what is at stake.

    Which kind comes next is drawn by how often that kind has helped (Thompson's sampling of
    "On the likelihood that one unknown probability exceeds another in view of the evidence of two
    samples", a beta distribution for each kind).

    Args:
      stakes: of each change.
      rng: of the chance.
    """

    def __init__(self, stakes: dict[Edit, float], rng: np.random.Generator) -> None:
        self._rng = rng
        self._helped = dict.fromkeys(Kind, 0)
        self._failed = dict.fromkeys(Kind, 0)
        self._urgent: list[tuple[Edit, ...]] = []
        self._groups = {kind: _drawn(stakes, kind, rng) for kind in Kind}

    def next(self) -> tuple[Edit, ...] | None:
        """The next group, all of one kind; None when nothing is left."""
        if self._urgent:
            return self._urgent.pop(0)
        open_kinds = [kind for kind in Kind if self._groups[kind]]
        if not open_kinds:
            return None
        chances = [self._rng.beta(1 + self._helped[k], 1 + self._failed[k]) for k in open_kinds]
        return self._groups[open_kinds[int(np.argmax(chances))]].pop(0)

    def tell(self, group: tuple[Edit, ...], change: float) -> None:
        """What a group did to the score: of one that harms, the halves are tried next."""
        if change > 0:
            self._helped[group[0].kind] += 1
            return
        self._failed[group[0].kind] += 1
        if change < 0 and len(group) > 1:
            half = len(group) // 2
            self._urgent += [group[:half], group[half:]]


def _drawn(
    stakes: dict[Edit, float], kind: Kind, rng: np.random.Generator
) -> list[tuple[Edit, ...]]:
    """All changes of a kind in groups, drawn without replacement in proportion to the stakes.

    By the keys of "Weighted random sampling with a reservoir" (Efraimidis, Spirakis).
    """
    edits = [edit for edit in stakes if edit.kind is kind]
    keys = {edit: np.log(rng.random()) / stakes[edit] for edit in edits}
    edits.sort(key=lambda edit: -keys[edit])
    size = GROUP if kind in _EAGERNESS else 1
    return [tuple(edits[n : n + size]) for n in range(0, len(edits), size)]


def _served(mapping: MemoryMapping) -> dict[tuple[int, int], Stay]:
    return {(stay.buffer, use): stay for stay in mapping.stays for use in stay.uses}


def _is_born_fast(problem: MemoryProblem, mapping: MemoryMapping, number: int) -> bool:
    begin = problem.buffers[number].begin
    return any(s.buffer == number and s.begin == begin and not s.is_copied for s in mapping.stays)


def _displaced(
    problem: MemoryProblem, mapping: MemoryMapping, number: int, missed: list[float]
) -> float:
    stays = [stay for stay in mapping.stays if stay.buffer == number]
    size = problem.buffers[number].size_bytes
    return sum(
        missed[n] * min(1.0, size / other.size_bytes)
        for n, other in enumerate(problem.buffers)
        if n != number
        and missed[n]
        and any(stay.begin < other.end and other.begin < stay.end for stay in stays)
    )
