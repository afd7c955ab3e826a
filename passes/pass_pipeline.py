"""The pipeline: passes applied in order, each followed by a check, with reports and dumps.

    program -> pass -> verify -> (compare numerically) -> (dump) -> next pass

A pass is a frozen dataclass with a `name` and `apply(program) -> program`; nothing needs to be
registered, so a user's own package may hold some. What a pass did it says in notes
(`program.noting`). The input of a pass is never changed: when a pass fails, it is untouched.

A pass with an attribute `decides` (what, in words) is the only one in a list that decides it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from passes import ir
from passes.compare import compare
from passes.dump import dump
from passes.errors import PassError
from passes.program import Program
from passes.verify import verify


@runtime_checkable
class Pass(Protocol):
    """A rewriting of a program.

    Raises PassError from `apply` where it cannot do what was asked.
    """

    @property
    def name(self) -> str:
        """Short, lower case: `stack_layers`."""

    def apply(self, program: Program) -> Program:
        """The rewritten program; the same object where there is nothing to do."""


@dataclasses.dataclass(frozen=True)
class PassReport:
    """What a pass did.

    Attributes:
      name: the pass.
      settings: its fields, as `field=value`, those at their defaults left out.
      notes: what it said, a sentence each.
      equations_before, equations_after: equations of the program, nested ones included.
    """

    name: str
    settings: str
    notes: tuple[str, ...]
    equations_before: int
    equations_after: int

    def __str__(self) -> str:
        head = f"{self.name}({self.settings})"
        counts = f"{self.equations_before} -> {self.equations_after} equations"
        return "\n".join([f"{head}: {counts}", *(f"  {note}" for note in self.notes)])


@dataclasses.dataclass(frozen=True)
class Checks:
    """What happens after each pass besides the check of types.

    Attributes:
      compare: evaluate the program before and after on random data, and compare.
      tolerance: greatest difference allowed, relative to the greatest value of an output.
      dump_to: a folder for numbered jaxprs before and after, and their difference.
      progress: called with the pass's name before it runs.
    """

    compare: bool = False
    tolerance: float = 1e-5
    dump_to: str | None = None
    progress: Callable[[str], None] | None = None


def run_passes(
    program: Program, passes: Sequence[Pass], checks: Checks | None = None, first: int = 0
) -> tuple[Program, tuple[PassReport, ...]]:
    """Apply passes in order.

    Args:
      program: what to begin with.
      passes: in order.
      checks: what follows each.
      first: passes applied before these, for the numbers of dumps.

    Raises:
      PassError: a pass refuses or fails, or breaks the program, or undoes what another one before
        it does; it names the pass.
    """
    checks = checks or Checks()
    _check_decisions(passes)
    reports = []
    for number, one in enumerate(passes, first + 1):
        if checks.progress is not None:
            checks.progress(one.name)
        before = program
        program = _applied(one, before)
        try:
            verify(program)
            if checks.compare and program is not before:
                compare(before, program, checks.tolerance)
        except PassError as error:
            raise PassError(f"it broke the program: {error.message}", one.name) from error
        finally:
            if checks.dump_to is not None:
                dump(pathlib.Path(checks.dump_to), number, one.name, before, program)
        reports.append(_report(one, before, program))
    return program, tuple(reports)


def _check_decisions(passes: Sequence[Pass]) -> None:
    made: dict[str, str] = {}
    for one in passes:
        what = getattr(one, "decides", "")
        if what and what in made:
            raise PassError(
                f"it decides {what}, as {made[what]!r} does before it, and would undo that: leave "
                "one of the two out",
                one.name,
            )
        made[what] = one.name


def _applied(one: Pass, program: Program) -> Program:
    try:
        result = one.apply(program)
    except PassError as error:
        raise PassError(error.message, one.name) from error
    except Exception as error:
        message = str(error).strip().splitlines()
        raise PassError(
            f"it failed with {type(error).__name__}: {message[0] if message else ''} The program "
            "is as it was before; leave the pass out, or mend it",
            one.name,
        ) from error
    if not isinstance(result, Program):
        raise PassError(f"apply returned {type(result).__name__}, not a Program", one.name)
    kept = program.gradient is not None and result.gradient is program.gradient
    if kept and result.jaxpr is not program.jaxpr:
        raise PassError(
            "the gradient is computed by a pass before it and would not be of the changed program: "
            f"put {one.name} first",
            one.name,
        )
    return result


def _report(one: Pass, before: Program, after: Program) -> PassReport:
    counts = [ir.equation_count(p.jaxpr) for p in (before, after)]
    return PassReport(one.name, settings(one), after.notes[len(before.notes) :], *counts)


def settings(one: Pass) -> str:
    """The fields of a pass that are not at their defaults, as `field=value, ...`."""
    if not dataclasses.is_dataclass(one):
        return ""
    changed = (
        f"{field.name}={getattr(one, field.name)!r}"
        for field in dataclasses.fields(one)
        if field.repr and getattr(one, field.name) != field.default
    )
    return ", ".join(changed)
