"""Bytes that one device holds: exact for the training state, estimated for what a step adds."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from autoshard.layouts import ArrayLayout
from autoshard.memory_buffers import Buffer, Kind
from autoshard.memory_tiles import held_bytes
from autoshard.mesh_shape import Spec
from autoshard.program_flow import ParameterUse
from autoshard.sharded_program import ShardedProgram
from passes.program import Leaf, Role


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
      other_bytes: model state and batch (exact).
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


def estimate_memory(
    program: ShardedProgram,
    buffers: Iterable[Buffer],
    state: StateBytes,
    platform: str,
) -> MemoryEstimate:
    """Sum up the state from the layout and find the peak of what the program holds beside it.

    Args:
      program: the gradient program when training, else the forward program, under a layout.
      buffers: of the program; see `find_buffers`.
      state: what the program does not show.
      platform: `tpu` pads arrays to tiles and frees gradients as soon as they are used.
    """
    sizes = _Sizes(program, platform)
    arrays = program.layout.arrays
    parameters = [a for a in arrays if a.leaf.role is Role.PARAMETER]
    others = [a for a in arrays if a.leaf.role in (Role.MODEL_STATE, Role.BATCH)]
    held = _at_peak(sizes, buffers)
    optimizer = state.optimizer_bytes
    if platform == "tpu":
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


class _Sizes:
    """Bytes of values and inputs on one device."""

    def __init__(self, program: ShardedProgram, platform: str) -> None:
        self.program = program
        self.platform = platform
        self._known: dict[object, int] = {}

    def array(self, array: ArrayLayout, spec: Spec, platform: str = "") -> int:
        """Of an input of the program under one of its layouts."""
        return self._held(array.leaf.shape, spec, array.leaf, platform or self.platform)

    def buffer(self, buffer: Buffer) -> int:
        """Of a buffer."""
        value = self.program.analysis.graph.values[buffer.value]
        if buffer.use is not None:
            return self._gathered(buffer.position, buffer.use)
        dims = self.program.analysis.dims[buffer.value]
        key = (dims, value, buffer.kind, buffer.position)
        if key not in self._known:
            leaf = Leaf("", Role.CONSTANT, value.shape, value.dtype)
            self._known[key] = self._held(
                value.shape, self._spec(buffer), self._stored_as(buffer, leaf), self.platform
            )
        return self._known[key]

    def _gathered(self, position: int, use: ParameterUse) -> int:
        array = self.program.layout.arrays[position]
        if array.compute == array.param:
            return 0
        whole = self.array(array, array.compute) // use.slices
        return whole * use.itemsize_bytes // array.leaf.itemsize_bytes

    def _spec(self, buffer: Buffer) -> Spec:
        spec = self.program.spec(buffer.value)
        if buffer.position < 0:
            return spec
        array = self.program.layout.arrays[buffer.position]
        kept = array.param if buffer.kind is Kind.PARAMETER else array.grad
        more = [p for dim in kept for p in dim if not any(p in d for d in spec)]
        if not (spec and more):
            return spec
        # The value may have been transposed or merged: its longest dimension takes these parts.
        shape = self.program.analysis.graph.shape(buffer.value)
        longest = max(range(len(spec)), key=lambda d: shape[d] // self.program.degree(spec[d]))
        return (*spec[:longest], (*spec[longest], *more), *spec[longest + 1 :])

    def _stored_as(self, buffer: Buffer, leaf: Leaf) -> Leaf:
        """A gathered parameter is cast slice by slice: its gradients are stacked after the cast."""
        if buffer.kind is not Kind.GRADIENT_STACK:
            return leaf
        array = self.program.layout.arrays[buffer.position]
        gathered = array.compute != array.param
        return dataclasses.replace(leaf, dtype=array.leaf.dtype) if gathered else leaf

    def _held(self, shape: tuple[int, ...], spec: Spec, leaf: Leaf, platform: str) -> int:
        local = [
            -(-size // self.program.degree(parts)) for size, parts in zip(shape, spec, strict=True)
        ]
        return held_bytes(local, leaf.itemsize_bytes, platform)


def _at_peak(sizes: _Sizes, buffers: Iterable[Buffer]) -> Mapping[Kind, int]:
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
