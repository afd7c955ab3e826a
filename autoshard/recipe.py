"""`Recipe`: everything about a model but the batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from autoshard import lower as lowering
from autoshard import planning
from autoshard.adapters import ModelFunctions
from autoshard.apply_passes import Passes
from autoshard.compile_report import CompileReport
from autoshard.layouts import Layout
from autoshard.losses import Loss
from autoshard.mesh_shape import MeshShape
from autoshard.plan import Plan
from autoshard.precision import Precision
from autoshard.target import Target
from autoshard.trace import TracedModel
from autoshard.verified_choice import searched
from passes import ir
from passes.pass_pipeline import Pass
from passes.program import Program
from passes.stack_layers import StackLayers

# Layouts of an unrolled program that are compiled to compare with a rolled one.
_UNROLLED = 2


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about a model but the batch.

    Attributes:
      functions: the model as pure functions.
      loss: (outputs, batch) -> scalar, or (scalar, dict of scalars).
      optimizer: None when the task does not train.
      target: where it is to run.
      wishes: what the user asked of the planner.
      precision: dtype policy.
      passes: what rewrites the program.
      offloads: whether the optimizer's state lives in host memory.
      rolls: whether `with_loops` may roll layers.
      donate: whether `step` reuses the memory of the state that it is given.
    """

    functions: ModelFunctions
    loss: Loss
    optimizer: optax.GradientTransformation | None
    target: Target
    wishes: planning.Wishes
    precision: Precision
    donate: bool
    passes: Passes = dataclasses.field(default_factory=Passes)
    offloads: bool = False
    rolls: bool = True

    def adding(self, passes: tuple[Pass, ...]) -> "Recipe":
        """With more passes after planning."""
        if not passes:
            return self
        own = self.passes
        return dataclasses.replace(
            self, passes=dataclasses.replace(own, after=(*own.after, *passes))
        )

    def with_loops(self, program: Program) -> "Recipe":
        """With unrolled layers rolled, where the planner is to choose passes.

        What is saved is chosen for a loop; and the search's time does not grow with depth.
        """
        before = self.passes.before
        if (
            not self.rolls
            or not self.wishes.options.choose_passes
            or any(isinstance(one, StackLayers) for one in before)
            or any(eqn.primitive.name == "scan" for eqn in ir.equations(program.jaxpr.jaxpr))
        ):
            return self
        passes = dataclasses.replace(self.passes, before=(*before, StackLayers()))
        return dataclasses.replace(self, passes=passes)

    def unrolled(self, shape: MeshShape) -> "Recipe":
        """With layers left as they are, on one mesh, and fewer layouts to compile: to compare."""
        options = dataclasses.replace(
            self.wishes.options, verify=min(_UNROLLED, self.wishes.compiled_layouts(self.target))
        )
        wishes = dataclasses.replace(self.wishes, options=options)
        target = dataclasses.replace(self.target, shapes=(shape,))
        return dataclasses.replace(self, target=target, wishes=wishes, rolls=False)

    def searched(
        self,
        traced: TracedModel,
        opt_state: Any,
        compile_one: Callable[[planning.Candidate], CompileReport],
    ) -> tuple[Plan, "Recipe"]:
        """The plan that is searched for, and the recipe with the passes that belong to it."""

        def optimizer_bytes(layout: Layout) -> int:
            return lowering.optimizer_bytes(layout, opt_state)

        candidate, plan = searched(
            traced.program, self.target, self.wishes, optimizer_bytes, compile_one
        )
        return plan, self.adding(candidate.passes)
