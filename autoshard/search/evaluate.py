"""The estimated cost of a decision, each costed once."""

import dataclasses

from autoshard.compiler_faults import check_grouped_convolutions
from autoshard.cost import Costed, CostReport, estimate
from autoshard.errors import AutoshardError, BatchError, PassError, RuleError
from autoshard.layouts import Layout, lay_out
from autoshard.memory import MemoryEstimate, StateBytes
from autoshard.mesh_shape import MeshShape
from autoshard.rule_sets import RuleSet
from autoshard.rule_sets.assigned import Unit
from autoshard.search.accumulation import repeated, summed_gradient_bytes
from autoshard.search.decision import Decision, MemoryChoice
from autoshard.search.pipelines import pipelined, stage_rules
from autoshard.search.question import Question
from autoshard.search.variants import layout_for
from autoshard.sharded_program import STAGE
from autoshard.step_time import StepTime, StepTimer
from passes.program import Role


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A decision and its cost.

    Attributes:
      decision: the decision; of the user's rule sets, mesh and memory only.
      rules: the rule sets that make its layout.
      layout: None where it is impossible.
      cost: None where it is impossible.
      error: why.
    """

    decision: Decision
    rules: tuple[RuleSet, ...]
    layout: Layout | None = None
    cost: CostReport | None = None
    error: AutoshardError | None = None

    def fits(self, limit_bytes: float | None) -> bool:
        """Whether it is possible within so many bytes a device."""
        if self.cost is None:
            return False
        return limit_bytes is None or self.cost.memory.total_bytes <= limit_bytes

    def rank(self, limit_bytes: float | None) -> tuple[float, float, tuple[int, int, int, str]]:
        """Sorts: what fits by time, then what does not by its memory, then the impossible."""
        if self.cost is None:
            return (float("inf"), 0.0, self.decision.simplicity)
        memory = self.cost.memory.total_bytes
        over = 0.0 if self.fits(limit_bytes) else memory / (limit_bytes or 1)
        # Rounded: layouts that differ by nothing but noise are ranked by how plain they are.
        return (over, float(f"{self.cost.time.total_s:.6g}"), self.decision.simplicity)


class Evaluator:
    """Costs decisions about one question, and remembers them.

    Attributes:
      question: the question.
      known: all that was costed, in order.
    """

    def __init__(self, question: Question, units: dict[str, Unit]) -> None:
        self.question = question
        self.known: dict[Decision, Evaluated] = {}
        self._units = units
        self._timers: dict[MeshShape, StepTimer] = {}

    def of(self, decision: Decision, bound: tuple[RuleSet, ...] = ()) -> Evaluated:
        """Cost a decision; `bound` are rule sets that come before its own."""
        if decision not in self.known:
            staged: tuple[RuleSet, ...] = ()
            if decision.stages > 1:
                staged = (stage_rules(self.question.subject, decision.stages),)
            rules = (*bound, *staged, *decision.rules(self._units))
            self.known[decision] = self.of_rules(decision, rules)
        return self.known[decision]

    def of_rules(self, decision: Decision, rules: tuple[RuleSet, ...]) -> Evaluated:
        """Cost rule sets on the mesh of a decision, under its choice of memory."""
        try:
            layout = lay_out(self.question.subject, decision.shape, rules)
            if self.question.trains:
                check_grouped_convolutions(self.question.subject.analysis, layout)
            cost = self.cost(layout, decision.memory)
        except (RuleError, BatchError, PassError) as error:
            return Evaluated(decision, rules, error=error)
        return Evaluated(decision, rules, layout, cost)

    def timer(self, shape: MeshShape) -> StepTimer:
        """The timer of a mesh."""
        if shape not in self._timers:
            self._timers[shape] = StepTimer(self.question.machine(shape))
        return self._timers[shape]

    def cost(self, layout: Layout, memory: MemoryChoice) -> CostReport:
        """Estimate a layout under a choice of memory.

        Raises:
          PassError: the program cannot be changed so.
          BatchError: a microbatch does not divide by the data axes.
        """
        return self.cost_of(self.question.variants.of(memory), layout, memory)

    def cost_of(self, costed: Costed, layout: Layout, memory: MemoryChoice) -> CostReport:
        """The same of a program that was rewritten already."""
        count, shape = memory.microbatches, layout.mesh.shape
        if count > 1:
            self._check_rows(layout, count)
        state = StateBytes(self.question.optimizer_bytes(layout))
        timer, fitted = self.timer(shape), layout_for(costed, layout)
        stages = shape.by_name.get(STAGE, 1)
        stages = stages if stages in self.question.stage_counts else 1
        one = estimate(costed, fitted, state, timer, stages)
        if stages > 1:
            return pipelined(one, costed, fitted, timer, count)
        return one if count == 1 else _accumulated(one, layout, count)

    def _check_rows(self, layout: Layout, count: int) -> None:
        degree = layout.mesh.refined.shards(layout.data_parts)
        for array in layout.arrays:
            leaf = array.leaf
            if leaf.role is Role.BATCH and leaf.shape and leaf.shape[0] % (degree * count):
                raise BatchError(
                    f"{leaf.shape[0]} rows in {count} microbatches do not divide by {degree} "
                    "shards: use fewer microbatches"
                )


def _accumulated(one: CostReport, layout: Layout, count: int) -> CostReport:
    """The cost of `count` microbatches one after the other, gradients added up in float32."""
    gradients = summed_gradient_bytes(layout)
    held = one.memory
    memory = MemoryEstimate(
        held.parameters_bytes,
        held.optimizer_bytes,
        held.gradients_bytes + gradients,
        held.gathered_bytes,
        held.other_bytes * count,
        held.activations_bytes,
    )
    time = one.time
    collectives = tuple(repeated(c, count) for c in one.collectives)
    return CostReport(
        one.flops * count,
        memory,
        StepTime(
            time.products_s * count,
            time.traffic_s * count,
            time.optimizer_s,
            time.communication_s * count,
            time.exposed_s * count,
        ),
        collectives,
    )
