"""The layers of one chunk of one stage, forward and backward.

Backward begins with the chunk's input. Where the loop's body is a `jax.checkpoint` already, layers
go backward one by one from their inputs, which are computed again, and each one's weight gradient
is added where it belongs:

    x -> layer 0 -> x1 -> layer 1 -> ... (inputs alone are kept)
    layer n-1, ..., layer 0:  forward again, backward, sums[layer] += gradient

Else what the layers compute is kept for the whole chunk, as the body's author wanted, and its
weight gradients are added at the end.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from passes import ir
from passes.pipelining.segments import Segments
from passes.pipelining.stage_values import Arrays, StageValues, merge, select
from passes.pipelining.stages import StageLayout

# (gradients of the stage's stacks [v * slots, ...], of the constants [1, ...]) so far.
Sums = tuple[Arrays, Arrays]


def is_checkpointed(segments: Segments) -> bool:
    """Whether layers compute again in their backward pass what they compute."""
    jaxpr, _ = ir.closed(segments.body)
    return any(eqn.primitive.name in ir.CHECKPOINTS for eqn in jaxpr.eqns)


def chunk_forward(
    segments: Segments, layout: StageLayout, values: StageValues, chunk: Any, x: Arrays
) -> list[Any]:
    """What leaves a chunk.

    Args:
      segments: the program.
      layout: where its layers are.
      values: the stage's own.
      chunk: int32[], of 0..v-1.
      x: what enters it.
    """
    after, _ = _forward(segments, layout, values, chunk, x, keeps=False)
    return after


def _forward(
    segments: Segments,
    layout: StageLayout,
    values: StageValues,
    chunk: Any,
    x: Arrays,
    keeps: bool,
) -> tuple[list[Any], list[Any]]:
    """(what leaves the chunk, the layers' inputs [slots, ...] each if they are to be kept)."""

    def one(x: list[Any], place: Any) -> tuple[list[Any], list[Any]]:
        layer, slices = _slot(values, place)
        y = _layer(segments, layout, layer, slices, values.constants, x)
        return y, x if keeps else []

    return lax.scan(one, list(x), _places(layout, chunk))


def layers_backward(
    segments: Segments,
    layout: StageLayout,
    values: StageValues,
    chunk: Any,
    x: Arrays,
    given: Arrays,
    sums: Sums,
    weights: bool,
) -> tuple[list[Any], Sums]:
    """(the gradient of what enters a chunk, sums), layer by layer.

    Args:
      segments, layout, values, chunk, x: as for `chunk_forward`.
      given: the gradient of what leaves it.
      sums: so far.
      weights: whether to differentiate by weights, too.
    """
    _, inputs = _forward(segments, layout, values, chunk, x, keeps=True)

    def one(carry: Any, kept: Any) -> tuple[Any, None]:
        given, sums = carry
        place, x = kept
        layer, slices = _slot(values, place)

        def run(slices: Arrays, constants: Arrays, x: Arrays) -> list[Any]:
            return _layer(segments, layout, layer, slices, constants, x)

        dx, d_slices, d_constants = _pulled(segments, run, slices, values, x, given, weights)
        if weights:
            stacks = [
                lax.dynamic_update_index_in_dim(s, _at(s, place) + d.astype(s.dtype), place, 0)
                for s, d in zip(sums[0], d_slices, strict=True)
            ]
            sums = stacks, _added(sums[1], d_constants)
        return (dx, sums), None

    places = _places(layout, chunk)
    (dx, sums), _ = lax.scan(one, (list(given), sums), (places, inputs), reverse=True)
    return dx, sums


def chunk_backward(
    segments: Segments,
    layout: StageLayout,
    values: StageValues,
    chunk: Any,
    x: Arrays,
    given: Arrays,
    sums: Sums,
    weights: bool,
) -> tuple[list[Any], Sums]:
    """As `layers_backward`, by autodiff of the chunk as a whole."""
    start, slots = chunk * layout.slots, layout.slots
    own = [lax.dynamic_slice_in_dim(x, start, slots, 0) for x in (values.layers, *values.stacks)]

    def run(stacks: Arrays, constants: Arrays, x: Arrays) -> list[Any]:
        def one(x: list[Any], slot: Any) -> tuple[list[Any], None]:
            return _layer(segments, layout, slot[0], slot[1], constants, x), None

        return lax.scan(one, list(x), (own[0], list(stacks)))[0]

    dx, d_stacks, d_constants = _pulled(segments, run, own[1:], values, x, given, weights)
    if not weights:
        return dx, sums
    stacks = [
        lax.dynamic_update_slice_in_dim(
            s, lax.dynamic_slice_in_dim(s, start, slots, 0) + d.astype(s.dtype), start, 0
        )
        for s, d in zip(sums[0], d_stacks, strict=True)
    ]
    return dx, (stacks, _added(sums[1], d_constants))


def _pulled(
    segments: Segments,
    run: Callable[[Arrays, Arrays, Arrays], list[Any]],
    stacks: Arrays,
    values: StageValues,
    x: Arrays,
    given: Arrays,
    weights: bool,
) -> tuple[list[Any], list[Any], list[Any]]:
    """Gradients of `run` by (what enters, stacks, constants); the last two only if wanted."""
    flags = segments.carried_active, segments.stack_active, segments.constant_active
    operands = x, stacks, values.constants
    inert = [select(v, f, False) for v, f in zip(operands, flags, strict=True)]
    active = [select(v, f) for v, f in zip(operands, flags, strict=True)]

    def of_active(x: Arrays, stacks: Arrays, constants: Arrays) -> list[Any]:
        merged = [
            merge(a, i, f) for a, i, f in zip((x, stacks, constants), inert, flags, strict=True)
        ]
        return select(run(merged[1], merged[2], merged[0]), flags[0])

    if weights:
        _, pull = jax.vjp(of_active, *active)
        dx, d_stacks, d_constants = pull(list(given))
        return dx, d_stacks, d_constants
    _, pull = jax.vjp(lambda x: of_active(x, active[1], active[2]), active[0])
    return pull(list(given))[0], [], []


def _layer(
    segments: Segments,
    layout: StageLayout,
    layer: Any,
    slices: Arrays,
    constants: Arrays,
    x: Arrays,
) -> list[Any]:
    """A layer; a slot without one passes its input on."""
    y = segments.layer(constants, x, slices, jnp.maximum(layer, 0))
    if layout.is_even:
        return y
    return [jnp.where(layer >= 0, new, old) for new, old in zip(y, x, strict=True)]


def _places(layout: StageLayout, chunk: Any) -> Any:
    """int32[slots], where a chunk's slots are among the stage's."""
    return jnp.arange(layout.slots, dtype=jnp.int32) + chunk * layout.slots


def _slot(values: StageValues, place: Any) -> tuple[Any, list[Any]]:
    """(the layer in a slot of the stage, its slices of the stacks)."""
    return _at(values.layers, place), [_at(stack, place) for stack in values.stacks]


def _at(x: Any, place: Any) -> Any:
    return lax.dynamic_index_in_dim(x, place, 0, keepdims=False)


def _added(totals: Arrays, new: Arrays) -> list[Any]:
    return [old + x.astype(old.dtype) for old, x in zip(totals, new, strict=True)]
