"""Bytes that one device holds: exact for the training state, estimated for what a step adds."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from autoshard.memory_buffers import Buffer, Kind
from autoshard.memory_sizes import Sizes
from passes.program import Role

_OTHERS = (Role.MODEL_STATE, Role.CACHE, Role.BATCH)


@dataclasses.dataclass(frozen=True)
class StateBytes:
    """Bytes a device of what the forward program does not show.

    Attributes:
      optimizer_bytes: optimizer state, without padding.
    """

    optimizer_bytes: int


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device at the peak of a step; the total is their sum.

    Attributes:
      parameters_bytes: parameters as stored (exact).
      optimizer_bytes: optimizer state (exact but for padding, taken to be that of the parameters).
      gradients_bytes: gradients that are held at the peak.
      gathered_bytes: parameters that are gathered for use at the peak; of stacks that are scanned
        over, slices.
      other_bytes: model state, cache and batch (exact).
      activations_bytes: what else is held at the peak of the gradient program: what the backward
        pass needs, parameters cast for use, temporaries.
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


def estimate_memory(sizes: Sizes, buffers: Iterable[Buffer], state: StateBytes) -> MemoryEstimate:
    """Sum up the state from the layout and find the peak of what the program holds beside it.

    Args:
      sizes: of the values of the gradient program when training, else of the forward program.
      buffers: of the program; see `find_buffers`.
      state: what the program does not show.
    """
    arrays = sizes.program.layout.arrays
    parameters = [a for a in arrays if a.leaf.role is Role.PARAMETER]
    others = [a for a in arrays if a.leaf.role in _OTHERS]
    held = _at_peak(sizes, buffers)
    optimizer = state.optimizer_bytes
    if sizes.platform == "tpu":
        exact = sum(sizes.array(a, a.opt, "cpu") for a in parameters)
        optimizer = optimizer * sum(sizes.array(a, a.opt) for a in parameters) // max(1, exact)
    return MemoryEstimate(
        parameters_bytes=sum(sizes.array(a, a.param) for a in parameters),
        optimizer_bytes=optimizer,
        gradients_bytes=held[Kind.GRADIENT] + held[Kind.GRADIENT_STACK],
        gathered_bytes=held[Kind.GATHERED],
        other_bytes=sum(sizes.array(a, a.param) for a in others),
        activations_bytes=held[Kind.ACTIVATION] + held[Kind.PARAMETER],
    )


def _at_peak(sizes: Sizes, buffers: Iterable[Buffer]) -> Mapping[Kind, int]:
    """What is held when it is most, by kind."""
    changes: dict[int, list[tuple[Kind, int]]] = collections.defaultdict(list)
    for buffer in buffers:
        size = sizes.buffer(buffer)
        changes[buffer.begin].append((buffer.kind, size))
        changes[buffer.end + 1].append((buffer.kind, -size))
        if buffer.kind is Kind.GRADIENT:  # before it is summed and scattered
            whole = sizes.buffer(dataclasses.replace(buffer, position=-1))
            changes[buffer.begin].append((buffer.kind, whole - size))
            changes[buffer.begin + 1].append((buffer.kind, size - whole))
    live = dict.fromkeys(Kind, 0)
    peak, most = dict(live), 0
    for index in sorted(changes):
        for kind, size in changes[index]:
            live[kind] += size
        if sum(live.values()) > most:
            peak, most = dict(live), sum(live.values())
    return peak
