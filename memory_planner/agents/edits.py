"""Changes of an order that may matter: one buffer placed first or last, or copied early.

Most buffers of a program change nothing wherever they are placed: they fit anyway, or nothing waits
for them. What is at stake with each is read off a mapping, and changes are drawn in proportion.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence

import numpy as np

from memory_planner.agents.candidates import Candidate
from memory_planner.agents.thompson import Thompson
from memory_planner.games.placement import EARLIEST
from memory_planner.problem import MemoryMapping, MemoryProblem, Stay
from memory_planner.replay import replay


class Kind(enum.Enum):
    """What is done with a buffer."""

    FIRST = "placed first"
    LAST = "placed last"
    EARLIEST = "copied as early as can be"


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
        if edit.kind is Kind.EARLIEST:
            eagerness[edit.buffer] = EARLIEST
        else:
            order.remove(edit.buffer)
            order.insert(0 if edit.kind is Kind.FIRST else len(order), edit.buffer)
    return Candidate(tuple(order), tuple(eagerness), -np.inf)


class Reason(enum.Enum):
    """Why a change may help."""

    MISSED = "the buffer does not lie in fast memory wherever it would save time"
    ROOM = "it lies where others would save more"
    WAITS = "its copies are waited for"
    UNSERVED = "an earlier copy would serve more of its uses"


# Changes of when copies begin rarely matter: so many are tried at a time.
GROUP = 3
Stakes = Mapping[Reason, Mapping[Edit, float]]


def stakes(problem: MemoryProblem, mapping: MemoryMapping) -> Stakes:
    """What each change could save, ns of a step, by reason; what can save nothing is left out.

    MISSED, UNSERVED: the benefit of uses that the mapping does not serve from fast memory. ROOM:
    the benefit that others miss while the buffer is there, as far as its room would hold them and
    for the part of the time between two of their uses that it is there, less what it saves itself.
    WAITS: for its copies.
    """
    served, missed = mapping.served, _missed(problem, mapping)
    waits = replay(problem, mapping).waits_ns
    found: dict[Reason, dict[Edit, float]] = {reason: {} for reason in Reason}
    for number, buffer in enumerate(problem.buffers):
        own = [m for m in missed if m.buffer == number]
        stays = [stay for stay in mapping.stays if stay.buffer == number]
        saved = sum(
            problem.benefit_ns(use) for n, use in enumerate(buffer.uses) if (number, n) in served
        )
        last, early = Edit(number, Kind.LAST), Edit(number, Kind.EARLIEST)
        found[Reason.MISSED][Edit(number, Kind.FIRST)] = sum(m.benefit_ns for m in own)
        found[Reason.ROOM][last] = _displaced(problem, missed, stays) - saved
        found[Reason.WAITS][last] = waits[number]
        found[Reason.WAITS][early] = waits[number] if any(s.is_copied for s in stays) else 0.0
        found[Reason.UNSERVED][early] = sum(m.benefit_ns for m in own if m.end - m.begin > 1)
    return {
        reason: {edit: value for edit, value in edits.items() if value > 0}
        for reason, edits in found.items()
    }


class Queue:
    """Groups of changes still to be tried, each once, in an order drawn by what is at stake.

    Which reason comes next is drawn by how often that has helped.

    Args:
      stakes: of each change.
      rng: of the chance.
    """

    def __init__(self, stakes: Stakes, rng: np.random.Generator) -> None:
        self._rng = rng
        self._reasons = Thompson(Reason, rng)
        self._drawn: dict[tuple[Edit, ...], Reason] = {}
        self._urgent: list[tuple[Edit, ...]] = []
        self._tried: set[Edit] = set()
        self.renew(stakes)

    def renew(self, stakes: Stakes) -> None:
        """Go on with what is at stake now; changes that were tried do not come again."""
        self._left = {reason: _shuffled(stakes.get(reason, {}), self._rng) for reason in Reason}

    def next(self) -> tuple[Edit, ...] | None:
        """The next group, all of one kind; None when nothing is left."""
        if self._urgent:
            return self._urgent.pop(0)
        for reason, edits in self._left.items():
            self._left[reason] = [edit for edit in edits if edit not in self._tried]
        open_reasons = [reason for reason in Reason if self._left[reason]]
        if not open_reasons:
            return None
        reason = self._reasons.draw(open_reasons)
        size = GROUP if reason is Reason.UNSERVED else 1
        group = tuple(self._left[reason][:size])
        self._tried.update(group)
        self._drawn[group] = reason
        return group

    def tell(self, group: tuple[Edit, ...], change: float) -> None:
        """What a group did to the score: of one that harms, the halves are tried next."""
        reason = self._drawn[group]
        self._reasons.tell(reason, change > 0)
        if change < 0 and len(group) > 1:
            half = len(group) // 2
            self._urgent += [group[:half], group[half:]]
            self._drawn |= dict.fromkeys(self._urgent, reason)


def _shuffled(weights: Mapping[Edit, float], rng: np.random.Generator) -> list[Edit]:
    """Drawn without replacement in proportion to the weights.

    By the keys of "Weighted random sampling with a reservoir" (Efraimidis, Spirakis).
    """
    keys = {edit: np.log(rng.random()) / weight for edit, weight in weights.items()}
    return sorted(keys, key=lambda edit: -keys[edit])


@dataclasses.dataclass(frozen=True)
class _Missed:
    """A use that reads from HBM; to serve it its buffer would lie in [begin, end)."""

    buffer: int
    size_bytes: int
    begin: int
    end: int
    benefit_ns: float


def _missed(problem: MemoryProblem, mapping: MemoryMapping) -> list[_Missed]:
    """All of them, and definitions that write to HBM."""
    served = mapping.served
    born = {s.buffer for s in mapping.stays if _is_born(problem, s)}
    found = []
    for number, buffer in enumerate(problem.buffers):
        size, since = buffer.size_bytes, buffer.begin
        if not buffer.starts_in_hbm and number not in born:
            benefit = problem.birth_benefit_ns(buffer)
            found.append(_Missed(number, size, since, since + 1, benefit))
        for n, use in enumerate(buffer.uses):
            if (number, n) not in served:
                found.append(_Missed(number, size, since, use.time + 1, problem.benefit_ns(use)))
            since = use.time
    return [m for m in found if m.benefit_ns > 0]


def _is_born(problem: MemoryProblem, stay: Stay) -> bool:
    return not stay.is_copied and stay.begin == problem.buffers[stay.buffer].begin


def _displaced(problem: MemoryProblem, missed: Sequence[_Missed], stays: Sequence[Stay]) -> float:
    """What others miss in the room of a buffer's stays."""
    total = 0.0
    for m in missed:
        for stay in stays:
            overlap = min(stay.end, m.end) - max(stay.begin, m.begin)
            if overlap > 0 and stay.buffer != m.buffer:
                room = min(1.0, problem.buffers[stay.buffer].size_bytes / m.size_bytes)
                total += m.benefit_ns * room * overlap / (m.end - m.begin)
    return total
