"""The gradient rule of a pipelined program."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from passes import ir
from passes.pipelining.gpipe import run_gpipe
from passes.pipelining.microbatches import Microbatches
from passes.pipelining.run_schedule import Gradients, run_schedule
from passes.pipelining.stage_steps import StageSteps
from passes.pipelining.stage_values import StageValues, merge, select
from passes.pipelining.vocabulary import Vocabulary
from passes.program import Gather


@dataclasses.dataclass(frozen=True)
class Pipelined:
    """Computes outputs and gradients stage by stage; see `passes.program.GradientRule`.

    Attributes:
      steps: the program's pieces, who holds them, and the schedule.
      vocabulary: which shared values are split over the stages, outside the layers.
    """

    steps: StageSteps
    vocabulary: Vocabulary

    def __call__(
        self, inputs: Sequence[Any], wrt: Sequence[int], gathers: Sequence[Gather | None]
    ) -> tuple[list[Any], list[Any]]:
        """(outputs, gradients of output 0); parameters are gathered once a step."""
        segments = self.steps.segments
        split = segments.split
        once = ir.as_function(split.once)(*inputs)

        def prepare(parameters: Sequence[Any]) -> tuple[Any, Any]:
            given = list(inputs)
            for i, x in zip(wrt, parameters, strict=True):
                given[i] = x
            used = [
                x if gather is None else gather(x) for x, gather in zip(given, gathers, strict=True)
            ]
            whole = [x for x, is_cut in zip(used, split.cut, strict=True) if not is_cut]
            values = ir.as_function(segments.shared)(*whole, *once)
            count = len(segments.shared_specs)
            shared = [self._everywhere(x) for x in self.vocabulary.split(values[:count])]
            stacks = [self._placed(x) for x in values[count:]]
            flags = segments.shared_active, segments.stack_active
            return (
                (select(shared, flags[0]), select(stacks, flags[1])),
                (select(shared, flags[0], False), select(stacks, flags[1], False)),
            )

        (shared, stacks), pull, inert = jax.vjp(prepare, [inputs[i] for i in wrt], has_aux=True)
        outputs, gradients = self._run(
            merge(shared, inert[0], segments.shared_active),
            merge(stacks, inert[1], segments.stack_active),
            inputs,
        )
        cotangents = (
            [g.astype(x.dtype) for g, x in zip(gradients.shared, shared, strict=True)],
            [g.astype(x.dtype) for g, x in zip(gradients.stacks, stacks, strict=True)],
        )
        return outputs, list(pull(cotangents)[0])

    def _run(
        self, shared: list[Any], stacks: list[Any], inputs: Sequence[Any]
    ) -> tuple[list[Any], Gradients]:
        steps, layout = self.steps, self.steps.layout
        split, ways = steps.segments.split, self.steps.ways
        rows = [
            split.parts(x).reshape(ways, -1, split.size // split.count, *x.shape[1:])
            for x, is_cut in zip(inputs, split.cut, strict=True)
            if is_cut
        ]
        values = StageValues(
            stages=jnp.arange(layout.stages, dtype=jnp.int32),
            layers=jnp.asarray(layout.layers, jnp.int32),
            stacks=stacks,
            constants=[shared[i] for i in steps.segments.shared_constants],
        )
        rows = [self._laid_out(x, steps.batch) for x in rows]
        around = Microbatches(steps.segments, rows, shared, steps.mesh, steps.batch, ways)
        run = run_gpipe if steps.schedule.name == "gpipe" else run_schedule
        return run(steps, values, around)

    def _everywhere(self, x: Any) -> Any:
        """[...] -> [D, ...]: each way of data has its own, and so its own gradient."""
        return self._laid_out(jnp.broadcast_to(x, (self.steps.ways, *x.shape)), self.steps.batch)

    def _placed(self, stack: Any) -> Any:
        """[L, ...] -> [D, S * v * slots, ...], each stage's layers on the stage."""
        layout = self.steps.layout
        if not layout.is_stored:
            if layout.is_even:
                grouped = stack.reshape(
                    layout.chunks, layout.stages, layout.slots, *stack.shape[1:]
                )
                stack = jnp.swapaxes(grouped, 0, 1).reshape(stack.shape)
            else:
                stack = jnp.take(stack, jnp.maximum(jnp.asarray(layout.layers), 0), axis=0)
        everywhere = jnp.broadcast_to(stack, (self.steps.ways, *stack.shape))
        return self._laid_out(everywhere, self.steps.batch, self.steps.axis)

    def _laid_out(self, x: Any, *axes: Any) -> Any:
        """The array with its first dimensions over mesh axes."""
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(axes))
        sharding = NamedSharding(self.steps.mesh, PartitionSpec(*axes, *others))
        return jax.lax.with_sharding_constraint(x, sharding)
