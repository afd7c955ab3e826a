"""Runs a schedule: ticks with a forward and a backward half, in loops, without conditionals.

    tick = [the stages forward] [epilogue, forward and backward] [the stages backward]
           [prologue of the next microbatch, forward] [prologue backward of the last tick's]

Prologue and epilogue run outside the manual region, on all stages: the partitioner splits them
where their weights are split over the stages (`vocabulary`), and repeats them where not. Gradients
are added up microbatch by microbatch, in float32 at least. In a tick in which a stage has no
microbatch it computes with whatever it has, and its output gradient is zero.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from passes.pipelining.microbatches import Microbatches
from passes.pipelining.schedule import Backward, Phase, Run
from passes.pipelining.stage_steps import StageSteps
from passes.pipelining.stage_values import StageValues, select


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Gradients of the shared values and stacks that have one.

    Attributes:
      shared: [D, ...] each, of the shared values.
      stacks: [D, S * v * slots, ...] each.
    """

    shared: list[Any]
    stacks: list[Any]


def run_schedule(
    steps: StageSteps, values: StageValues, around: Microbatches
) -> tuple[list[Any], Gradients]:
    """(the program's outputs, gradients of output 0), the schedule run to its end."""
    segments, schedule = steps.segments, steps.schedule
    state = _first_state(steps, values, around)
    for phase in schedule.phases:
        state = _run_phase(phase, state, steps, values, around)
    state = _returned(state, steps, around)
    shared = list(state["shared"])
    places = [i for i in segments.shared_constants if segments.shared_active[i]]
    for place, total in zip(places, state["sums"][1], strict=True):
        i = sum(segments.shared_active[:place])
        shared[i] = shared[i] + jnp.sum(total, axis=0)  # over stages
    return around.whole_outputs(state["outputs"]), Gradients(shared, state["sums"][0])


def _first_state(steps: StageSteps, values: StageValues, around: Microbatches) -> dict[str, Any]:
    """Arrays of the right shapes; activations are the first microbatch's, gradients zero."""
    segments, schedule = steps.segments, steps.schedule
    stages, slots = steps.layout.stages, schedule.slots
    fresh = around.enter(around.active, jnp.int32(0))
    active = select(fresh, segments.carried_active)
    outputs = jax.eval_shape(
        lambda carried: around.leave(around.active, jnp.int32(0), carried), fresh
    )
    constants = select(values.constants, segments.constant_active)
    return {
        "tick": jnp.int32(0),
        "act": [jnp.broadcast_to(x, (stages, *x.shape)) for x in fresh],
        "fresh": fresh,
        "kept": [
            jnp.broadcast_to(x[None, :, None], (stages, len(x), slots, *x.shape[1:])) for x in fresh
        ],
        "cotangents": [jnp.zeros((stages, *x.shape), x.dtype) for x in active],
        "returned": [jnp.zeros_like(x) for x in active],
        "sums": (
            [_total(x, x.shape) for x in select(values.stacks, segments.stack_active)],
            [_total(x, (stages, *x.shape)) for x in constants],
        ),
        "shared": [_total(x, x.shape) for x in around.active],
        "outputs": [jnp.zeros(x.shape, x.dtype) for x in outputs],
    }


def _total(x: Any, shape: tuple[int, ...]) -> Any:
    return jnp.zeros(shape, jnp.promote_types(x.dtype, jnp.float32))


def _run_phase(
    phase: Phase, state: Any, steps: StageSteps, values: StageValues, around: Microbatches
) -> Any:
    def once(state: Any, _: None) -> tuple[Any, None]:
        for run in phase.runs:
            if run.ticks:
                tick = functools.partial(_tick, run, steps, values, around)
                state, _ = lax.scan(tick, state, length=run.ticks)
        return state, None

    if phase.repeats == 1:
        return once(state, None)[0]
    return lax.scan(once, state, length=phase.repeats)[0]


def _tick(
    run: Run,
    steps: StageSteps,
    values: StageValues,
    around: Microbatches,
    state: dict[str, Any],
    _: None,
) -> tuple[dict[str, Any], None]:
    segments, schedule = steps.segments, steps.schedule
    state, tick = dict(state), state["tick"]
    last = [jnp.zeros_like(x) for x in select(state["fresh"], segments.carried_active)]
    if run.returns:
        state = _returned(state, steps, around)
    if run.forward:
        state["act"], state["kept"], left = steps.forward(
            values, tick, state["act"], state["fresh"], state["kept"], run.leaves
        )
        if run.leaves:
            outputs, shared, last = around.leave_both(schedule.leaving(tick), left)
            state["shared"] = _added(state["shared"], shared)
            state["outputs"] = around.totals(state["outputs"], outputs)
    if run.backward is not Backward.NOTHING:
        state["kept"], state["cotangents"], state["sums"], state["returned"] = steps.backward(
            values, tick, state["kept"], state["cotangents"], last, state["sums"], run.backward
        )
    if run.enters:
        state["fresh"] = around.enter(around.active, schedule.entering(tick + 1))
    state["tick"] = tick + 1
    return state, None


def _returned(state: dict[str, Any], steps: StageSteps, around: Microbatches) -> dict[str, Any]:
    """The prologue's backward pass, of what left the first stage a tick before."""
    index = steps.schedule.returning(state["tick"] - 1)
    gradients = around.enter_backward(index, state["returned"])
    return {**state, "shared": _added(state["shared"], gradients)}


def _added(totals: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    return [old + x.astype(old.dtype) for old, x in zip(totals, new, strict=True)]
