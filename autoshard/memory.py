"""Bytes that one device holds: exact for the training state, estimated for activations."""

import dataclasses
import math
from collections.abc import Callable, Mapping

from autoshard import graph as graphs
from autoshard.layouts import ArrayLayout, Layout
from autoshard.mesh_shape import Spec
from autoshard.named_dims import Analysis
from autoshard.scanned_stacks import scanned_atoms
from passes.program import Role


@dataclasses.dataclass(frozen=True)
class StateBytes:
    """Bytes a device of what the forward program does not show.

    Attributes:
      optimizer_bytes: optimizer state.
    """

    optimizer_bytes: int


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device at the peak of a step.

    Attributes:
      parameters_bytes: parameters as stored (exact).
      optimizer_bytes: optimizer state (exact).
      gradients_bytes: gradients as kept (exact).
      gathered_bytes: parameters gathered for use, at most the largest one when they are regathered;
        of a stack that is scanned over, one slice.
      other_bytes: model state and batch (exact).
      activations_bytes: what is alive at the peak of the gradient program (estimated, no fusion of
        reductions, elementwise results that are used at once counted as fused).
    """

    parameters_bytes: int
    optimizer_bytes: int
    gradients_bytes: int
    gathered_bytes: int
    other_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        """Sum of all parts."""
        return sum(dataclasses.astuple(self))


def local_size(array: ArrayLayout, spec: Spec, shards: Mapping[str, int]) -> int:
    """Bytes of an array's shard under a spec whose sizes divide."""
    return array.leaf.size_bytes // math.prod(shards[p] for dim in spec for p in dim)


# An elementwise result whose last use is this close is taken to be fused into its consumers.
_FUSION_REACH = 6
_MATERIALISED = frozenset(
    """dot_general conv_general_dilated gather scatter scatter-add reduce_sum reduce_max sort
    cumsum top_k concatenate dynamic_update_slice random_bits reduce_window_max
    select_and_scatter_add scan_ys""".split()
)
_FREE = frozenset(
    """reshape transpose broadcast_in_dim iota squeeze expand_dims slice stop_gradient name alias
    tie copy convert_element_type""".split()
)


def estimate_memory(
    analysis: Analysis,
    layout: Layout,
    state: StateBytes,
    trains: bool,
    local_bytes: Callable[[int], float],
) -> MemoryEstimate:
    """Sum up the state from the layout and walk the program for the peak of activations."""
    shards = layout.mesh.refined.by_name
    parameters = [a for a in layout.arrays if a.leaf.role is Role.PARAMETER]
    others = [a for a in layout.arrays if a.leaf.role in (Role.MODEL_STATE, Role.BATCH)]
    gathered = _gathered_sizes(analysis, layout, shards)
    return MemoryEstimate(
        parameters_bytes=sum(local_size(a, a.param, shards) for a in parameters),
        optimizer_bytes=state.optimizer_bytes,
        gradients_bytes=sum(local_size(a, a.grad, shards) for a in parameters) if trains else 0,
        gathered_bytes=2 * max(gathered, default=0),  # the one in use and the one being fetched
        other_bytes=sum(local_size(a, a.param, shards) for a in others),
        activations_bytes=int(_peak_bytes(analysis, local_bytes)),
    )


def _gathered_sizes(analysis: Analysis, layout: Layout, shards: Mapping[str, int]) -> list[int]:
    """Bytes of each parameter that is gathered for use; of a scanned stack, those of one slice."""
    scanned = scanned_atoms(analysis)
    sizes = []
    for position, array in enumerate(layout.arrays):
        if array.leaf.role is not Role.PARAMETER or array.compute == array.param:
            continue
        atoms = {a for dim in analysis.leaf_dims(position) for a in dim} & scanned
        slices = math.prod(analysis.sizes[a] for a in atoms)
        sizes.append(local_size(array, array.compute, shards) // slices)
    return sizes


def _peak_bytes(analysis: Analysis, local_bytes: Callable[[int], float]) -> float:
    """Peak of live intermediate values in program order.

    A free operation (a view) keeps its operand alive; inputs and outputs are counted elsewhere.
    """
    graph = analysis.graph
    owner = list(range(len(graph.values)))  # the materialised value that a view shows
    last_use: dict[int, int] = {}
    made: dict[int, int] = {}
    for index, op in enumerate(graph.ops):
        for value in op.inputs:
            last_use[owner[value]] = index
        if op.primitive in _FREE and op.inputs and op.outputs:
            owner[op.outputs[0]] = owner[op.inputs[0]]
        elif op.primitive != graphs.TIE:
            made.update(dict.fromkeys(op.outputs, index))
    outside = {owner[v] for v in (*graph.inputs, *graph.outputs)}
    changes: dict[int, float] = {}
    for value, index in made.items():
        end = last_use.get(value, index)
        fused = graph.ops[index].primitive not in _MATERIALISED and end - index <= _FUSION_REACH
        if value in outside or fused or end == index:
            continue
        size = local_bytes(value)
        changes[index] = changes.get(index, 0.0) + size
        changes[end] = changes.get(end, 0.0) - size
    live = peak = 0.0
    for index in sorted(changes):
        live += changes[index]
        peak = max(peak, live)
    return peak
