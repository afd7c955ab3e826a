"""Each device an early and a late chunk, so that causal work is alike on all of them.

    chunks of the sequence   0 1 | 2 3 | 4 5 | 6 7      a device's, contiguous
    zig-zag                  0 7 | 1 6 | 2 5 | 3 4      device d holds chunks d and 2n - 1 - d

Of the chunks that meet in a step of the ring, exactly two pairs are visible on every device: late
queries see early keys, and of the other two pairs one is wholly visible and one wholly hidden
(after Brandon et al., "Striped Attention: Faster Ring Attention for Causal Transformers", 2023,
which stripes tokens instead).

The exchange is two permutes of half a block each: all even chunks, then all odd ones, since both
go to as many different devices as there are. It happens at the boundary of attention, where nothing
else has to know of it; the backward pass keeps what was exchanged.
"""

from typing import Any

import jax
import jax.numpy as jnp


def chunk_at(owner: Any, slot: Any, size: int) -> Any:
    """The chunk that device `owner` of `size` holds first (slot 0) or second (slot 1)."""
    return jnp.where(slot == 0, owner, 2 * size - 1 - owner)


def _holder(chunk: int, size: int) -> int:
    return chunk if chunk < size else 2 * size - 1 - chunk


def _way(parity: int, size: int) -> list[tuple[int, int]]:
    return [(device, _holder(2 * device + parity, size)) for device in range(size)]


def to_zigzag(x: Any, dim: int, axes: tuple[str, ...], size: int) -> Any:
    """From a device's two neighbouring chunks along `dim` to its early and late one.

    Args:
      x: local array.
      dim: of positions.
      axes: mesh axes over which positions are spread.
      size: devices along them.
    """
    first, second = jnp.split(x, 2, axis=dim)
    even = jax.lax.ppermute(first, axes, _way(0, size))
    odd = jax.lax.ppermute(second, axes, _way(1, size))
    return jnp.concatenate(_in_order(even, odd, axes), axis=dim)


def from_zigzag(x: Any, dim: int, axes: tuple[str, ...], size: int) -> Any:
    """The way back."""
    early, late = jnp.split(x, 2, axis=dim)
    even, odd = _in_order(early, late, axes)
    back = [[(target, source) for source, target in _way(parity, size)] for parity in (0, 1)]
    first, second = (
        jax.lax.ppermute(part, axes, way) for part, way in zip((even, odd), back, strict=True)
    )
    return jnp.concatenate([first, second], axis=dim)


def _in_order(one: Any, other: Any, axes: tuple[str, ...]) -> tuple[Any, Any]:
    """(one, other) on devices of even index, swapped on odd ones: there the even chunk is late."""
    is_even = jax.lax.axis_index(axes) % 2 == 0
    return jnp.where(is_even, one, other), jnp.where(is_even, other, one)
