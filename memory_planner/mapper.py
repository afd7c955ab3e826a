"""Find a better mapping of a program's buffers than its compiler's own, or keep that.

open      compile it as it is and without fast memory; extract the problem
sweep     compile it under a few options for the whole program; where one of them is better, half of
          the budget goes to a search under it
propose   a strategy screens orders on the compiler, stopped after buffer assignment
confirm   the best are compiled wholly; what they teach re-ranks the others
choose    the best of what was confirmed, the compiler's own included: never worse than default
"""

import dataclasses
from collections.abc import Callable, Mapping

from memory_planner.errors import MemoryPlannerError
from memory_planner.evaluation import Compiler, Evaluator, Trial, most_promising
from memory_planner.extract import Extracted
from memory_planner.session import (
    CannotMapError,
    Session,
    explained,
    follows_options,
    open_session,
)
from memory_planner.step_cycles import StepCycles
from memory_planner.strategies import STRATEGIES, Settings
from memory_planner.whole_program import OPTIONS, WithOptions, sweep
from passes.hlo.machine import MachineModel

DEFAULT_STRATEGY = "alphazero"


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much to spend on one program.

    Attributes:
      assignments: compilations that stop after buffer assignment (seconds each).
      compiles: whole compilations of candidates, besides the program's own.
      sweep: whole-program options to compile first; empty: none.
      strategy: one of `strategies.STRATEGIES`.
      episodes: games that an agent plays at most.
      play_seconds: after which it stops playing; None: never.
      seed: of all chance.

    Raises:
      MemoryPlannerError: a number is too small, or the strategy is unknown.
    """

    assignments: int = 40
    compiles: int = 4
    sweep: tuple[Mapping[str, str], ...] = OPTIONS
    strategy: str = DEFAULT_STRATEGY
    episodes: int = 256
    play_seconds: float | None = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("assignments", "compiles", "episodes"):
            if getattr(self, name) < 1:
                raise MemoryPlannerError(f"{name}={getattr(self, name)} must be at least 1")
        if self.play_seconds is not None and not self.play_seconds > 0:
            raise MemoryPlannerError(f"play_seconds={self.play_seconds} must be above 0, or None")
        if self.strategy not in STRATEGIES:
            raise MemoryPlannerError(
                f"strategy {self.strategy!r} is none of {', '.join(sorted(STRATEGIES))}"
            )


@dataclasses.dataclass(frozen=True)
class Mapped:
    """What was found.

    Attributes:
      options: to compile with; empty where the compiler's own mapping is the best.
      default, best: compiler-estimated cycles plus simulated stalls of a step, not run on hardware.
      method: who proposed the best.
      trials: everything that was tried, the best first.
      extracted: the program's problem and the compiler's own mapping.
      best_extracted: the same under the best options, from the compiler's log of them; `extracted`
        where the compiler's own mapping is the best, None where it did not explain itself.
      assignments, compiles: made, those for opening the program included.
    """

    options: tuple[tuple[str, str], ...]
    default: StepCycles
    best: StepCycles
    method: str
    trials: tuple[Trial, ...]
    extracted: Extracted
    best_extracted: Extracted | None
    assignments: int
    compiles: int

    @property
    def gain(self) -> float:
        """Share of the default's time that is saved."""
        return 1.0 - self.best.total / self.default.total


def map_memory(
    compiler: Compiler,
    machine: MachineModel,
    budget: Budget | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Mapped:
    """Search for compiler options that place a program's buffers better.

    Args:
      compiler: of the program.
      machine: one device of its target.
      budget: what to spend.
      progress: called with a line of text now and then.

    Raises:
      CannotMapError: there is nothing to decide: no contention, or a compiler that does not explain
        itself or does not follow orders.
      CompilerFailure: the program itself does not compile.
    """
    budget = budget or Budget()
    progress("compiling the program as it is, and without fast memory")
    session = open_session(compiler, machine, progress)
    if not follows_options(session):
        raise CannotMapError(
            "the compiler does not follow xla_tpu_msa_sort_order_overrides: its own mapping stays"
        )
    # Its own evaluator: what operations cost under other options is not to be taken for theirs.
    sweeper = Evaluator(compiler, machine)
    swept = sweep(sweeper, budget.sweep, progress)
    base = min([session.default, *swept], key=_rank)
    if base is session.default:
        found = search(session, budget, progress)
    else:
        half = _half(budget)
        own = search(session, half, progress)
        found = _better(own, _search_under(session, base, half, progress))
    others = [t for t in swept if t is not base]
    return dataclasses.replace(
        found,
        trials=tuple(sorted([*found.trials, *others], key=_rank)),
        compiles=found.compiles + sweeper.compiles,
    )


def _half(budget: Budget) -> Budget:
    """For each of two searches."""
    seconds = budget.play_seconds
    return dataclasses.replace(
        budget,
        assignments=max(1, budget.assignments // 2),
        compiles=max(1, budget.compiles // 2),
        play_seconds=None if seconds is None else seconds / 2,
    )


def _better(own: Mapped, under: Mapped) -> Mapped:
    """Of a search without whole-program options and the one that followed it with some."""
    best = own if own.best.total < under.best.total else under
    trials = {t.options: t for t in [*under.trials, *own.trials]}
    return dataclasses.replace(
        best,
        trials=tuple(sorted(trials.values(), key=_rank)),
        assignments=under.assignments,
        compiles=under.compiles,
    )


def _search_under(
    session: Session, base: Trial, budget: Budget, progress: Callable[[str], None]
) -> Mapped:
    """Search under whole-program options, which become part of whatever is found."""
    evaluator, default = session.evaluator, session.default
    assert default.confirmed is not None and base.confirmed is not None
    compiler = WithOptions(evaluator.compiler, dict(base.options))
    try:
        found = search(open_session(compiler, evaluator.machine, progress), budget, progress)
    except CannotMapError as error:
        progress(f"no search under {base.method}: {error}")
        trials, best_extracted = [base], _explained_best(session, base)
        assignments = compiles = 0
    else:
        trials = [_under(base, trial) for trial in found.trials]
        best_extracted = found.best_extracted
        assignments, compiles = found.assignments, found.compiles
    return Mapped(
        options=trials[0].options,
        default=default.confirmed,
        best=trials[0].confirmed or base.confirmed,
        method=trials[0].method,
        trials=(*trials, default),
        extracted=session.extracted,
        best_extracted=best_extracted,
        assignments=evaluator.assignments + assignments,
        compiles=evaluator.compiles + compiles,
    )


def _under(base: Trial, trial: Trial) -> Trial:
    """A trial under the options of another, as one of the program itself."""
    if not trial.options:
        return base
    options = tuple(sorted({**dict(base.options), **dict(trial.options)}.items()))
    return dataclasses.replace(trial, options=options)


def search(
    session: Session, budget: Budget, progress: Callable[[str], None] = lambda _: None
) -> Mapped:
    """The same for a program that is open."""
    assert session.default.confirmed is not None
    problem = session.extracted.problem
    progress(
        f"{len(problem.buffers)} buffers with {problem.use_count} uses, default "
        f"{session.default.confirmed.total:.0f} cycles; {budget.strategy} proposes"
    )
    settings = Settings(
        budget.assignments, budget.compiles, budget.episodes, budget.play_seconds, budget.seed
    )
    trials = proposed(session, budget.strategy, settings, progress)
    ranked = sorted([session.default, *trials], key=_rank)
    best = ranked[0]
    assert best.confirmed is not None
    evaluator = session.evaluator
    return Mapped(
        options=best.options,
        default=session.default.confirmed,
        best=best.confirmed,
        method=best.method,
        trials=tuple(ranked),
        extracted=session.extracted,
        best_extracted=_explained_best(session, best),
        assignments=evaluator.assignments,
        compiles=evaluator.compiles,
    )


def _explained_best(session: Session, best: Trial) -> Extracted | None:
    """Under the options of the best trial."""
    if best.options == session.default.options:
        return session.extracted
    try:
        return explained(session.evaluator, dict(best.options))
    except CannotMapError:
        return None


def proposed(
    session: Session, strategy: str, settings: Settings, progress: Callable[[str], None]
) -> list[Trial]:
    """What a strategy finds, the best of it compiled with what the strategy leaves of compiles."""
    before = session.evaluator.compiles
    trials = STRATEGIES[strategy](session, settings)
    left = settings.compiles - (session.evaluator.compiles - before)
    return confirmed_best(session, trials, left, progress)


def confirmed_best(
    session: Session, trials: list[Trial], compiles: int, progress: Callable[[str], None]
) -> list[Trial]:
    """Compile the most promising, one after the other; each teaches what the next is.

    First what screening believes to be better than all that was compiled, then what may be: there
    is no telling of placements that have not been compiled. What equals a compiled one is not.
    """
    trials = list({t.options: t for t in trials}.values())
    for _ in range(max(0, compiles)):
        trials = [session.evaluator.reconsidered(t) for t in trials]
        chosen = most_promising([session.default, *trials])
        if chosen is None:
            break
        n = trials.index(chosen)
        trials[n] = session.evaluator.confirm(chosen)
        progress(session.told(trials[n]))
    return [session.evaluator.reconsidered(t) for t in trials]


def _screened(trial: Trial) -> float:
    return float("inf") if trial.screened is None else trial.screened.total


def _rank(trial: Trial) -> tuple[bool, float]:
    return trial.confirmed is None, trial.confirmed.total if trial.confirmed else _screened(trial)
