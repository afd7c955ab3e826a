"""What a layout costs, estimated from the gradient program: operations, bytes moved, bytes held.

Communication is that of the predicted collectives. Its purpose is to rank layouts before anything
is compiled; a plan says "estimated" wherever these figures appear.
"""

import dataclasses
import math

from autoshard.factors import FactorRole
from autoshard.layouts import Layout
from autoshard.memory import MemoryEstimate, StateBytes, estimate_memory
from autoshard.memory_buffers import Buffer, find_buffers
from autoshard.named_dims import Analysis
from autoshard.predicted_collectives import (
    PredictedCollective,
    Purpose,
    habits_of,
    predict_collectives,
)
from autoshard.program_flow import ProgramFlow, program_flow
from autoshard.sharded_program import ShardedProgram


@dataclasses.dataclass(frozen=True)
class ReferenceMachine:
    """The chip whose ratios weigh operations, bytes held and bytes moved against each other.

    Defaults are TPU v5p's (Google Cloud documentation, "TPU v5p"): 459 TFLOP/s in bfloat16, 2,765
    GB/s of HBM, 4,800 Gbit/s of interconnect a chip over six links, two of them to an axis.
    """

    flops_per_s: float = 459e12
    memory_bytes_per_s: float = 2765e9
    link_bytes_per_s: float = 2 * 4800e9 / 8 / 6


@dataclasses.dataclass(frozen=True)
class CostReport:
    """Estimates for one device and one step.

    Attributes:
      flops: multiply-adds counted twice, of matrix products and convolutions, forward and backward.
      memory: bytes held at the peak.
      score_s: the sum of compute, communication and memory-traffic times on `ReferenceMachine`,
        nothing overlapped: a number to rank by, not a prediction.
      collectives: what the devices send each other.
    """

    flops: float
    memory: MemoryEstimate
    score_s: float
    collectives: tuple[PredictedCollective, ...]

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
    op, rule = program.analysis.graph.ops[index], program.analysis.rules[index]
    if not _is_product(op.primitive) or not any(program.analysis.sources[v] for v in op.inputs):
        return 0.0
    total = 2.0 * math.prod(f.size for f in rule.factors if f.role is not FactorRole.INDEXED)
    bound = program.analysis.factor_dims(index)
    parts = {p for atoms in bound for p in program.factor_parts(atoms)}
    return total / program.degree(parts) * op.repeats


def _is_product(primitive: str) -> bool:
    return primitive in ("dot_general", "conv_general_dilated")


def estimate(
    analysis: Analysis,
    layout: Layout,
    state: StateBytes,
    trains: bool,
    *,
    machine: ReferenceMachine | None = None,
    flow: ProgramFlow | None = None,
    buffers: tuple[Buffer, ...] | None = None,
    platform: str = "cpu",
) -> CostReport:
    """Estimate a layout's cost.

    Args:
      analysis: of the gradient program when training, else of the forward program; its inputs are
        those of `layout.arrays`.
      layout: the layout.
      state: optimizer bytes a device, which the program does not show.
      trains: whether gradients are computed and parameters updated.
      machine: the weights of the score.
      flow: `program_flow(analysis)`, if it is at hand.
      buffers: `find_buffers(analysis, flow)`, if it is at hand.
      platform: `cpu`, `tpu` or `cuda`.
    """
    machine = machine or ReferenceMachine()
    program = ShardedProgram(analysis, layout)
    flops = sum(_flops(program, index) for index in range(len(analysis.graph.ops)))
    flow = flow or program_flow(analysis)
    collectives = predict_collectives(analysis, layout, trains, flow, habits_of(platform))
    if buffers is None:
        buffers = find_buffers(analysis, flow, makes_again=platform != "cpu")
    memory = estimate_memory(program, buffers, state, platform)
    score = (
        flops / machine.flops_per_s
        + sum(c.sent_bytes for c in collectives) / machine.link_bytes_per_s
        + memory.total_bytes / machine.memory_bytes_per_s
    )
    return CostReport(flops, memory, score, collectives)
