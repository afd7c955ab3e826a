"""A chunk of queries against a chunk of keys, tile by tile, so that memory stays linear."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from passes.attention.arrays import (
    Arrays,
    add_rows,
    both_dims,
    cut,
    key_dims,
    put,
    query_dims,
)
from passes.attention.block import Block, Saved, State
from passes.attention.pattern import Attention


def tile_size(length: int, most: int) -> int:
    """The greatest divisor of a length up to `most`; the least above it where there is only one."""
    if length <= most:
        return length
    divisors = [d for d in range(1, length + 1) if length % d == 0]
    below = max(d for d in divisors if d <= most)
    return below if 4 * below >= most else min(d for d in divisors if d > most)


# A tile is at most one part in so many of a chunk's side, so that its scores stay small beside what
# a device holds, but at least so long: below, what an operation costs in any case outweighs it.
_PARTS, _LEAST = 8, 512


@dataclasses.dataclass(frozen=True)
class Pair:
    """A chunk of queries and a chunk of keys.

    Attributes:
      arrays: their rows; of `both`, rows and columns.
      starts: position of the first query, key (and head), by the scores' dimension.
      at: the first query's row and the first key's among all rows that are computed on.
      apart: position of the first query less that of the first key, where it is known when the
        program is compiled; then tiles outside of the band are left out.
    """

    arrays: Arrays
    starts: Mapping[int, Any]
    at: tuple[Any, Any]
    apart: int | None = None


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How chunks are computed.

    Attributes:
      attention: which.
      block: the work of one tile.
      most: the greatest number of positions along the side of a tile (fewer of short chunks).
    """

    attention: Attention
    block: Block
    most: int

    def forward(self, pair: Pair, state: State) -> State:
        """The state, its rows of these queries after a chunk of keys."""
        sizes = self._sizes(pair)
        places = self._places(pair, sizes)

        def step(state: State, place: Any) -> tuple[State, None]:
            arrays, starts = self._tile(pair, sizes, place)
            at = pair.at[0] + place[0] * sizes[0]
            part = self.state_rows(state, at, sizes[0])
            new = self.block.forward(self.attention, arrays, starts, part)
            return self.with_rows(state, new, at), None

        return self._over(places, step, state)

    def backward(self, pair: Pair, saved: Saved, total: Arrays) -> Arrays:
        """Sums of gradients, in float32 or wider, with those of a pair of chunks added.

        Args:
          pair: the chunks.
          saved: of the chunk of queries.
          total: sums for all rows that are computed on; of `both`, with a column for each key of
            the sequence.
        """
        sizes = self._sizes(pair)
        places = self._places(pair, sizes)

        def step(total: Arrays, place: Any) -> tuple[Arrays, None]:
            arrays, starts = self._tile(pair, sizes, place)
            rows = self.saved_rows(saved, place[0] * sizes[0], sizes[0])
            found = self.block.backward(self.attention, arrays, starts, rows)
            at = tuple(
                first + n * size for first, n, size in zip(pair.at, place, sizes, strict=True)
            )
            return self._added(total, found, at, starts[self.attention.steps.key]), None

        return self._over(places, step, total)

    def _over(self, places: list[tuple[int, int]], step: Callable[..., Any], carry: Any) -> Any:
        if len(places) == 1:
            return step(carry, places[0])[0]
        if not places:
            return carry
        return jax.lax.scan(step, carry, jnp.asarray(np.array(places, np.int32)))[0]

    def _lengths(self, pair: Pair) -> tuple[int, int]:
        a = self.attention
        return pair.arrays.queries[0].shape[a.query_dim], pair.arrays.keys[0].shape[a.key_dim]

    def _sizes(self, pair: Pair) -> tuple[int, int]:
        queries, keys = self._lengths(pair)
        return self.side(queries), self.side(keys)

    def side(self, length: int) -> int:
        """Positions along the side of a tile of a chunk so long."""
        return tile_size(length, min(self.most, max(length // _PARTS, _LEAST)))

    def _places(self, pair: Pair, sizes: tuple[int, int]) -> list[tuple[int, int]]:
        counts = [n // s for n, s in zip(self._lengths(pair), sizes, strict=True)]
        every = itertools.product(range(counts[0]), range(counts[1]))
        if pair.apart is None:
            return list(every)
        kept = []
        for a, b in every:
            first = pair.apart + a * sizes[0] - b * sizes[1]
            if self.attention.band.meets(first - sizes[1] + 1, first + sizes[0] - 1):
                kept.append((a, b))
        return kept

    def _tile(
        self, pair: Pair, sizes: tuple[int, int], place: Any
    ) -> tuple[Arrays, Mapping[int, Any]]:
        a = self.attention
        at = [place[0] * sizes[0], place[1] * sizes[1]]
        rows = [cut(pair.arrays.both, [d[0] for d in both_dims(a)], at[0], sizes[0])]
        arrays = Arrays(
            cut(pair.arrays.queries, query_dims(a), at[0], sizes[0]),
            cut(pair.arrays.keys, key_dims(a), at[1], sizes[1]),
            cut(rows[0], [d[1] for d in both_dims(a)], at[1], sizes[1]),
            pair.arrays.neither,
        )
        steps = a.steps
        moved = {steps.query: at[0], steps.key: at[1]}
        return arrays, {d: start + moved.get(d, 0) for d, start in pair.starts.items()}

    def _row_dims(self) -> tuple[int, int]:
        return self.attention.result_dim, self.attention.steps.query

    def state_rows(self, state: State, at: Any, size: int) -> State:
        """The state of `size` queries from `at` on."""
        wide, row = self._row_dims()
        dims = (wide, row, row)
        return State(*cut((state.values, state.greatest, state.total), dims, at, size))

    def with_rows(self, state: State, new: State, at: Any) -> State:
        """The state with that of some queries replaced."""
        wide, row = self._row_dims()
        return State(
            put(state.values, new.values, at, wide),
            put(state.greatest, new.greatest, at, row),
            put(state.total, new.total, at, row),
        )

    def saved_rows(self, saved: Saved, at: Any, size: int) -> Saved:
        """What is saved of `size` queries from `at` on."""
        wide, row = self._row_dims()
        arrays = (saved.cotangent, saved.greatest, saved.total, saved.inner)
        return Saved(*cut(arrays, (wide, row, row, row), at, size))

    def _added(self, total: Arrays, found: Arrays, at: tuple[Any, ...], column: Any) -> Arrays:
        a = self.attention
        both = []
        for whole, part, dims in zip(total.both, found.both, both_dims(a), strict=True):
            if whole is not None:
                start: list[Any] = [0] * whole.ndim
                start[dims[0]], start[dims[1]] = at[0], column
                start = [jnp.asarray(x, jnp.int32) for x in start]
                whole = jax.lax.dynamic_update_slice(whole, part.astype(whole.dtype), start)
            both.append(whole)
        neither = tuple(
            None if whole is None else whole + part.astype(whole.dtype)
            for whole, part in zip(total.neither, found.neither, strict=True)
        )
        return Arrays(
            add_rows(total.queries, found.queries, query_dims(a), at[0]),
            add_rows(total.keys, found.keys, key_dims(a), at[1]),
            tuple(both),
            neither,
        )
