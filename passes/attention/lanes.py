"""The ways round a ring, and what travels on them.

    step t   device i meets the block of device i - t on a lane of direction 1, of device i + t on
             one of direction -1, while the next ones arrive

What travels is cut in two ways for two lanes. Where nothing is added up on the way, a whole block
goes each way, half round: half as many steps. Sums that travel with a block have to come home, so
there each half of a block goes all the way round, and is home one step later.

Sums are sent on while the next block is computed, and added when both are there, so that they are
hidden by computation, too.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

Moves = Literal["keys", "queries"]

_UNROLLED = 3  # so few steps are written out: the last one fetches nothing

# libtpu has at most so many permutes under way. Of more it would end any before a loop that hides
# them, so those that are too many, the smallest, are sent before the rest.
_UNDER_WAY = 5


@dataclasses.dataclass(frozen=True)
class Lane:
    """One way round.

    Attributes:
      direction: 1: to the next device, -1: to the one before.
      steps: how many devices each block meets besides its own.
      half: which half of every chunk takes it; None is all of it.
    """

    direction: int
    steps: int
    half: int | None = None


@dataclasses.dataclass(frozen=True)
class Course:
    """What goes round in one pass, and how.

    Attributes:
      moves: which side of attention.
      lanes: the ways round; halves on all of them or on none.
    """

    moves: Moves
    lanes: tuple[Lane, ...]

    @property
    def halved(self) -> bool:
        """Whether each lane takes a half of every chunk."""
        return self.lanes[0].half is not None

    @property
    def blocks(self) -> float:
        """How many whole blocks a device meets, its own one included."""
        return 1 + sum(lane.steps for lane in self.lanes) * (0.5 if self.halved else 1.0)

    def phases(self) -> list[tuple[int, int, list[int]]]:
        """(first step, last step, lanes that meet somebody), in order."""
        ends = sorted({lane.steps for lane in self.lanes} - {0})
        return [
            (begin + 1, end, [i for i, lane in enumerate(self.lanes) if lane.steps >= end])
            for begin, end in itertools.pairwise([0, *ends])
        ]


@dataclasses.dataclass(frozen=True)
class Arrival:
    """What a lane brings to a device.

    Attributes:
      lane: which.
      owner: the device that it comes from.
      part: its arrays.
    """

    lane: Lane
    owner: Any
    part: Any


def part_of(arrays: Sequence[Any], dims: Sequence[int], lane: Lane, chunks: int) -> tuple[Any, ...]:
    """What of a device's arrays takes a lane: all, or a half of each of its chunks."""
    if lane.half is None:
        return tuple(arrays)
    found = []
    for x, dim in zip(arrays, dims, strict=True):
        if x is not None:
            mine = jnp.split(x, 2 * chunks, axis=dim)[lane.half :: 2]
            x = jnp.concatenate(mine, axis=dim) if len(mine) > 1 else mine[0]
        found.append(x)
    return tuple(found)


def divided(
    home: Sequence[Any], dims: Sequence[int], course: Course, chunks: int
) -> list[tuple[Any, ...]]:
    """Sums made at home, as the lanes take them along; where each takes all, the first one does."""
    if course.halved:
        return [part_of(home, dims, lane, chunks) for lane in course.lanes]
    nothing = jax.tree.map(jnp.zeros_like, tuple(home))
    return [tuple(home), *(nothing for _ in course.lanes[1:])]


def joined(
    parts: Sequence[Sequence[Any]], dims: Sequence[int], course: Course, chunks: int
) -> tuple[Any, ...]:
    """The sums of all lanes put together; added where each lane took all."""
    if len(parts) == 1:
        return tuple(parts[0])
    found: list[Any] = []
    for dim, *of_lane in zip(dims, *parts, strict=True):
        if of_lane[0] is None:
            found.append(None)
        elif not course.halved:
            found.append(sum(of_lane[1:], of_lane[0]))
        else:
            of_chunks = [jnp.split(x, chunks, axis=dim) for x in of_lane]
            in_order = [x for of_chunk in zip(*of_chunks, strict=True) for x in of_chunk]
            found.append(jnp.concatenate(in_order, axis=dim))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Round:
    """A journey of all lanes round a ring.

    Attributes:
      course: the lanes.
      axes: mesh axes, major to minor.
      size: devices along them.
      index: the device's place.
      visit: what a device does with what arrives: (arrivals, sums that stay) -> (a sum that travels
        for each arrival, sums that stay).
      combine: adds two sums that travel.
    """

    course: Course
    axes: tuple[str, ...]
    size: int
    index: Any
    visit: Callable[[list[Arrival], Any], tuple[list[Any], Any]]
    combine: Callable[[Any, Any], Any]

    def go(self, parts: Sequence[Any], sums: Sequence[Any], kept: Any) -> tuple[list[Any], Any]:
        """Let every part meet every device on its way, and its sums come home.

        Args:
          parts: what goes round, for each lane.
          sums: what was made of it at home already.
          kept: sums that stay.
        """
        lanes = self.course.lanes
        here = {
            i: self._shift(part, lanes[i].direction) if lanes[i].steps else part
            for i, part in enumerate(parts)
        }
        home = dict(enumerate(sums))
        sent = dict(home)
        for first, last, meeting in self.course.phases():
            carry = ({i: here[i] for i in meeting}, {i: sent[i] for i in meeting}, kept)
            if last - first < _UNROLLED:
                for t in range(first, last + 1):
                    onward = [i for i in meeting if lanes[i].steps > t]
                    carry = self._step(carry, t, meeting, onward)
            else:
                times = jnp.arange(first, last + 1, dtype=jnp.int32)
                carry, _ = jax.lax.scan(functools.partial(self._scanned, meeting), carry, times)
            here, sent, kept = carry
            home.update(sent)
        back = [-lane.direction * lane.steps for lane in lanes]
        return [self._shift(home[i], hops) for i, hops in enumerate(back)], kept

    def _scanned(self, meeting: list[int], carry: Any, t: Any) -> tuple[Any, None]:
        return self._step(carry, t, meeting, meeting), None

    def _step(self, carry: Any, t: Any, meeting: list[int], onward: list[int]) -> Any:
        """What is here and its sums go on, while sums of what is here now are made."""
        here: Mapping[int, Any]
        here, sent, kept = carry
        lanes = self.course.lanes
        going = ({i: here[i] for i in onward}, {i: sent[i] for i in meeting})
        ahead, came = self._on(going)
        arrivals = [
            Arrival(lanes[i], (self.index - lanes[i].direction * t) % self.size, here[i])
            for i in meeting
        ]
        new, kept = self.visit(arrivals, kept)
        total = {i: self.combine(came[i], x) for i, x in zip(meeting, new, strict=True)}
        return ahead, total, kept

    def _on(self, going: tuple[dict[int, Any], dict[int, Any]]) -> Any:
        """What is on each lane, and its sums, one device further."""
        leaves, structure = jax.tree.flatten(going)
        lanes = [i for tree in going for i, part in tree.items() for _ in jax.tree.leaves(part)]
        order = sorted(range(len(leaves)), key=lambda n: leaves[n].size * leaves[n].dtype.itemsize)
        ahead = order[: max(0, len(order) - _UNDER_WAY)]
        for n in ahead:
            leaves[n] = self._shift(leaves[n], self.course.lanes[lanes[n]].direction)
        if ahead:
            leaves = list(jax.lax.optimization_barrier(tuple(leaves)))
        for n in order[len(ahead) :]:
            leaves[n] = self._shift(leaves[n], self.course.lanes[lanes[n]].direction)
        return jax.tree.unflatten(structure, leaves)

    def _shift(self, tree: Any, hops: int) -> Any:
        if hops % self.size == 0:
            return tree
        way = [(source, (source + hops) % self.size) for source in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, way), tree)
