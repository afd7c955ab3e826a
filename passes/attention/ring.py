"""Ring attention: blocks go round the devices of an axis, each meets all others.

    step t   device i computes its own queries against the keys and values of device i - t,
             while those of device i - t - 1 arrive

Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023. What goes
round is chosen for each direction of a pass: keys and values (in the backward pass with their
gradients), or, as in "TokenRing: An Efficient Parallelism Framework for Infinite-Context LLMs via
Bidirectional Communication" (2024), queries and their partial outputs. The bidirectional ring has
two lanes (`attention.lanes`), so that both directions of every link carry data; a link of a torus
has one of its own for each.

The pairs of zig-zag chunks that meet in a step are computed in a loop. Schedulers (libtpu's, for
one) begin a transfer as late as they believe it can be hidden, and have quicker links and slower
products in mind than the machine; they cannot begin it inside a loop, so it begins with the step.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from passes.attention.arrays import (
    Arrays,
    both_dims,
    cut,
    key_dims,
    query_dims,
    sums,
)
from passes.attention.block import Saved, State, merged, row_shape
from passes.attention.lanes import Arrival, Course, Round, divided, joined, part_of
from passes.attention.pattern import Attention
from passes.attention.tiles import Pair, Tiles
from passes.attention.zigzag import chunk_at, early_chunk

# Which chunk of queries, which of keys, and how far apart they begin where that is known.
Met = tuple[Any, Any, int | None]


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
      forward_course, backward_course: what goes round in each pass, and how.
      head: (a dimension of the scores that is cut over the axes instead of positions, a device's
        share of it); `size` is 1 then.
    """

    tiles: Tiles
    axes: tuple[str, ...]
    size: int
    chunks: int
    forward_course: Course
    backward_course: Course
    head: tuple[int, int] | None = None

    @property
    def attention(self) -> Attention:
        """What is computed."""
        return self.tiles.attention

    def forward(self, arrays: Arrays) -> State:
        """The state of a device's queries after all keys."""
        queries, keys = self._home(arrays, self._index(arrays))
        home = self._state(arrays.queries)
        for met in self._at_home(queries, keys):
            home = self._forward(queries, keys, arrays, met, home)
        of_moves = self._keys_go if self.forward_course.moves == "keys" else self._queries_go
        return of_moves(queries, keys, arrays, home)

    def _keys_go(self, queries: Side, keys: Side, arrays: Arrays, home: State) -> State:
        dims = keys.dims

        def visit(arrivals: list[Arrival], state: State) -> Any:
            pairs = [(queries, self._arrived(x, x.part, keys)) for x in arrivals]

            def work(number: int, met: Met, state: State) -> State:
                return self._forward(*pairs[number], arrays, met, state)

            return [() for _ in arrivals], self._meetings(pairs, work, state)

        course = self.forward_course
        parts = [part_of(arrays.keys, dims, lane, self.chunks) for lane in course.lanes]
        return self._round(course, keys.owner, visit, _added).go(parts, [()] * len(parts), home)[1]

    def _queries_go(self, queries: Side, keys: Side, arrays: Arrays, home: State) -> State:
        a, course = self.attention, self.forward_course

        def visit(arrivals: list[Arrival], kept: Any) -> Any:
            pairs = [(self._arrived(x, x.part, queries), keys) for x in arrivals]

            def work(number: int, met: Met, states: list[State]) -> list[State]:
                state = self._forward(*pairs[number], arrays, met, states[number])
                return _replaced(states, number, state)

            return self._meetings(pairs, work, [self._state(x.part) for x in arrivals]), kept

        row = a.steps.query
        dims = (a.result_dim, row, row)
        parts = [part_of(arrays.queries, queries.dims, x, self.chunks) for x in course.lanes]
        first = divided((home.values, home.greatest, home.total), dims, course, self.chunks)
        journey = self._round(course, queries.owner, visit, functools.partial(merged, a))
        states, _ = journey.go(parts, [State(*x) for x in first], ())
        rows = [(s.values, s.greatest, s.total) for s in states]
        return State(*joined(rows, dims, course, self.chunks))

    def backward(self, arrays: Arrays, saved: Saved) -> Arrays:
        """Gradients of a device's arrays; of what is needed whole, this device's share."""
        a, course, moves = self.attention, self.backward_course, self.backward_course.moves
        queries, keys = self._home(arrays, self._index(arrays))
        home = Arrays(
            sums(arrays.queries), sums(arrays.keys), sums(arrays.both), sums(arrays.neither)
        )
        for met in self._at_home(queries, keys):
            home = self._backward(queries, keys, arrays, saved, met, home)
        key = a.steps.key

        def met_with(x: Arrival) -> tuple[Side, Side, Saved]:
            if moves == "keys":
                return queries, self._arrived(x, x.part, keys), saved
            *own, cotangent, numbers = x.part
            given = Saved(cotangent, *jnp.split(numbers, 3, axis=key))
            return self._arrived(x, own, queries), keys, given

        own = keys if moves == "keys" else queries

        def visit(arrivals: list[Arrival], kept: Arrays) -> Any:
            sides = [met_with(x) for x in arrivals]

            def work(number: int, met: Met, carry: Any) -> Any:
                sent, kept = carry
                one, other, given = sides[number]
                total = dataclasses.replace(kept, **{moves: sent[number]})
                total = self._backward(one, other, arrays, given, met, total)
                sent = _replaced(sent, number, getattr(total, moves))
                return sent, dataclasses.replace(total, **{moves: ()})

            start = [sums(x.part[: len(own.dims)]) for x in arrivals]
            return self._meetings([s[:2] for s in sides], work, (start, kept))

        travelling, dims = list(own.arrays), list(own.dims)
        if moves == "queries":
            # The numbers of a row travel as one: what is small takes as long as it is far.
            numbers = jnp.concatenate([saved.greatest, saved.total, saved.inner], axis=key)
            travelling += [saved.cotangent, numbers]
            dims += [a.result_dim, a.steps.query]
        parts = [part_of(travelling, dims, lane, self.chunks) for lane in course.lanes]
        first = divided(getattr(home, moves), own.dims, course, self.chunks)
        journey = self._round(course, own.owner, visit, _added)
        sent, total = journey.go(parts, first, dataclasses.replace(home, **{moves: ()}))
        gradients = joined(sent, own.dims, course, self.chunks)
        return dataclasses.replace(total, **{moves: gradients})

    def _round(
        self, course: Course, index: Any, visit: Callable[..., Any], combine: Callable[..., Any]
    ) -> Round:
        return Round(course, self.axes, self.size, index, visit, combine)

    def _meetings(
        self,
        pairs: Sequence[tuple[Side, Side]],
        work: Callable[[int, Met, Any], Any],
        carry: Any,
    ) -> Any:
        """Does the work of all pairs of chunks that meet in a step of the ring.

        Args:
          pairs: queries and keys, of each lane.
          work: (number of the lane, which of its chunks, sums) -> sums.
          carry: sums.
        """
        if self.chunks == 1:
            return functools.reduce(
                lambda c, number: work(number, (0, 0, None), c), range(len(pairs)), carry
            )

        def turn(carry: Any, number: Any) -> tuple[Any, None]:
            for lane, (queries, keys) in enumerate(pairs):
                carry = work(lane, self._met(queries, keys, number), carry)
            return carry, None

        return jax.lax.scan(turn, carry, jnp.arange(2, dtype=jnp.int32))[0]

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
        a, pieces = self.attention, self.size * self.chunks
        return (
            Side(arrays.queries, query_dims(a), index, 0, a.queries // pieces),
            Side(arrays.keys, key_dims(a), index, 0, a.keys // pieces),
        )

    def _arrived(self, arrival: Arrival, arrays: Sequence[Any], home: Side) -> Side:
        offset = (arrival.lane.half or 0) * home.chunk // 2
        return Side(tuple(arrays), home.dims, arrival.owner, offset, home.chunk)

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

    def _at_home(self, queries: Side, keys: Side) -> list[Met]:
        """The chunks of a device's own that meet."""
        near = 0 if queries.chunk == keys.chunk else None
        return [(0, 0, near)] if self.chunks == 1 else [(0, 0, near), (1, 0, None), (1, 1, near)]

    def _met(self, queries: Side, keys: Side, turn: Any) -> Met:
        """One of the two pairs of zig-zag chunks that meet elsewhere: late queries, early keys, and
        two early or two late ones."""
        ahead = early_chunk(keys.owner, self.size) < early_chunk(queries.owner, self.size)
        same = jnp.where(ahead, 0, 1)
        return jnp.where(turn == 0, 1, same), jnp.where(turn == 0, 0, same), None

    def _forward(self, queries: Side, keys: Side, arrays: Arrays, met: Met, state: State) -> State:
        pair = self._pair(queries, keys, arrays, met)
        return self._if_visible(pair, functools.partial(self.tiles.forward, pair), state)

    def _backward(
        self, queries: Side, keys: Side, arrays: Arrays, saved: Saved, met: Met, total: Arrays
    ) -> Arrays:
        pair = self._pair(queries, keys, arrays, met)
        rows = pair.arrays.queries[0].shape[self.attention.query_dim]
        own = self.tiles.saved_rows(saved, pair.at[0], rows)
        return self._if_visible(pair, functools.partial(self.tiles.backward, pair, own), total)

    def _pair(self, queries: Side, keys: Side, arrays: Arrays, met: Met) -> Pair:
        a, (one, other, apart) = self.attention, met
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
            (one * rows, other * columns),
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


def _replaced(values: list[Any], place: int, value: Any) -> list[Any]:
    return [*values[:place], value, *values[place + 1 :]]
