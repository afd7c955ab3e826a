"""Ring attention: blocks go round the devices of an axis, each meets all others.

    step t   device i computes its own queries against the keys and values of device i - t,
             while those of device i - t - 1 arrive

Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023. What goes
round is chosen for each direction of a pass: keys and values (in the backward pass with their
gradients), or, as in "TokenRing: An Efficient Parallelism Framework for Infinite-Context LLMs via
Bidirectional Communication" (2024), queries and their partial outputs. The bidirectional ring
sends the two halves of every block round in opposite directions, so that both directions of every
link carry data; a link of a torus has one of its own for each.

Sums that travel with a block (gradients, partial outputs) are sent on while the next block is
computed, and added when both are there, so that they are hidden by computation, too.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from passes.attention.arrays import (
    Arrays,
    add_rows,
    both_dims,
    cut,
    key_dims,
    query_dims,
    sums,
)
from passes.attention.block import Saved, State, merged, row_shape
from passes.attention.pattern import Attention
from passes.attention.tiles import Pair, Tiles
from passes.attention.zigzag import chunk_at, early_chunk

Moves = Literal["keys", "queries"]

_UNROLLED = 3  # rings of so few steps are written out: the last one fetches nothing


@dataclasses.dataclass(frozen=True)
class Lane:
    """One way round.

    Attributes:
      direction: 1: to the next device, -1: to the one before.
      half: which half of every chunk takes it; None is all of it.
    """

    direction: int
    half: int | None = None


@dataclasses.dataclass(frozen=True)
class Side:
    """Blocks of queries or of keys, wherever they are.

    Attributes:
      arrays: their arrays, one chunk after the other.
      dims: the dimension of positions of each.
      owner: the device that holds them at the beginning.
      offset: of the first row within a chunk.
      chunk: positions of a whole chunk.
    """

    arrays: tuple[Any, ...]
    dims: tuple[int, ...]
    owner: Any
    offset: int
    chunk: int


@dataclasses.dataclass(frozen=True)
class Ring:
    """A ring over mesh axes, as the devices see it.

    Attributes:
      tiles: the attention, and how chunks are computed.
      axes: mesh axes, major to minor.
      size: devices along them.
      chunks: of a device: 1, contiguous, or 2, zig-zag.
      lanes: the ways round.
      steps: how many blocks each device meets besides its own; fewer than there are where a window
        hides the others.
      forward_moves, backward_moves: what goes round.
      head: (a dimension of the scores that is cut over the axes instead of positions, a device's
        share of it); `size` is 1 then.
    """

    tiles: Tiles
    axes: tuple[str, ...]
    size: int
    chunks: int
    lanes: tuple[Lane, ...]
    steps: int
    forward_moves: Moves = "keys"
    backward_moves: Moves = "keys"
    head: tuple[int, int] | None = None

    @property
    def attention(self) -> Attention:
        """What is computed."""
        return self.tiles.attention

    def forward(self, arrays: Arrays) -> State:
        """The state of a device's queries after all keys."""
        a, index = self.attention, self._index(arrays)
        home = self._home(arrays, index)
        if self.forward_moves == "keys":

            def visit(lane: Lane, owner: Any, part: Any, sent: Any, kept: Any, first: bool) -> Any:
                keys = self._side(part, key_dims(a), owner, lane, a.keys)
                return sent, self._forward(home[0], keys, arrays, first, kept)

            parts = [self._part(arrays.keys, key_dims(a), lane) for lane in self.lanes]
            start = self._state(arrays.queries)
            _, state = self._go_round(
                index, parts, start, visit, lambda _: (), lambda one, other: ()
            )
            return state

        def meet(lane: Lane, owner: Any, part: Any, sent: Any, kept: Any, first: bool) -> Any:
            queries = self._side(part, query_dims(a), owner, lane, a.queries)
            return self._forward(queries, home[1], arrays, first, sent), kept

        parts = [self._part(arrays.queries, query_dims(a), lane) for lane in self.lanes]

        def fresh(number: int) -> State:
            return self._state(parts[number])

        def combine(one: State, other: State) -> State:
            return merged(a, one, other)

        states, _ = self._go_round(index, parts, (), meet, fresh, combine)
        row = a.steps.query
        values = self._whole([(s.values,) for s in states], (a.result_dim,))
        rows = self._whole([(s.greatest, s.total) for s in states], (row, row))
        return State(*values, *rows)

    def backward(self, arrays: Arrays, saved: Saved) -> Arrays:
        """Gradients of a device's arrays; of what is needed whole, this device's share."""
        a, index = self.attention, self._index(arrays)
        home = self._home(arrays, index)
        zeros = Arrays(
            sums(arrays.queries), sums(arrays.keys), sums(arrays.both), sums(arrays.neither)
        )
        if self.backward_moves == "keys":

            def visit(lane: Lane, owner: Any, part: Any, sent: Any, kept: Any, first: bool) -> Any:
                keys = self._side(part, key_dims(a), owner, lane, a.keys)
                total = dataclasses.replace(kept, keys=sent)
                total = self._backward(home[0], keys, arrays, saved, first, total)
                return total.keys, dataclasses.replace(total, keys=())

            parts = [self._part(arrays.keys, key_dims(a), lane) for lane in self.lanes]
            start = dataclasses.replace(zeros, keys=())
            travelled, total = self._go_round(
                index, parts, start, visit, lambda number: sums(parts[number]), _added
            )
            return dataclasses.replace(total, keys=self._whole(travelled, key_dims(a)))

        # The numbers of a row travel as one array: what is small takes as long as it is far.
        row, key = a.steps.query, a.steps.key
        with_saved = (*query_dims(a), a.result_dim, row)
        numbers = jnp.concatenate([saved.greatest, saved.total, saved.inner], axis=key)
        rows = (saved.cotangent, numbers)

        def meet(lane: Lane, owner: Any, part: Any, sent: Any, kept: Any, first: bool) -> Any:
            *own, cotangent, packed = part
            queries = self._side(own, query_dims(a), owner, lane, a.queries)
            given = Saved(cotangent, *jnp.split(packed, 3, axis=key))
            total = dataclasses.replace(kept, queries=sent)
            total = self._backward(queries, home[1], arrays, given, first, total)
            return total.queries, dataclasses.replace(total, queries=())

        parts = [self._part((*arrays.queries, *rows), with_saved, lane) for lane in self.lanes]
        start = dataclasses.replace(zeros, queries=())
        travelled, total = self._go_round(
            index, parts, start, meet, lambda number: sums(parts[number][:-2]), _added
        )
        return dataclasses.replace(total, queries=self._whole(travelled, query_dims(a)))

    def _go_round(
        self,
        index: Any,
        parts: Sequence[Any],
        kept: Any,
        visit: Callable[..., Any],
        fresh: Callable[[int], Any],
        combine: Callable[[Any, Any], Any],
    ) -> tuple[list[Any], Any]:
        """Let every part meet every device, and its sums come home.

        Args:
          index: the device's place.
          parts: what goes round, for each lane.
          kept: sums that stay.
          visit: (lane, owner, part, empty sums, kept, whether it is at home) -> (sums, kept).
          fresh: empty sums that travel, by the number of the lane.
          combine: adds sums.
        """

        def visits(owners: list[Any], here: Any, kept: Any, first: bool) -> tuple[list[Any], Any]:
            sums_of = []
            for number, lane in enumerate(self.lanes):
                sent = fresh(number)
                if not (first and number and lane.half is None):  # the first lane's block already
                    sent, kept = visit(lane, owners[number], here[number], sent, kept, first)
                sums_of.append(sent)
            return sums_of, kept

        def step(carry: Any, t: Any, fetch: bool) -> Any:
            here, sent, kept = carry
            ahead = self._on(here) if fetch else here
            came = self._on(sent)
            owners = [(index - lane.direction * t) % self.size for lane in self.lanes]
            new, kept = visits(owners, here, kept, False)
            return ahead, list(map(combine, came, new)), kept

        here = self._on(parts) if self.steps else list(parts)
        sent, kept = visits([index] * len(self.lanes), parts, kept, True)
        carry = (here, sent, kept)
        if self.steps <= _UNROLLED:
            for t in range(1, self.steps + 1):
                carry = step(carry, t, t < self.steps)
        else:
            times = jnp.arange(1, self.steps + 1, dtype=jnp.int32)
            carry, _ = jax.lax.scan(lambda c, t: (step(c, t, True), None), carry, times)
        _, sent, kept = carry
        ways = [-lane.direction * self.steps for lane in self.lanes]
        return [self._shift(x, hops) for x, hops in zip(sent, ways, strict=True)], kept

    def _on(self, parts: Sequence[Any]) -> list[Any]:
        """Each part one device further."""
        pairs = zip(parts, self.lanes, strict=True)
        return [self._shift(part, lane.direction) for part, lane in pairs]

    def _shift(self, tree: Any, hops: int) -> Any:
        if hops % self.size == 0:
            return tree
        way = [(source, (source + hops) % self.size) for source in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, way), tree)

    def _part(self, arrays: Sequence[Any], dims: Sequence[int], lane: Lane) -> tuple[Any, ...]:
        """What of a device's arrays takes a lane: a half of each of its chunks."""
        if lane.half is None:
            return tuple(arrays)
        found = []
        for x, dim in zip(arrays, dims, strict=True):
            halves = jnp.split(x, 2 * self.chunks, axis=dim)
            mine = halves[lane.half :: 2]
            found.append(jnp.concatenate(mine, axis=dim) if len(mine) > 1 else mine[0])
        return tuple(found)

    def _whole(self, parts: Sequence[Sequence[Any]], dims: Sequence[int]) -> tuple[Any, ...]:
        """The parts of all lanes put together; added where each lane took all."""
        if len(parts) == 1:
            return tuple(parts[0])
        found: list[Any] = []
        for dim, *of_lane in zip(dims, *parts, strict=True):
            if of_lane[0] is None:
                found.append(None)
                continue
            if self.lanes[0].half is None:
                found.append(sum(of_lane[1:], of_lane[0]))
                continue
            chunks = [jnp.split(x, self.chunks, axis=dim) for x in of_lane]
            in_order = [x for of_chunk in zip(*chunks, strict=True) for x in of_chunk]
            found.append(jnp.concatenate(in_order, axis=dim))
        return tuple(found)

    def _index(self, arrays: Arrays) -> Any:
        """The device's place, tied to data.

        What is made of places alone, such as masks, would else count as the same for every
        iteration of a loop around attention: differentiating that loop takes such values out of it,
        and keeps them for every tile.
        """
        own = jax.lax.axis_index(self.axes) if self.size > 1 else jnp.zeros((), jnp.int32)
        datum = jnp.ravel(jax.lax.stop_gradient(arrays.queries[0]))[0]
        tied, _ = jax.lax.optimization_barrier((own, datum))
        return tied

    def _home(self, arrays: Arrays, index: Any) -> tuple[Side, Side]:
        a, every = self.attention, Lane(1)
        return (
            self._side(arrays.queries, query_dims(a), index, every, a.queries),
            self._side(arrays.keys, key_dims(a), index, every, a.keys),
        )

    def _side(
        self, arrays: Sequence[Any], dims: tuple[int, ...], owner: Any, lane: Lane, length: int
    ) -> Side:
        chunk = length // (self.size * self.chunks)
        return Side(tuple(arrays), dims, owner, (lane.half or 0) * chunk // 2, chunk)

    def _state(self, queries: Sequence[Any]) -> State:
        """No keys seen yet."""
        a = self.attention
        sizes = {
            a.steps.query: queries[0].shape[a.query_dim],
            **dict([self.head] if self.head else []),
        }
        rows = row_shape(a, sizes)
        wide: Any = a.eqn.outvars[0].aval
        dtype = jnp.promote_types(wide.dtype, jnp.float32)
        pairs = zip(wide.shape, a.result_dims, strict=True)
        values = [n if d is None else sizes.get(d, n) for n, d in pairs]
        return State(
            jnp.zeros(values, dtype), jnp.full(rows, -jnp.inf, dtype), jnp.zeros(rows, dtype)
        )

    def _pairs(self, queries: Side, keys: Side, first: bool) -> list[tuple[Any, Any, int | None]]:
        """Chunks of the two sides that meet: (of queries, of keys, how far apart if known)."""
        near = queries.offset - keys.offset if first and queries.chunk == keys.chunk else None
        if self.chunks == 1:
            return [(0, 0, near)]
        if first:
            return [(0, 0, near), (1, 0, None), (1, 1, near)]
        ahead = early_chunk(keys.owner, self.size) < early_chunk(queries.owner, self.size)
        same = jnp.where(ahead, 0, 1)
        return [(1, 0, None), (same, same, None)]

    def _forward(
        self, queries: Side, keys: Side, arrays: Arrays, first: bool, state: State
    ) -> State:
        a = self.attention
        for one, other, apart in self._pairs(queries, keys, first):
            pair = self._pair(queries, keys, arrays, one, other, apart)
            rows = pair.arrays.queries[0].shape[a.query_dim]
            before = self.tiles.state_rows(state, one * rows, rows)

            def compute(before: State, pair: Pair = pair) -> State:
                return self.tiles.forward(pair, before)

            after = self._if_visible(pair, compute, before)
            state = self.tiles.with_rows(state, after, one * rows)
        return state

    def _backward(
        self, queries: Side, keys: Side, arrays: Arrays, saved: Saved, first: bool, total: Arrays
    ) -> Arrays:
        a = self.attention
        for one, other, apart in self._pairs(queries, keys, first):
            pair = self._pair(queries, keys, arrays, one, other, apart)
            rows = pair.arrays.queries[0].shape[a.query_dim]
            columns = pair.arrays.keys[0].shape[a.key_dim]
            own = self.tiles.saved_rows(saved, one * rows, rows)
            at = (one * rows, other * columns)

            def add(total: Arrays, pair: Pair = pair, own: Saved = own, at: Any = at) -> Arrays:
                found = self.tiles.backward(pair, own)
                return self._add(total, found, at, pair.starts[a.steps.key])

            total = self._if_visible(pair, add, total)
        return total

    def _add(self, total: Arrays, found: Arrays, at: tuple[Any, Any], column: Any) -> Arrays:
        a = self.attention
        both = []
        for whole, part, dims in zip(total.both, found.both, both_dims(a), strict=True):
            if whole is not None:
                start = [jnp.zeros((), jnp.int32)] * whole.ndim
                start[dims[0]] = jnp.asarray(at[0], jnp.int32)
                start[dims[1]] = jnp.asarray(column, jnp.int32)
                whole = jax.lax.dynamic_update_slice(whole, part.astype(whole.dtype), start)
            both.append(whole)
        return Arrays(
            add_rows(total.queries, found.queries, query_dims(a), at[0]),
            add_rows(total.keys, found.keys, key_dims(a), at[1]),
            tuple(both),
            _added(total.neither, found.neither),
        )

    def _pair(
        self, queries: Side, keys: Side, arrays: Arrays, one: Any, other: Any, apart: int | None
    ) -> Pair:
        a = self.attention
        rows, columns = (
            side.arrays[0].shape[side.dims[0]] // self.chunks for side in (queries, keys)
        )
        starts = {
            a.steps.query: self._start(queries, one),
            a.steps.key: self._start(keys, other),
        }
        if self.head is not None:
            starts[self.head[0]] = jax.lax.axis_index(self.axes) * self.head[1]
        both = cut(arrays.both, [d[0] for d in both_dims(a)], one * rows, rows)
        both = cut(both, [d[1] for d in both_dims(a)], starts[a.steps.key], columns)
        return Pair(
            Arrays(
                cut(queries.arrays, queries.dims, one * rows, rows),
                cut(keys.arrays, keys.dims, other * columns, columns),
                both,
                arrays.neither,
            ),
            starts,
            apart,
        )

    def _start(self, side: Side, slot: Any) -> Any:
        chunk = side.owner if self.chunks == 1 else chunk_at(side.owner, slot, self.size)
        return chunk * side.chunk + side.offset

    def _if_visible(self, pair: Pair, compute: Callable[[Any], Any], before: Any) -> Any:
        """Computes a pair of chunks, unless the band hides all of it."""
        a = self.attention
        if self.chunks == 2 or a.band.is_everything or pair.apart is not None or self.size == 1:
            return compute(before)
        rows, columns = (
            pair.arrays.queries[0].shape[a.query_dim],
            pair.arrays.keys[0].shape[a.key_dim],
        )
        apart = pair.starts[a.steps.query] - pair.starts[a.steps.key]
        visible = jnp.logical_and(
            apart - columns + 1 <= a.band.most, apart + rows - 1 >= a.band.least
        )
        return jax.lax.cond(visible, compute, lambda x: x, before)


def _added(one: Any, other: Any) -> Any:
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), one, other)
