"""From orders to start with to better ones, by small changes that are each asked of the compiler.

start    screen given orders; compile the most promising, which tells of placements unlike the
         compiler's own
improve  change the best by what is at stake in its mapping, cross it with another good one, or try
         one more order to start with, whichever has helped before; keep what screening likes
confirm  compile the best wholly; what that teaches re-ranks everything, and the next round begins
"""

import contextlib
import dataclasses
import enum
import math
from collections.abc import Callable, Sequence

import numpy as np

from memory_planner.agents import local_search
from memory_planner.agents.candidates import Candidate
from memory_planner.agents.edits import Queue, Stakes, applied, stakes
from memory_planner.agents.thompson import Thompson
from memory_planner.evaluation import Trial, most_promising
from memory_planner.extract import Extracted
from memory_planner.problem import MemoryMapping
from memory_planner.session import CannotMapError, Session, explained

# Of the screened compilations, those that orders to start with have in any case.
_START_SHARE = 1 / 4
# With which the best is crossed: one of so many best.
_PARENTS = 6
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
    first = max(1, int(limits.assignments * _START_SHARE))
    for candidate in starts[:first]:
        book.ask(candidate)
    book.confirm(book.most_promising())
    sources = _Sources(Queue(_stakes(session, book.best()), rng), list(starts[first:]), rng)
    while book.screens_left > 0:
        share = math.ceil(book.screens_left / max(1, book.compiles_left))
        if not _improve(book, sources, share):
            break
        book.confirm(book.best())
        sources.queue.renew(_stakes(session, book.best()))
    return book.trials()


def _improve(book: "_Book", sources: "_Sources", screens: int) -> bool:
    """Look for something better until so many were screened; False where nothing new came up."""
    until, fruitless = book.screens_left - screens, 0
    while book.screens_left > until and fruitless < _PATIENCE:
        left, best = book.screens_left, book.total(book.best())
        candidate, tell = sources.next(book)
        change = best - book.ask(candidate)
        fruitless = fruitless + 1 if book.screens_left == left else 0
        tell(change)
    return fruitless < _PATIENCE


class _Source(enum.Enum):
    """Where a candidate comes from."""

    CHANGE = "a change of the best"
    START = "an order to start with"
    CROSSOVER = "two of the good ones, crossed"


class _Sources:
    """Candidates from the source that is drawn by how often it has led to something better."""

    def __init__(self, queue: Queue, starts: list[Candidate], rng: np.random.Generator) -> None:
        self.queue = queue
        self._starts, self._rng = starts, rng
        self._sources = Thompson(_Source, rng)

    def next(self, book: "_Book") -> tuple[Candidate, Callable[[float], None]]:
        """(A candidate, what to call with how much better than the best it is)."""
        good = book.ranked()[:_PARENTS]
        has = {_Source.CHANGE: True, _Source.START: self._starts, _Source.CROSSOVER: good[1:]}
        source = self._sources.draw([source for source in _Source if has[source]])
        group = None
        if source is _Source.START:
            candidate = self._starts.pop(0)
        elif source is _Source.CROSSOVER:
            candidate = _crossed(good, self._rng)
        else:
            group = self.queue.next()
            candidate = applied(good[0], group) if group else _neighbour(good[0], self._rng)

        def tell(change: float) -> None:
            self._sources.tell(source, change > 0)
            if group is not None:
                self.queue.tell(group, change)

        return candidate, tell


def _crossed(good: Sequence[Candidate], rng: np.random.Generator) -> Candidate:
    """The best's order crossed with another's, eagerness from either."""
    mother, father = good[0], good[int(rng.integers(1, len(good)))]
    if rng.random() < 0.5:
        mother, father = father, mother
    order = local_search.order_crossover(rng, np.array(mother.order), np.array(father.order))
    eager = np.where(rng.random(len(order)) < 0.5, mother.eagerness, father.eagerness)
    return Candidate(tuple(map(int, order)), tuple(map(int, eager)), -np.inf)


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

    def ranked(self) -> list[Candidate]:
        """Those that compile, best first."""
        return sorted((c for c in self._trials if math.isfinite(self.total(c))), key=self.total)

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
