"""What one stage does in a tick, and all stages side by side.

The stage axis and those that shard the batch's rows are manual (`shard_map`); the mesh's other axes
are left to the partitioner, so that tensor sharding works inside a stage as it does without one.
Arrays that each stage has of its own get the S stages as a leading dimension, those that each of
the D ways of data has of its own, D. So gradients are added up over ways once a step, not in each
tick.

    forward    input from the stage before (or the prologue) -> kept -> layers -> to the next stage
    backward   kept input, gradient from the stage after (or the epilogue) -> to the stage before

What every stage needs to see (the last stage's output, the first stage's input gradient) is added
up over the stages, all others adding zero.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from passes.pipelining.chunk import (
    Sums,
    chunk_backward,
    chunk_forward,
    is_checkpointed,
    layers_backward,
)
from passes.pipelining.schedule import Backward, Schedule
from passes.pipelining.segments import Segments
from passes.pipelining.stage_values import Arrays, StageValues
from passes.pipelining.stages import StageLayout


@dataclasses.dataclass(frozen=True)
class StageSteps:
    """The two steps of a tick.

    Attributes:
      segments: the program.
      layout: which stage holds which layers.
      schedule: which microbatch is whose turn.
      mesh, axis: the mesh and its stage axis.
      batch: the mesh axes that shard rows.
    """

    segments: Segments
    layout: StageLayout
    schedule: Schedule
    mesh: Mesh
    axis: str
    batch: tuple[str, ...] = ()

    @property
    def ways(self) -> int:
        """D, ways of data."""
        return math.prod(self.mesh.shape[axis] for axis in self.batch)

    def forward(
        self, values: StageValues, tick: Any, act: Arrays, fresh: Arrays, kept: Arrays, emits: bool
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """All stages one tick forward.

        Args:
          values: what stages compute with.
          tick: int32[].
          act: [S, D, ...] each, what arrived at each stage.
          fresh: [D, ...] each, what enters the first stage.
          kept: [S, D, slots, ...] each, the stages' inputs that wait for the backward pass; empty
            where they are not kept.
          emits: whether the last stage's output is wanted.

        Returns:
          (act for the next tick, kept, what left the last stage or an empty list).
        """

        def run(values: Any, tick: Any, act: Any, fresh: Any, kept: Any) -> Any:
            held, act, fresh, kept = self._held(values), _own(act, 2), _own(fresh), _own(kept, 2)
            stage = held.stages[0]
            item = self.schedule.forward_item(tick, stage)
            enters = (stage == 0) & (item.chunk == 0)
            x = [jnp.where(enters, new, old) for new, old in zip(fresh, act, strict=True)]
            if kept:
                slot = self.schedule.slot(item, stage)
                kept = [k.at[slot].set(v) for k, v in zip(kept, x, strict=True)]
            y = chunk_forward(self.segments, self.layout, held, item.chunk, x)
            left = [self._from(v, stage == self.layout.stages - 1) for v in y] if emits else []
            act = [self._shift(v, 1) for v in y]
            return _whole(act, 2), _whole(kept, 2), _whole(left)

        mapped = self._mapped(
            run,
            (self._values, PartitionSpec(), self._stage, self._way, self._stage),
            (self._stage, self._stage, self._way),
        )
        result: tuple[list[Any], list[Any], list[Any]] = mapped(
            _tuple(values), tick, act, fresh, kept
        )
        return result

    def backward(
        self,
        values: StageValues,
        tick: Any,
        kept: Arrays,
        cotangents: Arrays,
        last: Arrays,
        sums: Sums,
        kind: Backward,
    ) -> tuple[list[Any], list[Any], Sums, list[Any]]:
        """All stages one tick backward.

        Args:
          values: what stages compute with.
          tick: int32[].
          kept: [S, D, slots, ...] each, inputs, and output gradients that were deferred.
          cotangents: [S, D, ...] each, the gradients that arrived at each stage.
          last: [D, ...] each, the gradient of what left the last stage in this tick.
          sums: gradients so far, of the stacks ([D, S * v * slots, ...] each) and of the constants
            ([S, D, ...] each).
          kind: what to differentiate by.

        Returns:
          (kept, cotangents for the next tick, sums, the gradient of what entered the first stage).
        """

        def run(values: Any, tick: Any, kept: Any, cotangents: Any, last: Any, sums: Any) -> Any:
            kept, dx, (stacks, constants), first = self._backward(
                self._held(values),
                tick,
                _own(kept, 2),
                _own(cotangents, 2),
                _own(last),
                (_own(sums[0]), _own(sums[1], 2)),
                kind,
            )
            sums = _whole(stacks), _whole(constants, 2)
            return _whole(kept, 2), _whole(dx, 2), sums, _whole(first)

        sums_spec = self._stack, self._stage
        mapped = self._mapped(
            run,
            (self._values, PartitionSpec(), self._stage, self._stage, self._way, sums_spec),
            (self._stage, self._stage, sums_spec, self._way),
        )
        result: tuple[list[Any], list[Any], Sums, list[Any]] = mapped(
            _tuple(values), tick, kept, cotangents, last, sums
        )
        return result

    def _backward(
        self,
        held: StageValues,
        tick: Any,
        kept: Any,
        cotangents: Any,
        last: Any,
        sums: Any,
        kind: Backward,
    ) -> Any:
        layout, schedule, stage = self.layout, self.schedule, held.stages[0]
        item = schedule.backward_item(tick, stage)
        leaves = (stage == layout.stages - 1) & (item.chunk == layout.chunks - 1)
        slot = schedule.slot(item, stage)
        x = [k[slot] for k in kept]
        given = [jnp.where(leaves, n, o) for n, o in zip(last, cotangents, strict=True)]
        if schedule.defers:
            kept, given = self._deferred(item, stage, kept, given, kind)
        given = [jnp.where(item.valid, g, jnp.zeros_like(g)) for g in given]
        run = layers_backward if is_checkpointed(self.segments) else chunk_backward
        weights = kind is Backward.EVERYTHING
        dx, sums = run(self.segments, layout, held, item.chunk, x, given, sums, weights)
        first = [self._from(v, stage == 0) for v in dx]
        return kept, [self._shift(v, -1) for v in dx], sums, first

    def _deferred(
        self, item: Any, stage: Any, kept: Any, given: Any, kind: Backward
    ) -> tuple[list[Any], list[Any]]:
        """Keep output gradients of what is deferred, and take them when its turn has come."""
        slot = self.schedule.cotangent_slot(item, stage)
        places = [i for i, flag in enumerate(self.segments.carried_active) if flag]
        kept = list(kept)
        if kind is Backward.EVERYTHING:
            saved = [kept[i][slot] for i in places]
            return kept, [jnp.where(item.late, s, g) for s, g in zip(saved, given, strict=True)]
        for i, g in zip(places, given, strict=True):
            kept[i] = kept[i].at[slot].set(jnp.where(item.valid, g, kept[i][slot]))
        return kept, given

    def _held(self, values: Any) -> StageValues:
        stages, layers, stacks, constants = values
        return StageValues(stages, layers, _own(stacks), _own(constants))

    @property
    def _stage(self) -> PartitionSpec:
        return PartitionSpec(self.axis, self.batch)

    @property
    def _way(self) -> PartitionSpec:
        return PartitionSpec(self.batch)

    @property
    def _stack(self) -> PartitionSpec:
        return PartitionSpec(self.batch, self.axis)

    @property
    def _values(self) -> tuple[PartitionSpec, ...]:
        return PartitionSpec(self.axis), PartitionSpec(self.axis), self._stack, self._way

    def _from(self, x: Any, here: Any) -> Any:
        """One stage's array, on all stages."""
        narrow = x.dtype == jnp.bool_
        shown = jnp.where(here, x, jnp.zeros_like(x)).astype(jnp.int32 if narrow else x.dtype)
        return lax.psum(shown, self.axis).astype(x.dtype)

    def _shift(self, x: Any, by: int) -> Any:
        """What the stage before (`by` 1) or after (-1) has; the ends are joined."""
        stages = self.layout.stages
        return lax.ppermute(x, self.axis, [(i, (i + by) % stages) for i in range(stages)])

    def _mapped(self, function: Callable[..., Any], takes: Any, makes: Any) -> Callable[..., Any]:
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=takes,
            out_specs=makes,
            axis_names={self.axis, *self.batch},
            check_vma=False,
        )


def _tuple(values: StageValues) -> tuple[Any, ...]:
    return values.stages, values.layers, values.stacks, values.constants


def _own(arrays: Arrays, dims: int = 1) -> list[Any]:
    """A device's own of arrays whose first `dims` dimensions are over devices."""
    return [x.reshape(x.shape[dims:]) for x in arrays]


def _whole(arrays: Arrays, dims: int = 1) -> list[Any]:
    """The inverse of `_own`."""
    return [x.reshape((1,) * dims + x.shape) for x in arrays]
