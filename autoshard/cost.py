"""What a layout costs, estimated from the gradient program: operations, bytes moved, bytes held.

Communication is that of the predicted collectives. Its purpose is to rank layouts before anything
is compiled; a plan says "estimated" wherever these figures appear.
"""

import dataclasses
import functools

from autoshard.layouts import Layout
from autoshard.memory import MemoryEstimate, StateBytes, estimate_memory
from autoshard.memory_buffers import Buffer, find_buffers, fusion_habits_of
from autoshard.memory_sizes import Sizes
from autoshard.named_dims import Analysis
from autoshard.predicted_collectives import (
    PredictedCollective,
    Purpose,
    habits_of,
    predict_collectives,
)
from autoshard.product_flops import product_flops
from autoshard.program_flow import ProgramFlow, program_flow
from autoshard.sharded_program import ShardedProgram
from autoshard.step_time import StepTime, StepTimer, is_product, step_time


@dataclasses.dataclass(frozen=True)
class CostReport:
    """Estimates for one device and one step.

    Attributes:
      flops: multiply-adds counted twice, of matrix products and convolutions, forward and backward.
      memory: bytes held at the peak.
      time: seconds of the step, by what takes them.
      collectives: what the devices send each other.
    """

    flops: float
    memory: MemoryEstimate
    time: StepTime
    collectives: tuple[PredictedCollective, ...]

    @property
    def score_s(self) -> float:
        """What layouts are ranked by: the estimated step."""
        return self.time.total_s

    @property
    def tensor_bytes(self) -> float:
        """Sent by each device for partial sums and gathers inside the program."""
        return _sent(self.collectives, Purpose.ACTIVATIONS)

    @property
    def gradient_bytes(self) -> float:
        """Sent to sum gradients."""
        return _sent(self.collectives, Purpose.GRADIENTS)

    @property
    def gather_bytes(self) -> float:
        """Sent to gather parameters that are stored or updated sharded."""
        return _sent(self.collectives, Purpose.PARAMETERS)

    @property
    def moved_bytes(self) -> float:
        """All bytes that a device sends in a step, those for the loss and other scalars too."""
        return sum(c.sent_bytes for c in self.collectives)


def _sent(collectives: tuple[PredictedCollective, ...], purpose: Purpose) -> float:
    return sum(c.sent_bytes for c in collectives if c.purpose is purpose)


def _flops(program: ShardedProgram, index: int) -> float:
    """Of one operation on one device, all repeats."""
    if not is_product(program, index):
        return 0.0
    total = product_flops(program.analysis, index)
    bound = program.analysis.factor_dims(index)
    parts = {p for atoms in bound for p in program.factor_parts(atoms)}
    return total / program.degree(parts) * program.repeats(index)


@dataclasses.dataclass(frozen=True)
class Costed:
    """A program whose cost is wanted under many layouts.

    Attributes:
      analysis: of the gradient program when training, else of the forward program.
      trains: whether gradients are computed and parameters updated.
      platform: `cpu`, `tpu` or `gpu`.
    """

    analysis: Analysis
    trains: bool
    platform: str = "cpu"

    @functools.cached_property
    def flow(self) -> ProgramFlow:
        """Where its values come from and go to."""
        return program_flow(self.analysis)

    @functools.cached_property
    def buffers(self) -> tuple[Buffer, ...]:
        """What it holds in memory."""
        return find_buffers(self.analysis, self.flow, fusion_habits_of(self.platform))


def estimate(
    costed: Costed, layout: Layout, state: StateBytes, timer: StepTimer, stages: int = 1
) -> CostReport:
    """Estimate a layout's cost.

    Args:
      costed: the program; its inputs are those of `layout.arrays`.
      layout: the layout.
      state: optimizer bytes a device, which the program does not show.
      timer: of the mesh of the layout on its machine.
      stages: of a pipeline, which share loops over layers.
    """
    analysis = costed.analysis
    program = ShardedProgram(analysis, layout, stages)
    flops = sum(_flops(program, index) for index in range(len(analysis.graph.ops)))
    collectives = predict_collectives(
        analysis, layout, costed.trains, costed.flow, habits_of(costed.platform), stages
    )
    sizes = Sizes(program, costed.platform)
    memory = estimate_memory(sizes, costed.buffers, state)
    time = step_time(program, sizes, costed.buffers, memory, collectives, timer, costed.trains)
    return CostReport(flops, memory, time, collectives)
