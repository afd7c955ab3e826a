"""Each device an early and a late chunk, so that causal work is alike on all of them.

    chunks of the sequence   0 1 | 2 3 | 4 5 | 6 7      a device's, contiguous
    zig-zag                  0 7 | 2 5 | 3 4 | 1 6      early and late ones that add up to 2n - 1

Of the chunks that meet in a step of the ring, exactly two pairs are visible on every device: late
queries see early keys, and of the other two pairs one is wholly visible and one wholly hidden
(after Brandon et al., "Striped Attention: Faster Ring Attention for Causal Transformers", 2023,
which stripes tokens instead).

Every device keeps its first chunk, 2d, and swaps its second one with its mirror image n - 1 - d,
which has chunk 2n - 1 - 2d: one permute of half a block there and one back, at the boundary of
attention, so that nothing else has to know of it. The backward pass keeps what was exchanged.
"""

from typing import Any

import jax
import jax.numpy as jnp


def chunk_at(owner: Any, slot: Any, size: int) -> Any:
    """The chunk that device `owner` of `size` holds first (slot 0) or second (slot 1)."""
    early = early_chunk(owner, size)
    return jnp.where(slot == 0, early, 2 * size - 1 - early)


def early_chunk(owner: Any, size: int) -> Any:
    """The earlier one of a device's chunks."""
    return jnp.minimum(2 * owner, 2 * size - 1 - 2 * owner)


def mirror(size: int) -> list[tuple[int, int]]:
    """The permute: each device to its mirror image."""
    return [(device, size - 1 - device) for device in range(size)]


def to_zigzag(x: Any, dim: int, axes: tuple[str, ...], size: int) -> Any:
    """From a device's two neighbouring chunks along `dim` to its early and late one.

    Args:
      x: local array.
      dim: of positions.
      axes: mesh axes over which positions are spread.
      size: devices along them.
    """
    kept, sent = jnp.split(x, 2, axis=dim)
    came = jax.lax.ppermute(sent, axes, mirror(size))
    return jnp.concatenate(_in_order(kept, came, axes, size), axis=dim)


def from_zigzag(x: Any, dim: int, axes: tuple[str, ...], size: int) -> Any:
    """The way back."""
    early, late = jnp.split(x, 2, axis=dim)
    kept, sent = _in_order(early, late, axes, size)
    return jnp.concatenate([kept, jax.lax.ppermute(sent, axes, mirror(size))], axis=dim)


def _in_order(one: Any, other: Any, axes: tuple[str, ...], size: int) -> tuple[Any, Any]:
    """(one, other) on devices whose first chunk is the early one, swapped on the others."""
    is_early = 4 * jax.lax.axis_index(axes) < 2 * size - 1
    return jnp.where(is_early, one, other), jnp.where(is_early, other, one)
