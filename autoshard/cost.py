"""What a layout costs, estimated from the gradient program: operations, bytes moved, bytes held.

Communication is counted where a sharded factor is contracted, picked from or blocked, over the
whole gradient program, and where ZeRO gathers and scatters. Its purpose is to rank layouts before
anything is compiled; a plan says "estimated" wherever these figures appear.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from autoshard import graph as graphs
from autoshard.factors import FactorRole
from autoshard.layouts import AtomParts, Layout, spec_of
from autoshard.memory import MemoryEstimate, StateBytes, estimate_memory
from autoshard.mesh_shape import Spec
from autoshard.named_dims import Analysis
from passes.program import Leaf, Role


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
      tensor_bytes: sent by each device for partial sums and gathers inside the program.
      gradient_bytes: sent to sum gradients over the data axes.
      gather_bytes: sent to gather parameters that are stored sharded.
      memory: bytes held at the peak.
      score_s: the sum of compute, communication and memory-traffic times on `ReferenceMachine`,
        nothing overlapped: a number to rank by, not a prediction.
    """

    flops: float
    tensor_bytes: float
    gradient_bytes: float
    gather_bytes: float
    memory: MemoryEstimate
    score_s: float

    @property
    def moved_bytes(self) -> float:
        """All bytes that a device sends in a step."""
        return self.tensor_bytes + self.gradient_bytes + self.gather_bytes


def class_parts(analysis: Analysis, layout: Layout) -> dict[int, tuple[str, ...]]:
    """The sharding that a layout's compute specs give each class of a (gradient) analysis."""
    shards = layout.mesh.refined.by_name
    found: dict[int, tuple[str, ...]] = {}
    for position, array in enumerate(layout.arrays):
        for dim, parts in zip(analysis.leaf_dims(position), array.compute, strict=True):
            rest = list(parts)
            for atom in dim:
                taken: list[str] = []
                while (
                    rest
                    and analysis.sizes[atom]
                    % math.prod([shards[p] for p in taken] + [shards[rest[0]]])
                    == 0
                ):
                    taken.append(rest.pop(0))
                if taken:
                    found.setdefault(atom, tuple(taken))
                if not rest:
                    break
    return found


def ring_all_reduce(size_bytes: float, devices: int) -> float:
    """Bytes that each device of a ring sends to all-reduce `size_bytes`: 2 (n-1)/n of it."""
    return 2 * size_bytes * (devices - 1) / devices


def ring_all_gather(size_bytes: float, devices: int) -> float:
    """Bytes that each device of a ring sends to gather (or reduce-scatter) `size_bytes` in all."""
    return size_bytes * (devices - 1) / devices


class _Counter:
    def __init__(self, analysis: Analysis, layout: Layout) -> None:
        self.analysis = analysis
        self.shards = layout.mesh.refined.by_name
        self.parts: AtomParts = class_parts(analysis, layout)
        self.data_parts = frozenset(layout.data_parts)

    def spec(self, value: int) -> Spec:
        if not self.analysis.sources[value]:
            return tuple(() for _ in self.analysis.dims[value])
        return spec_of(self.analysis.dims[value], self.parts, self.shards, self.analysis.sizes)

    def local_bytes(self, value: int) -> float:
        info = self.analysis.graph.values[value]
        itemsize = Leaf("", Role.CONSTANT, (), info.dtype).itemsize_bytes
        degree = math.prod(self.shards[p] for dim in self.spec(value) for p in dim)
        return math.prod(info.shape) * itemsize / degree

    def factor_parts(self, atoms: Sequence[int]) -> tuple[str, ...]:
        parts: tuple[str, ...] = ()
        for atom in atoms:
            own = self.parts.get(atom, ())
            parts += own
            if math.prod(self.shards[p] for p in own) != self.analysis.sizes[atom]:
                break
        return parts

    def operation(self, index: int) -> tuple[float, float]:
        """(flops, bytes sent) of one operation on one device, all repeats."""
        op, rule = self.analysis.graph.ops[index], self.analysis.rules[index]
        if op.primitive == graphs.TIE or not any(self.analysis.sources[v] for v in op.inputs):
            return 0.0, 0.0
        bound = self.analysis.factor_dims(index)
        flops = self._flops(index, bound) if _is_product(op.primitive) else 0.0
        kept = {p for v in op.outputs for dim in self.spec(v) for p in dim}
        sent = 0.0
        for factor, info in enumerate(rule.factors):
            parts = [p for p in self.factor_parts(bound[factor]) if p not in self.data_parts]
            if info.role is FactorRole.BLOCKED:
                kept.difference_update(parts)
                continue
            kept.update(parts)
            summed = info.role is FactorRole.CONTRACTED or (
                info.role is FactorRole.INDEXED and op.primitive == "gather"
            )
            degree = math.prod(self.shards[p] for p in parts)
            if summed and degree > 1:
                sent += sum(ring_all_reduce(self.local_bytes(v), degree) for v in op.outputs)
        sent += sum(self._gathered_bytes(value, kept) for value in set(op.inputs))
        return flops * op.repeats, sent * op.repeats

    def _gathered_bytes(self, value: int, kept: set[str]) -> float:
        """Bytes to gather an operand over the parts of its layout that the operation cannot keep.

        They are those of blocked dimensions, and those that no dimension of a result can carry:
        behind a major atom that is not sharded, or across a reshape without a nested refinement.
        """
        parts = {p for dim in self.spec(value) for p in dim} - kept - self.data_parts
        degree = math.prod(self.shards[p] for p in parts)
        return ring_all_gather(self.local_bytes(value) * degree, degree)

    def _flops(self, index: int, bound: Sequence[Sequence[int]]) -> float:
        rule = self.analysis.rules[index]
        total = 2.0 * math.prod(f.size for f in rule.factors if f.role is not FactorRole.INDEXED)
        parts = {p for atoms in bound for p in self.factor_parts(atoms)}
        return total / math.prod(self.shards[p] for p in parts)


def _is_product(primitive: str) -> bool:
    return primitive in ("dot_general", "conv_general_dilated")


def _zero_bytes(layout: Layout, shards: Mapping[str, int], trains: bool) -> tuple[float, float]:
    """(bytes to sum gradients, bytes to gather parameters) over the data axes, per device."""
    gradients = gathers = 0.0
    for array in layout.arrays:
        if array.leaf.role is not Role.PARAMETER:
            continue
        used = array.leaf.size_bytes / _degree(array.compute, shards)
        data = math.prod(shards[p] for p in layout.data_parts)
        scattered = _degree(array.grad, shards) // _degree(array.compute, shards)
        stored = _degree(array.param, shards) // _degree(array.compute, shards)
        updated = _degree(array.opt, shards) // _degree(array.param, shards)
        if trains:
            gradients += (ring_all_gather if scattered > 1 else ring_all_reduce)(used, data)
            gathers += ring_all_gather(used, updated)
        gathers += (2 if trains else 1) * ring_all_gather(used, stored)
    return gradients, gathers


def _degree(spec: Spec, shards: Mapping[str, int]) -> int:
    return math.prod(shards[p] for dim in spec for p in dim)


def estimate(
    analysis: Analysis,
    layout: Layout,
    state: StateBytes,
    trains: bool,
    machine: ReferenceMachine | None = None,
) -> CostReport:
    """Estimate a layout's cost.

    Args:
      analysis: of the gradient program when training, else of the forward program; its inputs are
        those of `layout.arrays`.
      layout: the layout.
      state: optimizer bytes a device, which the program does not show.
      trains: whether gradients are computed and parameters updated.
      machine: the weights of the score.
    """
    machine = machine or ReferenceMachine()
    counter = _Counter(analysis, layout)
    flops = tensor = 0.0
    for index in range(len(analysis.graph.ops)):
        more_flops, more_bytes = counter.operation(index)
        flops += more_flops
        tensor += more_bytes
    gradients, gathers = _zero_bytes(layout, counter.shards, trains)
    memory = estimate_memory(analysis, layout, state, trains, counter.local_bytes)
    score = (
        flops / machine.flops_per_s
        + (tensor + gradients + gathers) / machine.link_bytes_per_s
        + memory.total_bytes / machine.memory_bytes_per_s
    )
    return CostReport(flops, tensor, gradients, gathers, memory, score)
