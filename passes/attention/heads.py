"""Attention with heads cut instead of positions: all positions, a share of the heads.

Two ways there. `exchange`: an all-to-all of queries, keys, values and results inside attention
(Jacobs et al., "DeepSpeed Ulysses: System Optimizations for Enabling Training of Extreme Long
Sequence Transformer Models", 2023). Without it attention's operands are constrained to be cut along
heads, and the partitioner brings them there; where projections are cut along heads already (tensor
parallelism), nothing moves.

Keys and values that are shared along the dimension that is cut are gathered whole.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from passes.attention.arrays import Arrays, leaves_along
from passes.attention.block import Saved, finished
from passes.attention.parallel import Forward, hidden_rows
from passes.attention.pattern import Attention, HeadDim
from passes.attention.ring import Lane, Ring
from passes.attention.steps import Along
from passes.attention.tiles import Tiles


@dataclasses.dataclass(frozen=True)
class HeadsMethod:
    """Heads over mesh axes.

    Attributes:
      tiles: the attention, and how it is computed.
      axes: mesh axes, major to minor.
      size: devices along them.
      head: the dimension that is cut.
      exchange: whether arrays come cut along positions and are exchanged inside.
    """

    tiles: Tiles
    axes: tuple[str, ...]
    size: int
    head: HeadDim
    exchange: bool

    @property
    def attention(self) -> Attention:
        """See `parallel.Method`."""
        return self.tiles.attention

    def given(self) -> Arrays:
        """See `parallel.Method`."""
        kept = self.kept()
        if not self.exchange:
            return kept
        a = self.attention
        return dataclasses.replace(
            kept,
            queries=(a.query_dim, *kept.queries[1:]),
            keys=(a.key_dim, a.value_dim, *kept.keys[2:]),
        )

    def kept(self) -> Arrays:
        """See `parallel.Method`."""
        a, h = self.attention, self.head
        if self.exchange:
            query, key, value = a.query_dim, a.key_dim, a.value_dim
            own: Any = (query, key, value)
        else:
            own = (h.query, h.key, h.value)
        return Arrays(
            (own[0], *self._leaves(Along.QUERY)),
            (own[1], own[2], *self._leaves(Along.KEY)),
            self._leaves(Along.BOTH),
            self._leaves(Along.NEITHER),
        )

    def rows(self) -> tuple[int | None, int | None]:
        """See `parallel.Method`."""
        a = self.attention
        return (a.result_dim if self.exchange else self.head.result), self.head.dim

    def forward(self, arrays: Arrays) -> Forward:
        """See `parallel.Method`."""
        a = self.attention
        state = self._local().forward(self._to_heads(arrays))
        wide: Any = a.eqn.outvars[0].aval
        result = self._back(finished(a, state, wide.dtype), a.result_dim, self.head.result)
        hidden = hidden_rows(a, state.greatest)
        return Forward(result, hidden, state.greatest, state.total, arrays)

    def backward(self, kept: Arrays, saved: Saved) -> Arrays:
        """See `parallel.Method`."""
        a, h = self.attention, self.head
        cotangent = self._there(saved.cotangent, a.result_dim, h.result)
        local = dataclasses.replace(saved, cotangent=cotangent)
        found = self._local().backward(self._to_heads(kept), local)
        key, value, *rest = found.keys
        return Arrays(
            (
                self._back(found.queries[0], a.query_dim, h.query),
                *self._summed(found.queries[1:], Along.QUERY),
            ),
            (
                self._home(key, a.key_dim, h.key),
                self._home(value, a.value_dim, h.value),
                *self._summed(rest, Along.KEY),
            ),
            self._summed(found.both, Along.BOTH),
            self._summed(found.neither, Along.NEITHER),
        )

    def _local(self) -> Ring:
        """One device's share: a ring of one."""
        head = (self.head.dim, self.head.size // self.size)
        return Ring(self.tiles, self.axes, 1, 1, (Lane(1),), 0, head=head)

    def _leaves(self, along: Along) -> tuple[int | None, ...]:
        """Each leaf's dimension of heads."""
        leaves = leaves_along(self.attention, along)
        dim = self.head.dim
        return tuple(x.dims.index(dim) if dim in x.dims else None for x in leaves)

    def _to_heads(self, arrays: Arrays) -> Arrays:
        a, h = self.attention, self.head
        key, value, *rest = arrays.keys
        return dataclasses.replace(
            arrays,
            queries=(self._there(arrays.queries[0], a.query_dim, h.query), *arrays.queries[1:]),
            keys=(
                self._there(key, a.key_dim, h.key),
                self._there(value, a.value_dim, h.value),
                *rest,
            ),
        )

    def _there(self, x: Any, positions: int, heads: int | None) -> Any:
        if not self.exchange:
            return x
        if heads is None:
            return jax.lax.all_gather(x, self.axes, axis=positions, tiled=True)
        return jax.lax.all_to_all(x, self.axes, heads, positions, tiled=True)

    def _back(self, x: Any, positions: int, heads: int) -> Any:
        if not self.exchange:
            return x
        return jax.lax.all_to_all(x, self.axes, positions, heads, tiled=True)

    def _home(self, gradient: Any, positions: int, heads: int | None) -> Any:
        """The gradient of a key or value, as that was given."""
        if heads is not None:
            return self._back(gradient, positions, heads)
        if not self.exchange:
            return jax.lax.psum(gradient, self.axes)
        return jax.lax.psum_scatter(gradient, self.axes, scatter_dimension=positions, tiled=True)

    def _summed(self, gradients: Sequence[Any], along: Along) -> tuple[Any, ...]:
        """Of a leaf without heads each device has the share of its own heads."""
        pairs = zip(gradients, self._leaves(along), strict=True)
        return tuple(
            jax.lax.psum(x, self.axes) if x is not None and dim is None else x for x, dim in pairs
        )
