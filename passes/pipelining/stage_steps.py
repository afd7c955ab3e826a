"""What one stage does in a tick, and all stages side by side.

The stage axis alone is manual (`shard_map`); the mesh's other axes are left to the partitioner, so
that data, fsdp and tensor sharding work inside a stage as they do without one. Arrays that each
stage has of its own get the stages as a leading dimension.

    forward    input from the stage before (or the prologue) -> kept -> layers -> to the next stage
    backward   kept input, gradient from the stage after (or the epilogue) -> to the stage before

What every stage needs to see (the last stage's output, the first stage's input gradient) is added
up over the stages, all others adding zero.
"""

import dataclasses
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
    """

    segments: Segments
    layout: StageLayout
    schedule: Schedule
    mesh: Mesh
    axis: str

    def forward(
        self, values: StageValues, tick: Any, act: Arrays, fresh: Arrays, kept: Arrays, emits: bool
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """All stages one tick forward.

        Args:
          values: what stages compute with.
          tick: int32[].
          act: [S, ...] each, what arrived at each stage.
          fresh: what enters the first stage.
          kept: [S, slots, ...] each, the stages' inputs that wait for the backward pass; empty
            where they are not kept.
          emits: whether the last stage's output is wanted.

        Returns:
          (act for the next tick, kept, what left the last stage or an empty list).
        """
        owned, whole = PartitionSpec(self.axis), PartitionSpec()

        def run(
            stages: Any, layers: Any, stacks: Any, constants: Any, tick: Any, act: Any, fresh: Any,
            kept: Any,
        ) -> Any:  # fmt: skip
            held = StageValues(stages, layers, stacks, constants)
            stage = stages[0]
            item = self.schedule.forward_item(tick, stage)
            enters = (stage == 0) & (item.chunk == 0)
            x = [jnp.where(enters, new, old[0]) for new, old in zip(fresh, act, strict=True)]
            if kept:
                slot = self.schedule.slot(item, stage)
                kept = [k.at[0, slot].set(v) for k, v in zip(kept, x, strict=True)]
            y = chunk_forward(self.segments, self.layout, held, item.chunk, x)
            left = [self._from(v, stage == self.layout.stages - 1) for v in y] if emits else []
            return [self._shift(v, 1)[None] for v in y], kept, left

        return self._mapped(
            run,
            (owned, owned, owned, whole, whole, owned, whole, owned),
            (owned, owned, whole),
        )(values.stages, values.layers, values.stacks, values.constants, tick, act, fresh, kept)

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
          kept: [S, slots, ...] each, inputs, and output gradients that were deferred.
          cotangents: [S, ...] each, the gradients that arrived at each stage.
          last: the gradient of what left the last stage in this tick.
          sums: gradients so far, of the stacks ([S * v * slots, ...] each) and of the constants
            ([S, ...] each).
          kind: what to differentiate by.

        Returns:
          (kept, cotangents for the next tick, sums, the gradient of what entered the first stage).
        """
        owned, whole = PartitionSpec(self.axis), PartitionSpec()

        def run(stages: Any, layers: Any, stacks: Any, constants: Any, tick: Any, kept: Any,
                cotangents: Any, last: Any, sums: Any) -> Any:  # fmt: skip
            held = StageValues(stages, layers, stacks, constants)
            return self._backward(held, tick, kept, cotangents, last, sums, kind)

        return self._mapped(
            run,
            (owned, owned, owned, whole, whole, owned, owned, whole, owned),
            (owned, owned, owned, whole),
        )(values.stages, values.layers, values.stacks, values.constants, tick, kept, cotangents,
          last, sums)  # fmt: skip

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
        x = [k[0, slot] for k in kept]
        given = [jnp.where(leaves, n, o[0]) for n, o in zip(last, cotangents, strict=True)]
        if schedule.defers:
            kept, given = self._deferred(item, stage, kept, given, kind)
        given = [jnp.where(item.valid, g, jnp.zeros_like(g)) for g in given]
        run = layers_backward if is_checkpointed(self.segments) else chunk_backward
        weights = kind is Backward.EVERYTHING
        dx, sums = run(self.segments, layout, held, item.chunk, x, given, sums, weights)
        first = [self._from(v, stage == 0) for v in dx]
        return kept, [self._shift(v, -1)[None] for v in dx], sums, first

    def _deferred(
        self, item: Any, stage: Any, kept: Any, given: Any, kind: Backward
    ) -> tuple[list[Any], list[Any]]:
        """Keep output gradients of what is deferred, and take them when its turn has come."""
        slot = self.schedule.cotangent_slot(item, stage)
        places = [i for i, flag in enumerate(self.segments.carried_active) if flag]
        kept = list(kept)
        if kind is Backward.EVERYTHING:
            saved = [kept[i][0, slot] for i in places]
            return kept, [jnp.where(item.late, s, g) for s, g in zip(saved, given, strict=True)]
        for i, g in zip(places, given, strict=True):
            old = kept[i][0, slot]
            kept[i] = kept[i].at[0, slot].set(jnp.where(item.valid, g, old))
        return kept, given

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
            axis_names={self.axis},
            check_vma=False,
        )
