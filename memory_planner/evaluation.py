"""Trying options on the compiler, the cheap way and the true way.

screen    a compilation that ends with buffer assignment; cycles from the cost table
confirm   a whole compilation; the compiler's own cycles, which the table then learns

Only what was confirmed is ever reported as a result.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from memory_planner.cost_table import CostTable
from memory_planner.errors import MemoryPlannerError
from memory_planner.step_cycles import StepCycles, step_cycles
from passes.hlo.errors import HloError
from passes.hlo.machine import MachineModel
from passes.hlo.module import HloModule
from passes.hlo.parse import parse

_SAID_EVERY = 10  # assignments
# Memory-space assignment left out: what every operation costs with all of it in HBM.
NOTHING_FAST = {"xla_msa_enable": "false"}


class CompilerFailure(MemoryPlannerError):
    """The compiler refused a program or died; other options may do."""


class Compiler(Protocol):
    """The compiler of one program."""

    def assign(self, options: Mapping[str, str], *, with_log: bool) -> tuple[str, str]:
        """The scheduled program with its buffers placed and no code yet; the log, if asked for.

        Raises:
          CompilerFailure: it did not get that far.
        """
        ...

    def compile(self, options: Mapping[str, str]) -> str:
        """The scheduled program with the compiler's estimates.

        Raises:
          CompilerFailure: it did not get that far.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Trial:
    """Options, and what they led to.

    Attributes:
      options: for the compiler.
      method: who proposed them.
      screened: estimated, from the cost table; None where that was skipped or failed.
      hoped: the same at its best, where operations have not been compiled as they are placed.
      confirmed: from a whole compilation; None where there was none.
      problem: why there is nothing; empty otherwise.
    """

    options: tuple[tuple[str, str], ...]
    method: str
    screened: StepCycles | None = None
    hoped: StepCycles | None = None
    confirmed: StepCycles | None = None
    problem: str = ""


def most_promising(trials: Sequence[Trial]) -> Trial | None:
    """What to compile next: the best believed if it is better than all that was compiled.

    Else the one that may be the best. None where nothing is left that differs from what was
    compiled, or could be screened.
    """
    compiled = [t.confirmed for t in trials if t.confirmed is not None]
    seen = {_look(step) for step in compiled}
    best = min((step.total for step in compiled), default=float("inf"))
    left = [
        (t, t.screened, t.hoped)
        for t in trials
        if t.confirmed is None and not t.problem and t.screened and t.hoped
        if _look(t.screened) not in seen
    ]
    if not left:
        return None
    believed = min(left, key=lambda one: one[1].total)
    return believed[0] if believed[1].total < best else min(left, key=lambda one: one[2].total)[0]


def _look(step: StepCycles) -> tuple[float, float]:
    """Equal for equal mappings; cycles to the cycle, as sums may differ by rounding."""
    return round(step.total), step.copied_bytes


class Evaluator:
    """One program's trials; the same options are never tried twice.

    Args:
      compiler: of the program.
      machine: one device of its target.
      progress: called with a line of text now and then.

    Attributes:
      assignments, compiles: made so far.
      table: what has been learned of operations.
      say: `progress`.
    """

    def __init__(
        self,
        compiler: Compiler,
        machine: MachineModel,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.say = progress
        self.compiler, self.machine = compiler, machine
        self.table = CostTable(machine)
        self.assignments = self.compiles = 0
        self._assigned: dict[tuple[tuple[str, str], ...], HloModule | str] = {}
        self._compiled: dict[tuple[tuple[str, str], ...], StepCycles | str] = {}

    def screen(self, options: Mapping[str, str], method: str) -> Trial:
        """Assign memory under some options; what it should cost by what is known now."""
        key = tuple(sorted(options.items()))
        if key not in self._assigned:
            self.assignments += 1
            if self.assignments % _SAID_EVERY == 0:
                self.say(f"assigning memory, for the {self.assignments}th time ({method})")
            try:
                self._assigned[key] = parse(self.compiler.assign(options, with_log=False)[0])
            except (CompilerFailure, HloError) as error:
                self._assigned[key] = str(error)
        return self.reconsidered(Trial(key, method))

    def reconsidered(self, trial: Trial) -> Trial:
        """The same trial with what the table has learned since."""
        module = self._assigned.get(trial.options)
        confirmed = self._compiled.get(trial.options)
        if isinstance(confirmed, str):
            trial = dataclasses.replace(trial, problem=confirmed)
        elif confirmed is not None:
            trial = dataclasses.replace(trial, confirmed=confirmed)
        if module is None or isinstance(module, str):
            return dataclasses.replace(trial, problem=module or trial.problem)
        screened = step_cycles(module, self.machine, self.table.cycles_of)
        hoped = step_cycles(module, self.machine, self.table.hoped_cycles_of)
        return dataclasses.replace(trial, screened=screened, hoped=hoped)

    def confirm(self, trial: Trial) -> Trial:
        """Compile a trial's options wholly."""
        if trial.options not in self._compiled:
            self.compiles += 1
            self._compiled[trial.options] = self._compile(trial.options)
        found = self._compiled[trial.options]
        if isinstance(found, str):
            return dataclasses.replace(trial, problem=found)
        return dataclasses.replace(trial, confirmed=found)

    def _compile(self, options: tuple[tuple[str, str], ...]) -> StepCycles | str:
        try:
            module = parse(self.compiler.compile(dict(options)))
            self.table.learn(module)
            return step_cycles(module, self.machine)
        except (CompilerFailure, HloError) as error:
            return str(error)
