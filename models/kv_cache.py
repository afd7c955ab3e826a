"""The cache of a decoder: keys and values of the positions that were read, and attention over them.

Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need", 2019, arXiv:1911.02150,
section 2.3. A layer reads the cache and returns the key and value of its new position; the model
writes those of all layers at once. So a loop over layers copies no cache, and a donated cache is
changed in place.

    cache ------+--> layer 1 --> key, value --+
                +--> layer 2 --> key, value --+--> write at position --> cache
                +--> ...                      |

Shapes: B batch, S positions that are read, T positions that fit in, N key and value heads, G query
heads to a key head, K width of one head, D width, L layers.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

# Of one layer: "key" and "value", both [B, T, N, K], or [B, S, N, K] where they are new.
LayerCache = dict[str, jax.Array]

# Of all layers: one `LayerCache` with a leading dimension L where layers are scanned over, else a
# tuple of L of them.
Cache = Any


class CachedConfig(Protocol):
    """What the size of a cache follows from; the fields are those of a family's configuration."""

    @property
    def max_seq_len(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def scan_layers(self) -> bool: ...
    @property
    def dtype(self) -> str | None: ...


def cache_spec(config: CachedConfig, batch_size: int, capacity: int, num_heads: int) -> Cache:
    """Returns a cache of `ShapeDtypeStruct`s in the compute dtype.

    Args:
        config: of the model.
        batch_size: B.
        capacity: T.
        num_heads: N.

    Raises:
        ValueError: `batch_size` is not positive, or `capacity` not in 1..max_seq_len.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    if not 0 < capacity <= config.max_seq_len:
        raise ValueError(
            f"capacity={capacity} is outside 1..max_seq_len={config.max_seq_len}: ask for a "
            f"smaller cache, or build the model with max_seq_len={capacity}."
        )
    layers = (config.num_layers,) if config.scan_layers else ()
    leaf = jax.ShapeDtypeStruct(
        (*layers, batch_size, capacity, num_heads, config.head_dim),
        jnp.dtype(config.dtype or jnp.float32),
    )
    if config.scan_layers:
        return {"key": leaf, "value": leaf}
    return tuple({"key": leaf, "value": leaf} for _ in range(config.num_layers))


def empty(spec: Cache) -> Cache:
    """Returns a cache of zeros of the shapes of `spec`."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec)


def write(cache: Cache, new: Cache, position: jax.Array | int) -> Cache:
    """Returns the cache with `new`, of S positions, in place of those from `position` on.

    Raises:
        ValueError: S is more than fits in.
    """

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        axis = whole.ndim - 3
        if part.shape[axis] > whole.shape[axis]:
            raise ValueError(
                f"{part.shape[axis]} tokens do not fit in a cache of capacity "
                f"{whole.shape[axis]}: make it larger, or shorten the prompt."
            )
        return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), position, axis)

    return jax.tree.map(put, cache, new)


def cached_attention(
    query: jax.Array, new: LayerCache, past: LayerCache, position: jax.Array
) -> jax.Array:
    """Attention of one token to those before it and to itself.

    The token itself is not yet in the cache: its score joins the softmax at the end, as parts do in
    Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867,
    section 3. So no dimension of T + 1 arises, which no mesh axis would divide.

    Args:
        query: [B, N, G, K].
        new: key and value of the token, both [B, 1, N, K].
        past: those of T positions, [B, T, N, K]; positions from `position` on are not seen.
        position: int32[], the token's.

    Returns:
        [B, N, G, K].
    """
    scale = query.shape[-1] ** -0.5
    scores = [
        scale
        * jnp.einsum("bngk,btnk->bngt", query, part["key"], preferred_element_type=jnp.float32)
        for part in (past, new)
    ]
    seen = (jnp.arange(past["key"].shape[1]) < position)[None, None, None]
    before = jnp.where(seen, scores[0], jnp.finfo(jnp.float32).min)
    most = jnp.maximum(before.max(axis=-1, keepdims=True), scores[1])
    before, own = jnp.exp(before - most), jnp.exp(scores[1] - most)
    total = before.sum(axis=-1, keepdims=True) + own
    mixed = [
        jnp.einsum("bngt,btnk->bngk", (part / total).astype(value.dtype), value)
        for part, value in ((before, past["value"]), (own, new["value"]))
    ]
    return mixed[0] + mixed[1]
