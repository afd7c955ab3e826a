"""Applies the user's passes to a traced model: some before it is planned, some after.

    trace -> [simplify, precision, stack_layers, ...] -> plan -> [sequence, remat, pipeline, ...]

A pass that has `after_planning = True` gets a program that knows its mesh and how its values lie
there (`program.placement`). A pass may pin dimensions to mesh axes of its own (`pins`): those axes
are not used for anything else.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import optax

from autoshard import errors
from autoshard.elementwise_optimizers import is_elementwise
from autoshard.pass_registry import PassRecord, record
from autoshard.plan import Plan
from autoshard.stacked_state import Stacking, stacking_of
from autoshard.trace import TracedModel
from autoshard.value_specs import value_specs
from passes import ir
from passes.errors import PassError
from passes.hlo.machine import MachineModel
from passes.pass_pipeline import Checks, Pass, run_passes
from passes.program import Placement, Program
from passes.stacking.inputs import stacks_inside

# Rolled layers leave this share of the equations, or less.
_DEEP = 1 / 3


@dataclasses.dataclass(frozen=True)
class Passes:
    """The passes of a compiled model.

    Attributes:
      before: applied to the traced program.
      after: applied once it is planned.
      checks: what follows each.
    """

    before: tuple[Pass, ...] = ()
    after: tuple[Pass, ...] = ()
    checks: Checks = dataclasses.field(default_factory=Checks)

    @classmethod
    def of(cls, passes: Sequence[Pass], checks: Checks) -> "Passes":
        """Passes in the user's order; those before planning first.

        Raises:
          errors.PassError: one that must come before planning stands after one that must not.
        """
        late = [bool(getattr(one, "after_planning", False)) for one in passes]
        if late != sorted(late):
            misplaced = passes[late.index(False, late.index(True))]
            raise errors.PassError(
                f"pass {misplaced.name!r} works on the program before it is planned, and it stands "
                f"after {passes[late.index(True)].name!r}: put it before"
            )
        first = late.index(True) if True in late else len(passes)
        return cls(tuple(passes[:first]), tuple(passes[first:]), checks)

    @property
    def records(self) -> tuple[PassRecord, ...]:
        """All passes, as data."""
        return tuple(record(one) for one in (*self.before, *self.after))

    @property
    def unplanned(self) -> tuple[str, ...]:
        """A note on what the plan's estimates leave out; none where they leave out nothing."""
        names = ", ".join(one.name for one in self.after)
        if not names:
            return ()
        return (f"estimated costs are those before the passes after planning ({names})",)

    @property
    def pins(self) -> tuple[tuple[str, str], ...]:
        """Pairs (named dimension, mesh axis) that the passes ask for."""
        return tuple(pin for one in self.after for pin in getattr(one, "pins", ()))


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A traced model after the passes before planning.

    Attributes:
      traced: its program, and `params` in the structure of the program's parameters.
      stacking: the way to the user's own tree and back.
      records: what was done.
      share_left: equations of the program over those that it had.
    """

    traced: TracedModel
    stacking: Stacking
    records: tuple[PassRecord, ...]
    share_left: float

    @property
    def is_shallow(self) -> bool:
        """Rolled layers compile quickly and step slowly; of few it may not be worth it."""
        return self.share_left > _DEEP


def rewrite(
    traced: TracedModel, passes: Passes, optimizer: optax.GradientTransformation | None
) -> Rewritten:
    """Apply the passes before planning.

    Raises:
      errors.PassError: a pass refuses, fails, or breaks the program.
    """
    program, records = _run(traced.program, passes.before, passes.checks)
    stacking = stacking_of(program, traced.params)
    if stacking.stacks and optimizer is not None and not is_elementwise(optimizer, stacking):
        program = stacks_inside(program, traced.program).noting(_NOT_ELEMENTWISE)
        stacking = stacking_of(program, traced.params)
        records = (*records[:-1], dataclasses.replace(
            records[-1], notes=(*records[-1].notes, _NOT_ELEMENTWISE)
        ))  # fmt: skip
    params = stacking.stacked_params(traced.params)
    share_left = _share_left(traced.program, program)
    traced = dataclasses.replace(traced, program=program, params=params)
    return Rewritten(traced, stacking, records, share_left)


def _share_left(before: Program, after: Program) -> float:
    if after is before:
        return 1.0
    return ir.equation_count(after.jaxpr) / max(1, ir.equation_count(before.jaxpr))


_NOT_ELEMENTWISE = (
    "the optimizer does something else to a stack than to its parts, so the state stays in the "
    "user's tree and the step stacks it: compilation takes longer"
)


def finish(
    traced: TracedModel, passes: Passes, plan: Plan, mesh: Any, machine: MachineModel
) -> tuple[TracedModel, tuple[PassRecord, ...]]:
    """The program with its place, after the passes after planning.

    Raises:
      errors.PassError: a pass refuses, fails, or breaks the program.
    """
    placement = Placement(mesh, machine, value_specs(plan.layout))
    program = dataclasses.replace(traced.program, placement=placement)
    first = len(passes.before)
    program, records = _run(program, passes.after, passes.checks, first)
    return dataclasses.replace(traced, program=program), records


def _run(
    program: Program, passes: Sequence[Pass], checks: Checks, first: int = 0
) -> tuple[Program, tuple[PassRecord, ...]]:
    try:
        program, reports = run_passes(program, passes, checks, first)
    except PassError as error:
        raise errors.PassError(str(error)) from error
    pairs = zip(passes, reports, strict=True)
    return program, tuple(record(one, report.notes) for one, report in pairs)
