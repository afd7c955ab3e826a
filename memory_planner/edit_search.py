"""From orders to start with to better ones, by small changes that are each asked of the compiler.

start    screen given orders; compile the most promising, which tells of placements unlike the
         compiler's own
improve  change the best by what is at stake in its mapping; keep what screening likes
confirm  compile the best wholly; what that teaches re-ranks everything, and the next round begins
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from memory_planner.agents import local_search
from memory_planner.agents.candidates import Candidate
from memory_planner.agents.edits import Queue, Stakes, applied, stakes
from memory_planner.evaluation import Trial, most_promising
from memory_planner.extract import Extracted
from memory_planner.problem import MemoryMapping
from memory_planner.session import CannotMapError, Session, explained

# Of the screened compilations, those for orders to start with.
_START_SHARE = 1 / 3
# With few buffers most changes lead to orders that are known: give up after so many in a row.
_PATIENCE = 50


@dataclasses.dataclass(frozen=True)
class Limits:
    """What may be spent.

    Attributes:
      assignments: compilations to screen.
      compiles: whole compilations.
      seed: of all chance.
    """

    assignments: int
    compiles: int
    seed: int = 0


def edit_search(
    session: Session, method: str, starts: Sequence[Candidate], limits: Limits
) -> list[Trial]:
    """The trials of a search.

    Args:
      session: of the program.
      method: name for the trials.
      starts: orders to begin with, the most promising first; the compiler's own is among them
        without being named.
      limits: of the search.
    """
    rng, book = np.random.default_rng(limits.seed), _Book(session, method, limits)
    for candidate in starts[: max(1, int(limits.assignments * _START_SHARE))]:
        book.ask(candidate)
    book.confirm(book.most_promising())
    queue = Queue(_stakes(session, book.best()), rng)
    while book.screens_left > 0:
        share = math.ceil(book.screens_left / max(1, book.compiles_left))
        if not _improve(book, queue, rng, share):
            break
        book.confirm(book.best())
    return book.trials()


def _improve(book: "_Book", queue: Queue, rng: np.random.Generator, screens: int) -> bool:
    """Change the best order until so many were screened; False where nothing new came up."""
    current, until, fruitless = book.best(), book.screens_left - screens, 0
    while book.screens_left > until and fruitless < _PATIENCE:
        group, left = queue.next(), book.screens_left
        candidate = applied(current, group) if group else _neighbour(current, rng)
        change = book.total(current) - book.ask(candidate)
        fruitless = fruitless + 1 if book.screens_left == left else 0
        if group is not None:
            queue.tell(group, change)
        if change > 0:
            current = candidate
    return fruitless < _PATIENCE


def _neighbour(candidate: Candidate, rng: np.random.Generator) -> Candidate:
    order, eagerness = local_search.neighbour(
        rng, np.array(candidate.order), np.array(candidate.eagerness), flip_chance=0.3
    )
    return Candidate(tuple(map(int, order)), tuple(map(int, eagerness)), -np.inf)


def _stakes(session: Session, candidate: Candidate) -> Stakes:
    """By the mapping that the compiler makes of a candidate; by its own where it does not tell."""
    extracted, options = session.extracted, session.options(candidate.order, candidate.eagerness)
    mapping = extracted.mapping
    if options:
        with contextlib.suppress(CannotMapError):
            mapping = _renumbered(explained(session.evaluator, options), extracted)
    return stakes(extracted.problem, mapping)


def _renumbered(found: Extracted, known: Extracted) -> MemoryMapping:
    """A mapping with buffers numbered as in another extraction; those unknown there left out."""
    numbers = {position: n for n, position in enumerate(known.positions)}
    stays = []
    for stay in found.mapping.stays:
        number = numbers.get(found.positions[stay.buffer])
        if number is not None:
            uses = len(known.problem.buffers[number].uses)
            stays.append(
                dataclasses.replace(
                    stay, buffer=number, uses=tuple(n for n in stay.uses if n < uses)
                )
            )
    return MemoryMapping(tuple(stays))


class _Book:
    """Candidates that were asked about, by what is known of them now."""

    def __init__(self, session: Session, method: str, limits: Limits) -> None:
        self._session, self._method = session, method
        own = Candidate(tuple(range(session.count)), (0,) * session.count, -np.inf)
        self._trials = {own: session.default}
        self._compiled_before = session.evaluator.compiles
        self._limits = limits

    @property
    def screens_left(self) -> int:
        return self._limits.assignments - len(self.trials())

    @property
    def compiles_left(self) -> int:
        return self._limits.compiles - (self._session.evaluator.compiles - self._compiled_before)

    def trials(self) -> list[Trial]:
        """Distinct ones, the compiler's own left out."""
        return list({t.options: t for t in self._trials.values() if t.options}.values())

    def ask(self, candidate: Candidate) -> float:
        """Screen a candidate; its total now."""
        if candidate not in self._trials:
            options = self._session.options(candidate.order, candidate.eagerness)
            self._trials[candidate] = (
                self._session.evaluator.screen(options, self._method)
                if options
                else self._session.default
            )
        return self.total(candidate)

    def total(self, candidate: Candidate) -> float:
        """Cycles and stalls as compiled, else as screened; infinite where the compiler failed."""
        return _believed(self._trials[candidate])

    def best(self) -> Candidate:
        return min(self._trials, key=self.total)

    def most_promising(self) -> Candidate:
        """Of those that were not compiled; any other where there is none."""
        chosen = most_promising(list(self._trials.values()))
        return next((c for c, t in self._trials.items() if t is chosen), self.best())

    def confirm(self, candidate: Candidate) -> None:
        """Compile a candidate, where it was not yet and budget is left; all learn from it."""
        if self._trials[candidate].confirmed is not None or self.compiles_left < 1:
            return
        evaluator = self._session.evaluator
        self._trials[candidate] = evaluator.confirm(self._trials[candidate])
        evaluator.say(self._session.told(self._trials[candidate]))
        self._trials = {c: evaluator.reconsidered(t) for c, t in self._trials.items()}


def _believed(trial: Trial) -> float:
    if trial.confirmed is not None:
        return trial.confirmed.total
    if trial.problem or trial.screened is None:
        return math.inf
    return trial.screened.total
