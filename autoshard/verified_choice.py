"""The best layouts compiled for the target, and the choice among them by what its compiler says.

estimate -> the best few -> compiled -> memory: those that fit; simulated time: the quickest
                 ^                         |
                 +---- the limit, corrected by how far the estimate of memory was off

The quickest is then compiled under other options of the compiler.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from autoshard import planning
from autoshard.compile_report import CompileReport
from autoshard.compiler_options import OptionSet, alternatives
from autoshard.errors import CompileError, NoFitError, PassError, PlanError
from autoshard.layouts import Layout
from autoshard.plan import Plan
from autoshard.planning import Candidate, Wishes
from autoshard.search.options import SearchOptions
from autoshard.search_record import Verified
from autoshard.target import Target
from passes.program import Program

# How far compiled memory may be from the estimate before layouts are searched for again.
_OFF = 0.02
_ROUNDS = 3
_CHOSEN = "chosen"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
      candidate: the layout and its passes.
      plan: its plan, with what was verified.
    """

    candidate: Candidate
    plan: Plan


@dataclasses.dataclass(frozen=True)
class _Compiled:
    candidate: Candidate
    report: CompileReport
    under: str = ""  # the name of other options

    @property
    def needed_bytes(self) -> int:
        if self.report.memory is not None:
            return self.report.memory.needed_bytes
        assert self.report.out_of_memory is not None
        return self.report.out_of_memory.needed_bytes

    @property
    def simulated_s(self) -> float | None:
        return None if self.report.timeline is None else self.report.timeline.step_s

    @property
    def ratio(self) -> float:
        """Compiled over estimated memory."""
        return self.needed_bytes / max(1, self.candidate.plan.cost.memory.total_bytes)


def searched(
    program: Program,
    target: Target,
    wishes: Wishes,
    optimizer_bytes: Callable[[Layout], int],
    compile_one: Callable[[Candidate], CompileReport],
) -> tuple[Candidate, Plan]:
    """Plan a program, and compile the best layouts where the target asks for it.

    Args:
      program, target, wishes, optimizer_bytes: as of `planning.make`.
      compile_one: compiles a candidate.

    Returns:
      What was chosen, and its plan with what was verified.

    Raises:
      RuleError, BatchError, PlanError, UnmodelledError: as `planning.make` and `choose`.
    """

    def candidates(ratio: float) -> Iterator[Candidate]:
        corrected = wishes.corrected(ratio, target.memory_bytes)
        return planning.make(program, target, corrected, optimizer_bytes)

    count = wishes.compiled_layouts(target)
    if not count:
        candidate = next(candidates(1.0))
        return candidate, candidate.plan
    trial = Trial(compile_one, wishes.memory_limit_bytes, alternatives(target.topology))
    chosen = choose(candidates, trial, wishes.options, count)
    return chosen.candidate, chosen.plan


@dataclasses.dataclass(frozen=True)
class Trial:
    """How candidates are compiled.

    Attributes:
      compile_one: compiles a candidate, under the options of its plan.
      limit_bytes: bytes that a device may hold, by the compiler; None: what its chip has.
      alternatives: options under which the quickest is compiled, too.
    """

    compile_one: Callable[[Candidate], CompileReport]
    limit_bytes: int | None
    alternatives: Sequence[OptionSet] = ()


def choose(
    search: Callable[[float], Iterator[Candidate]],
    trial: Trial,
    options: SearchOptions,
    count: int,
) -> Choice:
    """Compile up to `count` layouts and take the quickest that fits; try other options on it.

    Args:
      search: candidates, best first, where memory is compiled at so many times its estimate.
      trial: how they are compiled.
      options: for progress.
      count: the most compilations, but that one round more is made where none fits.

    Raises:
      NoFitError: none fits by the compiler.
      PlanError: none could be compiled.
    """
    done: list[_Compiled] = []
    tried: set[object] = set()
    refused: list[str] = []
    ratio = 1.0
    for turn in range(_ROUNDS):
        share = max(1, count // 2 if turn == 0 else count - len(done))
        for candidate in _new(search(ratio), tried, share):
            _say_start(options, candidate, len(done))
            done += _tried(candidate, trial, options, refused)
        fits = any(_fits(x, trial.limit_bytes) for x in done)
        new = max((x.ratio for x in done), default=1.0)
        if fits and (len(done) >= count or (turn and abs(new / ratio - 1) < _OFF)):
            break
        ratio = new
    best = min(_fitting(done, trial.limit_bytes), key=_seconds, default=None)
    if best is not None:
        done += _under_alternatives(best.candidate, trial, options, refused)
    return _chosen(done, refused, trial.limit_bytes)


def _under_alternatives(
    candidate: Candidate, trial: Trial, options: SearchOptions, refused: list[str]
) -> list[_Compiled]:
    """A candidate compiled under other options."""
    found = []
    for alternative in trial.alternatives:
        plan = dataclasses.replace(candidate.plan, compiler_options=alternative.options)
        options.say(f"compiling the quickest of them with {alternative.name}")
        made = _tried(dataclasses.replace(candidate, plan=plan), trial, options, refused)
        found += [dataclasses.replace(one, under=alternative.name) for one in made]
    return found


def _tried(
    candidate: Candidate, trial: Trial, options: SearchOptions, refused: list[str]
) -> list[_Compiled]:
    """A candidate compiled; nothing where the compiler refuses it, which is noted."""
    try:
        one = _Compiled(candidate, trial.compile_one(candidate))
    except (CompileError, PassError) as error:
        refused.append(str(error))
        options.say(f"  refused: {error}")
        return []
    _say_end(options, one)
    return [one]


def _new(candidates: Iterator[Candidate], tried: set[object], count: int) -> Iterator[Candidate]:
    """Up to `count` candidates that were not tried before."""
    for candidate in candidates:
        key = (candidate.plan.layout, candidate.passes)
        if key not in tried:
            tried.add(key)
            yield candidate
            count -= 1
            if not count:  # further plans would be made for nothing
                return


def _fits(one: _Compiled, limit_bytes: int | None) -> bool:
    fits = one.report.memory is not None
    return fits and (limit_bytes is None or one.needed_bytes <= limit_bytes)


def _fitting(done: list[_Compiled], limit_bytes: int | None) -> list[_Compiled]:
    return [x for x in done if _fits(x, limit_bytes) and x.simulated_s is not None]


def _seconds(one: _Compiled) -> float:
    return one.simulated_s or 0.0


def _chosen(done: list[_Compiled], refused: list[str], limit_bytes: int | None) -> Choice:
    if not done:
        raise PlanError(
            f"the compiler refuses the best layouts; the first time it said: {refused[0]}"
        )
    fitting = _fitting(done, limit_bytes)
    if not fitting:
        least = min(done, key=lambda x: x.needed_bytes)
        plan = least.candidate.plan
        raise NoFitError(
            f"no layout of {plan.program.name} fits {plan.topology} by its compiler: the least of "
            f"{len(done)} needs {least.needed_bytes} bytes a device where the estimate was "
            f"{plan.cost.memory.total_bytes}, with rules {'+'.join(plan.rules)} on mesh "
            f"({plan.mesh.shape}): use more devices, a smaller batch, passes='auto' or "
            "offload='optimizer'"
        )
    best = min(fitting, key=_seconds)
    order = sorted(done, key=lambda x: (x not in fitting, _seconds(x)))
    rows = tuple(_row(x, best, fitting) for x in order)
    plan = dataclasses.replace(best.candidate.plan, verified=rows)
    return Choice(best.candidate, plan)


def quicker(plan: Plan, other: Plan) -> Plan | None:
    """The second of two verified plans of one model if its step is quicker by simulation.

    Returns:
      It with what was verified of both; None where it is not quicker.
    """
    if not plan.verified or not other.verified:
        return None
    mine, theirs = plan.verified[0].simulated_s, other.verified[0].simulated_s
    if mine is None or theirs is None or theirs >= mine:
        return None
    return dataclasses.replace(other, verified=beside(other, plan))


def beside(plan: Plan, other: Plan) -> tuple[Verified, ...]:
    """What was verified of a plan, and of another that was not chosen."""
    rows = [
        dataclasses.replace(row, verdict="" if row.verdict == _CHOSEN else row.verdict)
        for row in other.verified
    ]
    return (*plan.verified, *rows)


def _row(one: _Compiled, best: _Compiled, fitting: list[_Compiled]) -> Verified:
    plan = one.candidate.plan
    passes = tuple(str(record) for record in one.report.plan.passes)
    others = (f"with {one.under}",) if one.under else ()
    verdict = _CHOSEN if one is best else ("" if one in fitting else "does not fit")
    return Verified(
        rules=" ".join((*plan.rules, *passes, *others)),
        mesh=str(plan.mesh.shape),
        estimated_s=plan.cost.time.total_s,
        simulated_s=one.simulated_s,
        estimated_bytes=plan.cost.memory.total_bytes,
        compiled_bytes=one.needed_bytes,
        verdict=verdict,
    )


def _say_start(options: SearchOptions, candidate: Candidate, number: int) -> None:
    plan = candidate.plan
    options.say(
        f"compiling layout {number + 1}: {plan.mesh.shape}, {'+'.join(plan.rules)}, estimated "
        f"{plan.cost.time.total_s:.4g} s and {plan.cost.memory.total_bytes / 2**30:.2f} GiB"
    )


def _say_end(options: SearchOptions, one: _Compiled) -> None:
    step = "does not fit" if one.simulated_s is None else f"simulated {one.simulated_s:.4g} s"
    options.say(f"  {step}, compiled {one.needed_bytes / 2**30:.2f} GiB")
