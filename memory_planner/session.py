"""A program opened for mapping: its default, its problem, and how decisions reach its compiler."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from memory_planner.assignment_log import AssignmentLogError, read_log
from memory_planner.errors import MemoryPlannerError
from memory_planner.evaluation import NOTHING_FAST, Compiler, CompilerFailure, Evaluator, Trial
from memory_planner.extract import Extracted, extract
from memory_planner.games.placement import EARLIEST, LATEST
from memory_planner.overrides import Prefetch, moved, order_options
from memory_planner.step_cycles import StepCycles
from passes.hlo.errors import HloError
from passes.hlo.machine import MachineModel
from passes.hlo.parse import parse

# Eagerness as the compiler has it; the default is not named.
_EAGERNESS = {EARLIEST: 0.0, LATEST: 1.0}
# What does not lie in fast memory would save this share of a step at least, or there is nothing to
# gain worth a search.
_LEAST_CONTENTION = 0.001
# Buffers that the probe moves.
_PROBED = 8


class CannotMapError(MemoryPlannerError):
    """This program or this compiler offers nothing to decide; the text says why."""


class NoContentionError(CannotMapError):
    """All that matters fits into fast memory: the compiler's own mapping cannot be bettered."""


@dataclasses.dataclass(frozen=True)
class Session:
    """What is known before any search.

    Attributes:
      evaluator: tries options.
      extracted: the program's problem, and the compiler's own mapping.
      default: the compiler's own options, confirmed.
      without: memory-space assignment left out, confirmed; None where that did not compile.
    """

    evaluator: Evaluator
    extracted: Extracted
    default: Trial
    without: Trial | None

    @property
    def count(self) -> int:
        """Buffers to decide about."""
        return len(self.extracted.problem.buffers)

    def options(self, order: tuple[int, ...], eagerness: tuple[int, ...]) -> dict[str, str]:
        """Compiler options of an order of buffers (first served first) and eagerness of each."""
        problem, positions = self.extracted.problem, self.extracted.positions
        prefetches = tuple(
            Prefetch(problem.operations[use.time].name, use.operand, _EAGERNESS[eagerness[n]])
            for n in order
            if eagerness[n] in _EAGERNESS
            for use in problem.buffers[n].uses
            if use.benefit_ns
        )
        before, behind = moved(order)
        return order_options(
            tuple(positions[n] for n in before), tuple(positions[n] for n in behind), prefetches
        )

    def told(self, trial: Trial) -> str:
        """A line about a trial that was compiled, or could not be."""
        if trial.confirmed is None:
            return f"a candidate did not compile: {trial.problem[:120]}"
        assert self.default.confirmed is not None
        change = trial.confirmed.total / self.default.confirmed.total - 1
        screened = "" if trial.screened is None else f", screened as {trial.screened.total:.0f}"
        return (
            f"confirmed {trial.confirmed.cycles:.0f} cycles + {trial.confirmed.stall_cycles:.0f} "
            f"stalls ({change:+.2%}){screened}"
        )

    def score(self, method: str, trials: list[Trial]) -> "ScreenScore":
        """An objective for searches over orders, which collects its trials."""
        return ScreenScore(self, method, trials)


@dataclasses.dataclass(frozen=True)
class ScreenScore:
    """Minus the screened cycles of orders; see `agents.candidates.Score`."""

    session: Session
    method: str
    trials: list[Trial]

    def __call__(self, orders: np.ndarray, eagerness: np.ndarray) -> np.ndarray:
        """float64[B] of int32[B, n] orders and eagerness; -inf where the compiler fails."""
        scores = []
        for order, eager in zip(orders, eagerness, strict=True):
            options = self.session.options(tuple(map(int, order)), tuple(map(int, eager)))
            trial = self.session.evaluator.screen(options, self.method)
            self.trials.append(trial)
            scores.append(-np.inf if trial.screened is None else -trial.screened.total)
        return np.array(scores, np.float64)


def open_session(
    compiler: Compiler, machine: MachineModel, progress: Callable[[str], None] = lambda _: None
) -> Session:
    """Compile a program as it is, and without fast memory; read what its compiler decided.

    Args:
      compiler: of the program.
      machine: one device of its target.
      progress: called with a line of text now and then.

    Raises:
      CannotMapError: the compiler does not explain itself in the way that is known.
      NoContentionError: the program has no contention for fast memory.
      CompilerFailure: the program does not compile.
    """
    evaluator = Evaluator(compiler, machine, progress)
    default = evaluator.confirm(Trial((), "default"))
    if default.confirmed is None:
        raise CompilerFailure(default.problem)
    without = evaluator.confirm(Trial(tuple(sorted(NOTHING_FAST.items())), "without fast memory"))
    extracted = explained(evaluator, {})
    session = Session(evaluator, extracted, default, None if without.confirmed is None else without)
    _check_contention(session)
    return session


def explained(evaluator: Evaluator, options: Mapping[str, str]) -> Extracted:
    """The problem and the compiler's mapping under some options, read from its own log.

    Raises:
      CannotMapError: the compiler does not explain itself in the way that is known.
    """
    try:
        text, log_text = evaluator.compiler.assign(options, with_log=True)
        return extract(parse(text), read_log(log_text), evaluator.table, evaluator.machine)
    except (AssignmentLogError, CompilerFailure, HloError) as error:
        raise CannotMapError(f"{error}; the compiler's own mapping stays") from error


def _check_contention(session: Session) -> None:
    problem = session.extracted.problem
    if len(problem.buffers) < 2:
        raise NoContentionError(
            f"{problem.name} has {len(problem.buffers)} buffers that could lie in fast memory: "
            "there is no order to choose"
        )
    confirmed = session.default.confirmed
    assert confirmed is not None
    missed = _missed_ns(session.extracted) * session.evaluator.machine.clock_hz / 1e9
    if missed + confirmed.stall_cycles <= _LEAST_CONTENTION * confirmed.total:
        raise NoContentionError(
            f"{problem.name} has no contention for fast memory: of {confirmed.total:.0f} cycles "
            f"under the compiler's own mapping, {missed:.0f} could be saved by what does not lie "
            f"there, and {confirmed.stall_cycles:.0f} are waited for copies"
        )


def _missed_ns(extracted: Extracted) -> int:
    """At most saved by the uses that the compiler's mapping does not serve from fast memory."""
    problem = extracted.problem
    served = extracted.mapping.served
    return sum(
        problem.benefit_ns(use)
        for number, buffer in enumerate(problem.buffers)
        for n, use in enumerate(buffer.uses)
        if (number, n) not in served
    )


def follows_options(session: Session) -> bool:
    """Whether the compiler heeds an order: its own first buffers placed last must change something.

    A libtpu that has dropped the option would either refuse it or ignore it. Where that order
    costs as much, the compiler's log tells in which order it placed the buffers.
    """
    count = min(_PROBED, session.count // 2)
    order = (*range(count, session.count), *reversed(range(count)))
    options = session.options(order, (0,) * session.count)
    trial = session.evaluator.screen(options, "probe")
    own = session.evaluator.screen({}, "default")
    if trial.screened is None:
        return False
    if own.screened is None or _differ(trial.screened, own.screened):
        return True
    try:
        probed = explained(session.evaluator, options)
    except CannotMapError:
        return False
    return probed.positions != session.extracted.positions


def _differ(one: StepCycles, other: StepCycles) -> bool:
    return (one.total, one.copied_bytes) != (other.total, other.copied_bytes)
