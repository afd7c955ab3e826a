"""Bytes that values and inputs of a program take on one device under a layout."""

import dataclasses

from autoshard.graph import SCAN_YS
from autoshard.layouts import ArrayLayout
from autoshard.looked_up_rows import move_of
from autoshard.memory_buffers import Buffer, Kind
from autoshard.memory_tiles import held_bytes
from autoshard.program_flow import ParameterUse
from autoshard.sharded_program import ShardedProgram
from passes.program import Leaf, Role
from passes.spec import Spec


class Sizes:
    """Bytes of values and inputs on one device."""

    def __init__(self, program: ShardedProgram, platform: str) -> None:
        self.program = program
        self.platform = platform
        self._known: dict[object, int] = {}
        ops = program.analysis.graph.ops
        # What a pipeline's stage stacks of its own layers.
        self._stacks = (
            {op.outputs[0] for op in ops if op.primitive == SCAN_YS}
            if program.stages > 1
            else set[int]()
        )

    def array(self, array: ArrayLayout, spec: Spec, platform: str = "") -> int:
        """Of an input of the program under one of its layouts."""
        return self._held(array.leaf.shape, spec, array.leaf, platform or self.platform)

    def buffer(self, buffer: Buffer) -> int:
        """Of a buffer."""
        value = self.program.analysis.graph.values[buffer.value]
        if buffer.use is not None:
            return self._gathered(buffer.position, buffer.use)
        dims = self.program.analysis.dims[buffer.value]
        dtype = buffer.dtype or value.dtype
        key = (dims, value, dtype, buffer.kind, buffer.position, buffer.value in self._stacks)
        if key not in self._known:
            leaf = Leaf("", Role.CONSTANT, value.shape, dtype)
            held = self._held(
                value.shape, self._spec(buffer), self._stored_as(buffer, leaf), self.platform
            )
            shared = buffer.kind is Kind.ACTIVATION and buffer.value in self._stacks
            self._known[key] = held // self.program.stages if shared else held
        return self._known[key]

    def _gathered(self, position: int, use: ParameterUse) -> int:
        array = self.program.layout.arrays[position]
        if array.compute == array.param or move_of(self.program, position, use) is not None:
            return 0
        whole = self.array(array, array.compute) // self.program.slices(use)
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
