"""A program opened for mapping: its default, its problem, and how decisions reach its compiler."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from memory_planner.assignment_log import AssignmentLogError, read_log
from memory_planner.errors import MemoryPlannerError
from memory_planner.evaluation import NOTHING_FAST, Compiler, CompilerFailure, Evaluator, Trial
from memory_planner.extract import Extracted, extract
from memory_planner.overrides import Prefetch, order_options
from passes.hlo.errors import HloError
from passes.hlo.machine import MachineModel
from passes.hlo.parse import parse

# Eagerness of candidates (default, earliest, latest) as the compiler has it.
_EAGERNESS = {1: 0.0, 2: 1.0}
# With all of it in fast memory for free a step would be this much shorter at least, or there is
# nothing to gain worth a search.
_LEAST_CONTENTION = 0.001


class CannotMapError(MemoryPlannerError):
    """This program or this compiler offers nothing to decide; the text says why."""


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
        return order_options(tuple(positions[n] for n in order), prefetches)

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


def open_session(compiler: Compiler, machine: MachineModel) -> Session:
    """Compile a program as it is, and without fast memory; read what its compiler decided.

    Raises:
      CannotMapError: the compiler does not explain itself in the way that is known, does not follow
        the options, or the program has no contention for fast memory.
      CompilerFailure: the program does not compile.
    """
    evaluator = Evaluator(compiler, machine)
    default = evaluator.confirm(Trial((), "default"))
    if default.confirmed is None:
        raise CompilerFailure(default.problem)
    without = evaluator.confirm(Trial(tuple(sorted(NOTHING_FAST.items())), "without fast memory"))
    text, log_text = compiler.assign({}, with_log=True)
    try:
        extracted = extract(parse(text), read_log(log_text), evaluator.table, machine)
    except (AssignmentLogError, HloError) as error:
        raise CannotMapError(f"{error}; the compiler's own mapping stays") from error
    session = Session(
        evaluator,
        extracted,
        evaluator.screen({}, "default") if default.confirmed is None else default,
        without if without.confirmed is not None else None,
    )
    _check_contention(session)
    return session


def _check_contention(session: Session) -> None:
    problem = session.extracted.problem
    if not problem.buffers:
        raise CannotMapError(f"{problem.name} has no buffers that could lie in fast memory")
    confirmed = session.default.confirmed
    assert confirmed is not None
    floor_ns = sum(min(o.floor_ns, o.slow_ns) * o.repeats for o in problem.operations)
    floor = floor_ns * session.evaluator.machine.clock_hz / 1e9
    if confirmed.total <= floor * (1 + _LEAST_CONTENTION):
        raise CannotMapError(
            f"{problem.name} has no contention for fast memory: the compiler's own mapping takes "
            f"{confirmed.total:.0f} cycles, and nothing could take fewer than {floor:.0f}"
        )


def follows_options(session: Session) -> bool:
    """Whether the compiler heeds an order: the reverse of its own must change something.

    A libtpu that has dropped the option would either refuse it or ignore it.
    """
    order = tuple(reversed(range(session.count)))
    options: Mapping[str, str] = session.options(order, (0,) * session.count)
    trial = session.evaluator.screen(options, "probe")
    own = session.evaluator.screen({}, "default")
    return trial.screened is not None and (
        own.screened is None
        or trial.screened.total != own.screened.total
        or trial.screened.copied_bytes != own.screened.copied_bytes
    )
