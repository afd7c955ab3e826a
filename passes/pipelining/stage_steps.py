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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from passes.pipelining.schedule import Backward, Schedule
from passes.pipelining.segments import Segments
from passes.pipelining.stages import StageLayout

Arrays = Sequence[Any]


def select(values: Arrays, flags: Sequence[bool], wanted: bool = True) -> list[Any]:
    """The values whose flag is `wanted`."""
    return [x for x, flag in zip(values, flags, strict=True) if flag is wanted]


def merge(active: Arrays, inert: Arrays, flags: Sequence[bool]) -> list[Any]:
    """The inverse of `select`."""
    one, other = iter(active), iter(inert)
    return [next(one) if flag else next(other) for flag in flags]


@dataclasses.dataclass(frozen=True)
class StageValues:
    """What stages compute with; constant over a step.

    Attributes:
      stages: int32[S], 0..S-1.
      layers: int32[S * v * slots], the layer in each slot, -1 where there is none.
      stacks: [S * v * slots, ...] each, in the stages' order.
      constants: shared values that layers read.
    """

    stages: Any
    layers: Any
    stacks: list[Any]
    constants: list[Any]


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

    @property
    def constant_active(self) -> tuple[bool, ...]:
        """Which of the body's shared constants have a gradient."""
        active = self.segments.shared_active
        return tuple(active[i] for i in self.segments.shared_constants)

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

        def run(stages: Any, layers: Any, stacks: Any, constants: Any, tick: Any, act: Any,
                fresh: Any, kept: Any) -> Any:  # fmt: skip
            stage = stages[0]
            item = self.schedule.forward_item(tick, stage)
            enters = (stage == 0) & (item.chunk == 0)
            x = [jnp.where(enters, new, old[0]) for new, old in zip(fresh, act, strict=True)]
            if kept:
                slot = self.schedule.slot(item, stage)
                kept = [k.at[0, slot].set(v) for k, v in zip(kept, x, strict=True)]
            chunk = [self._chunk(stack, item.chunk) for stack in stacks]
            y = self._layers(self._chunk(layers, item.chunk), chunk, constants, x)
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
        sums: tuple[Arrays, Arrays],
        kind: Backward,
    ) -> tuple[list[Any], list[Any], tuple[list[Any], list[Any]], list[Any]]:
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
            return self._backward(
                (stages[0], layers, stacks, constants), tick, kept, cotangents, last, sums, kind
            )

        return self._mapped(
            run,
            (owned, owned, owned, whole, whole, owned, owned, whole, owned),
            (owned, owned, owned, whole),
        )(values.stages, values.layers, values.stacks, values.constants, tick, kept, cotangents,
          last, sums)  # fmt: skip

    def _backward(
        self, values: Any, tick: Any, kept: Any, cotangents: Any, last: Any, sums: Any,
        kind: Backward,
    ) -> Any:  # fmt: skip
        stage, layers, stacks, constants = values
        segments, schedule = self.segments, self.schedule
        flags = segments.carried_active
        item = schedule.backward_item(tick, stage)
        leaves = (stage == self.layout.stages - 1) & (item.chunk == self.layout.chunks - 1)
        slot = schedule.slot(item, stage)
        x = [k[0, slot] for k in kept]
        given = [jnp.where(leaves, n, o[0]) for n, o in zip(last, cotangents, strict=True)]
        if schedule.defers:
            kept, given = self._deferred(item, stage, kept, given, kind)
        given = [jnp.where(item.valid, g, jnp.zeros_like(g)) for g in given]

        chunk = [self._chunk(stack, item.chunk) for stack in stacks]
        fixed = select(x, flags, False), select(chunk, segments.stack_active, False)
        still = select(constants, self.constant_active, False)
        ids = self._chunk(layers, item.chunk)

        def stage_of(x: Any, stacks: Any, constants: Any) -> list[Any]:
            everything = merge(x, fixed[0], flags)
            stacks = merge(stacks, fixed[1], segments.stack_active)
            constants = merge(constants, still, self.constant_active)
            return select(self._layers(ids, stacks, constants, everything), flags)

        weights = select(chunk, segments.stack_active), select(constants, self.constant_active)
        inputs = select(x, flags)
        if kind is Backward.INPUTS:
            _, pull = jax.vjp(lambda x: stage_of(x, *weights), inputs)
            (dx,) = pull(given)
        else:
            _, pull = jax.vjp(stage_of, inputs, *weights)
            dx, d_stacks, d_constants = pull(given)
            added = [self._add(s, d, item.chunk) for s, d in zip(sums[0], d_stacks, strict=True)]
            sums = added, [s + d.astype(s.dtype) for s, d in zip(sums[1], d_constants, strict=True)]
        first = [self._from(v, stage == 0) for v in dx]
        return kept, [self._shift(v, -1)[None] for v in dx], tuple(sums), first

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

    def _layers(self, ids: Any, stacks: Arrays, constants: Arrays, x: Arrays) -> list[Any]:
        """The layers of one chunk, one after the other."""

        def one(x: Any, given: Any) -> tuple[list[Any], None]:
            index, slices = given
            y = self.segments.layer(constants, x, slices, jnp.maximum(index, 0))
            if not self.layout.is_even:
                y = [jnp.where(index >= 0, new, old) for new, old in zip(y, x, strict=True)]
            return y, None

        return lax.scan(one, list(x), (ids, list(stacks)))[0]

    def _chunk(self, x: Any, chunk: Any) -> Any:
        """[v * slots, ...] -> [slots, ...]."""
        if self.layout.chunks == 1:
            return x
        slots = self.layout.slots
        return lax.dynamic_slice_in_dim(x, chunk * slots, slots, 0)

    def _add(self, total: Any, x: Any, chunk: Any) -> Any:
        """Add [slots, ...] to a chunk of [v * slots, ...]."""
        x = x.astype(total.dtype)
        if self.layout.chunks == 1:
            return total + x
        start = chunk * self.layout.slots
        old = lax.dynamic_slice_in_dim(total, start, self.layout.slots, 0)
        return lax.dynamic_update_slice_in_dim(total, old + x, start, 0)

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
