"""The program around the layers, of one microbatch: prologue and epilogue, forward and backward.

Both run outside the stages' manual region, on all stages: the partitioner splits them where their
weights are split over the stages (`vocabulary`), and repeats them where not. The axes that shard
rows are manual: each way of data computes with its own rows, and has a gradient of its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from passes.pipelining.segments import Segments
from passes.pipelining.stage_values import Arrays, merge, select


@dataclasses.dataclass(frozen=True)
class Microbatches:
    """The prologue and epilogue.

    Attributes:
      segments: the program, of one microbatch's rows on one way.
      rows: [D, M, rows, ...] each, the microbatches' inputs.
      shared: [D, ...] each, the shared values.
      mesh: the mesh.
      batch: its axes that shard rows.
      ways: D, their product.
    """

    segments: Segments
    rows: list[Any]
    shared: list[Any]
    mesh: Mesh
    batch: tuple[str, ...]
    ways: int

    @property
    def active(self) -> list[Any]:
        """The shared values that have a gradient."""
        return select(self.shared, self.segments.shared_active)

    def enter(self, active: Arrays, index: Any) -> list[Any]:
        """[D, ...] each: what enters the first layer. Of the microbatch nearest to `index`."""

        def run(inputs: Any, shared: Any) -> list[Any]:
            return self.segments.enter(shared, inputs)

        return list(self._over_ways(run, index, self._merged(active)))

    def leave(self, active: Arrays, index: Any, carried: Arrays) -> list[Any]:
        """[D, ...] each: the outputs."""

        def run(inputs: Any, shared: Any, carried: Any) -> list[Any]:
            return list(self.segments.leave(shared, inputs, carried))

        return list(self._over_ways(run, index, self._merged(active), list(carried)))

    def enter_backward(self, index: Any, gradient: Arrays) -> list[Any]:
        """Gradients of the shared values from that of what entered the first layer."""
        flags = self.segments.shared_active

        def run(inputs: Any, shared: Any, gradient: Any) -> list[Any]:
            inert = select(shared, flags, False)

            def entered(active: Any) -> list[Any]:
                carried = self.segments.enter(merge(active, inert, flags), inputs)
                return select(carried, self.segments.carried_active)

            _, pull = jax.vjp(entered, select(shared, flags))
            return list(pull(gradient)[0])

        return list(self._over_ways(run, index, self.shared, list(gradient)))

    def leave_both(self, index: Any, carried: Arrays) -> tuple[Any, Any, Any]:
        """(outputs, gradients of the shared values, of what left the last layer)."""
        flags, floating = self.segments.shared_active, self.segments.carried_active

        def run(inputs: Any, shared: Any, carried: Any) -> Any:
            fixed = select(shared, flags, False), select(carried, floating, False)

            def loss(active: Any, moving: Any) -> tuple[Any, list[Any]]:
                outputs = self.segments.leave(
                    merge(active, fixed[0], flags), inputs, merge(moving, fixed[1], floating)
                )
                return outputs[0], list(outputs)

            both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
            (_, outputs), gradients = both(select(shared, flags), select(carried, floating))
            return outputs, *gradients

        result: tuple[Any, Any, Any] = self._over_ways(run, index, self.shared, list(carried))
        return result

    def totals(self, old: Arrays, new: Arrays) -> list[Any]:
        """Outputs of all microbatches so far."""
        added = self.segments.split.added
        return [x + y if add else y for x, y, add in zip(old, new, added, strict=True)]

    def whole_outputs(self, outputs: Arrays) -> list[Any]:
        """The program's outputs, of those of each way."""
        added = self.segments.split.added
        return [jnp.sum(x, 0) if add else x[0] for x, add in zip(outputs, added, strict=True)]

    def _merged(self, active: Sequence[Any]) -> list[Any]:
        flags = self.segments.shared_active
        return merge(active, select(self.shared, flags, False), flags)

    def _over_ways(self, run: Callable[..., Any], index: Any, *values: list[Any]) -> Any:
        """`run` (the microbatch's inputs, values) on each way; all but `index` are [D, ...]."""
        last = self.segments.split.count // self.ways - 1

        def one(index: Any, way: Any, rows: Any, *values: Any) -> Any:
            own = jax.tree.map(lambda x: x[0], values)
            taken = [lax.dynamic_index_in_dim(x[0], index, 0, keepdims=False) for x in rows]
            result = run([way[0] * (last + 1) + index, *taken], *own)
            return jax.tree.map(lambda x: x[None], result)

        index = jnp.clip(index, 0, last)
        numbers = jnp.arange(self.ways, dtype=jnp.int32)
        if not self.batch:
            return one(index, numbers, self.rows, *values)
        way = PartitionSpec(self.batch)
        mapped = jax.shard_map(
            one,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), way, way, *(way for _ in values)),
            out_specs=way,
            axis_names=set(self.batch),
            check_vma=False,
        )
        return mapped(index, numbers, self.rows, *values)
