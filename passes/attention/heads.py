"""Attention with heads cut instead of positions: all positions, a share of the heads.

Two ways there, both by constraint, so that the partitioner moves what has to move and leaves other
axes alone (`jax.lax.all_to_all` over one axis of a mesh would gather over the others first):

    ulysses   arrays cut along positions up to attention and after it, so that it is an all-to-all
              of query, key, value and result (Jacobs et al., "DeepSpeed Ulysses: System
              Optimizations for Enabling Training of Extreme Long Sequence Transformer Models",
              2023)
    heads     cut along heads, wherever they come from: where projections are cut along heads
              already (tensor parallelism), nothing moves

Keys and values that are shared along the dimension that is cut are gathered whole.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from passes.attention.arrays import Arrays, as_given, leaves_along
from passes.attention.block import Saved, finished
from passes.attention.lanes import Course, Lane
from passes.attention.parallel import Forward, hidden_rows
from passes.attention.pattern import Attention, HeadDim
from passes.attention.ring import Ring
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
      exchange: whether arrays are cut along positions around attention.
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

    @property
    def positions_outside(self) -> bool:
        """See `parallel.Method`."""
        return self.exchange

    def cut(self) -> Arrays:
        """See `parallel.Method`."""
        h = self.head
        return Arrays(
            (h.query, *self._leaves(Along.QUERY)),
            (h.key, h.value, *self._leaves(Along.KEY)),
            self._leaves(Along.BOTH),
            self._leaves(Along.NEITHER),
        )

    def rows(self) -> tuple[int, int]:
        """See `parallel.Method`."""
        return self.head.result, self.head.dim

    def forward(self, arrays: Arrays) -> Forward:
        """See `parallel.Method`."""
        a = self.attention
        state = self._local().forward(arrays)
        wide: Any = a.eqn.outvars[0].aval
        hidden = hidden_rows(a, state.greatest)
        result = finished(a, state, wide.dtype)
        return Forward(result, hidden, state.greatest, state.total, arrays)

    def backward(self, kept: Arrays, saved: Saved) -> Arrays:
        """See `parallel.Method`."""
        found, places = self._local().backward(kept, saved), self.cut()
        whole = Arrays(
            self._summed(found.queries, places.queries),
            self._summed(found.keys, places.keys),
            self._summed(found.both, places.both),
            self._summed(found.neither, places.neither),
        )
        return as_given(whole, kept)

    def _local(self) -> Ring:
        """One device's share: a ring of one."""
        head = (self.head.dim, self.head.size // self.size)
        stay = Course("keys", (Lane(1, 0),))
        return Ring(self.tiles, self.axes, 1, 1, stay, stay, head)

    def _leaves(self, along: Along) -> tuple[int | None, ...]:
        """Each leaf's dimension of heads."""
        leaves = leaves_along(self.attention, along)
        dim = self.head.dim
        return tuple(x.dims.index(dim) if dim in x.dims else None for x in leaves)

    def _summed(self, gradients: Sequence[Any], places: Sequence[int | None]) -> tuple[Any, ...]:
        """Of an array without heads each device has the share of its own heads."""
        return tuple(
            jax.lax.psum(x, self.axes) if x is not None and dim is None else x
            for x, dim in zip(gradients, places, strict=True)
        )
