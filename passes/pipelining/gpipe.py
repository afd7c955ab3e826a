"""GPipe: all microbatches forward, then all backward, by autodiff of the loop over ticks.

    stage 0   F0 F1 F2 F3 .  .  .  B3 B2 B1 B0        S = 3, M = 4
    stage 1   .  F0 F1 F2 F3 .  B3 B2 B1 B0 .
    stage 2   .  .  F0 F1 F2 F3/B3 B2 B1 B0 .

A tick's forward pass is run again in its backward pass, so that M+S-1 stage inputs are all that is
kept. ("GPipe", Huang et al., 2019, section 2.3.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from passes.pipelining.run_schedule import Gradients, Microbatches
from passes.pipelining.schedule import Backward, Phase, Run, Schedule
from passes.pipelining.stage_steps import StageSteps
from passes.pipelining.stage_values import StageValues, merge, select


def gpipe(stages: int, microbatches: int) -> Schedule:
    """The schedule; its backward ticks are those of the forward ones in reverse."""
    return Schedule(
        "gpipe",
        stages,
        microbatches,
        1,
        (
            Phase((Run(stages - 1, enters=True, forward=True),)),
            Phase((Run(microbatches, enters=True, forward=True, leaves=True),)),
            Phase((Run(stages + microbatches - 1, backward=Backward.EVERYTHING, returns=True),)),
        ),
    )


def run_gpipe(
    steps: StageSteps, values: StageValues, around: Microbatches
) -> tuple[list[Any], Gradients]:
    """(the program's outputs, gradients of output 0)."""
    segments = steps.segments
    constants = segments.shared_constants

    def loss(stacks: Any, shared: Any) -> tuple[Any, list[Any]]:
        everything = merge(
            shared, select(around.shared, segments.shared_active, False), segments.shared_active
        )
        given = StageValues(
            values.stages,
            values.layers,
            merge(
                stacks, select(values.stacks, segments.stack_active, False), segments.stack_active
            ),
            [everything[i] for i in constants],
        )
        outputs = around.whole_outputs(_forward(steps, given, around, shared))
        return outputs[0], outputs

    both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    stacks = select(values.stacks, segments.stack_active)
    (_, outputs), (d_stacks, d_shared) = both(stacks, around.active)
    return outputs, Gradients(d_shared, d_stacks)


def _forward(
    steps: StageSteps, values: StageValues, around: Microbatches, shared: Any
) -> list[Any]:
    """The outputs, all ticks forward."""
    schedule, added = steps.schedule, steps.segments.split.added

    def tick(act: Any, index: Any, emits: bool) -> tuple[Any, list[Any]]:
        fresh = around.enter(shared, schedule.entering(index))
        act, _, left = steps.forward(values, index, act, fresh, [], emits)
        return act, around.leave(shared, schedule.leaving(index), left) if emits else []

    def warm(act: Any, index: Any) -> tuple[Any, None]:
        return tick(act, index, False)[0], None

    def steady(carry: Any, index: Any) -> tuple[Any, None]:
        act, totals = carry
        act, outputs = tick(act, index, True)
        return (
            act,
            [o + n if a else n for o, n, a in zip(totals, outputs, added, strict=True)],
        ), None

    first = around.enter(shared, jnp.int32(0))
    act: Any = [jnp.broadcast_to(x, (steps.layout.stages, *x.shape)) for x in first]
    ticks = jnp.arange(schedule.stages - 1 + schedule.microbatches, dtype=jnp.int32)
    if schedule.stages > 1:
        act, _ = lax.scan(
            jax.checkpoint(warm, prevent_cse=False), act, ticks[: schedule.stages - 1]
        )
    like = jax.eval_shape(lambda act: tick(act, ticks[0], True)[1], act)
    totals = [jnp.zeros(x.shape, x.dtype) for x in like]
    (_, outputs), _ = lax.scan(
        jax.checkpoint(steady, prevent_cse=False), (act, totals), ticks[schedule.stages - 1 :]
    )
    return outputs
