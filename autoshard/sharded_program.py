"""A program's values under a layout: how each is sharded and what of it one device holds."""

import math
from collections.abc import Collection

from autoshard.layouts import AtomParts, Layout, spec_of
from autoshard.named_dims import Analysis, ValueDims
from autoshard.program_flow import ParameterUse
from passes.program import Leaf, Role
from passes.spec import Spec

STAGE = "stage"  # the mesh axis of a pipeline


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


class ShardedProgram:
    """A program under a layout.

    Attributes:
      analysis: of the program.
      layout: the layout; its arrays are the program's inputs.
      shards: sizes of the mesh's parts.
      parts: for each class of dimensions, the parts that shard it.
      stages: of a pipeline: loops over layers are shared by so many devices.
      stays: parts that no operand is gathered over: the batch's, and those of stages, each of which
        has its layers.
    """

    def __init__(self, analysis: Analysis, layout: Layout, stages: int = 1) -> None:
        self.stages = stages
        self.stays = {*layout.data_parts, *(layout.mesh.of(STAGE) if stages > 1 else ())}
        self.analysis = analysis
        self.layout = layout
        self.shards = layout.mesh.refined.by_name
        self.parts: AtomParts = class_parts(analysis, layout)
        self._specs: dict[ValueDims, Spec] = {}

    def repeats(self, index: int) -> float:
        """How often a device executes an operation in a step."""
        op = self.analysis.graph.ops[index]
        shared = self.stages > 1 and self.analysis.graph.in_loop(index)
        return op.repeats / self.stages if shared else op.repeats

    def slices(self, use: ParameterUse) -> int:
        """How many slices of a parameter a device uses, one after the other."""
        return max(1, use.slices // self.stages)

    def degree(self, parts: Collection[str]) -> int:
        """How many shards some parts make."""
        return math.prod(self.shards[p] for p in parts)

    def wide(self, parts: Collection[str]) -> tuple[str, ...]:
        """Those of some parts that have more than one device, in the mesh's order."""
        return tuple(p for p, size in self.shards.items() if p in parts and size > 1)

    def spec(self, value: int) -> Spec:
        """How a value is sharded; what depends on no input is made where it is needed."""
        if not self.analysis.sources[value]:
            return tuple(() for _ in self.analysis.dims[value])
        dims = self.analysis.dims[value]
        if dims not in self._specs:
            self._specs[dims] = spec_of(dims, self.parts, self.shards, self.analysis.sizes)
        return self._specs[dims]

    def spec_parts(self, value: int) -> set[str]:
        """The parts that shard a value."""
        return {p for dim in self.spec(value) for p in dim}

    def itemsize_bytes(self, value: int) -> int:
        """Bytes an element."""
        return Leaf("", Role.CONSTANT, (), self.analysis.graph.values[value].dtype).itemsize_bytes

    def local_size(self, value: int) -> float:
        """Elements on one device."""
        shape = self.analysis.graph.values[value].shape
        return math.prod(shape) / self.degree([p for dim in self.spec(value) for p in dim])

    def local_bytes(self, value: int) -> float:
        """Bytes on one device."""
        return self.local_size(value) * self.itemsize_bytes(value)

    def factor_parts(self, atoms: Collection[int]) -> tuple[str, ...]:
        """The parts that shard a factor made of some atoms."""
        parts: tuple[str, ...] = ()
        for atom in atoms:
            own = self.parts.get(atom, ())
            parts += own
            if self.degree(own) != self.analysis.sizes[atom]:
                break
        return parts
