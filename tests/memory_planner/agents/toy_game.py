"""A game small enough to know its answer: which things to put into a knapsack, and in which order.

Action `2 * i + choice` takes thing i: with choice 0 it is packed if it fits, else left; with choice
1 it is left. The gain of a packed thing is its own, doubled if nothing was packed before it.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memory_planner.games.game import Observation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Things:
    """sizes, gains: int32[N]; capacity: int32[]. A thing of size 0 is padding."""

    sizes: Any
    gains: Any
    capacity: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """waiting: bool[N]; room: int32[]."""

    waiting: jax.Array
    room: jax.Array


@dataclasses.dataclass(frozen=True)
class Knapsack:
    """The rules."""

    def reset(self, problem: Things) -> Packed:
        return Packed(problem.sizes > 0, problem.capacity)

    def step(
        self, problem: Things, state: Packed, action: jax.Array
    ) -> tuple[Packed, jax.Array, jax.Array]:
        thing, leave = action // 2, action % 2
        size = problem.sizes[thing]
        fits = state.waiting[thing] & (leave == 0) & (size <= state.room)
        doubled = 1 + (state.room == problem.capacity).astype(jnp.int32)
        reward = jnp.where(fits, problem.gains[thing] * doubled, 0)
        waiting = state.waiting.at[thing].set(False)
        return Packed(waiting, state.room - jnp.where(fits, size, 0)), reward, ~waiting.any()

    def legal(self, problem: Things, state: Packed) -> jax.Array:
        return jnp.repeat(state.waiting, 2)

    def observe(self, problem: Things, state: Packed) -> Observation:
        room = state.room / problem.capacity
        columns = [problem.sizes / problem.capacity, problem.gains / problem.gains.sum()]
        buffers = jnp.stack([*columns, state.waiting.astype(jnp.float32)], axis=-1)
        return Observation(buffers, problem.sizes > 0, jnp.stack([room, 1 - room]))


# Its problems are none of programs, which is all that a `Game` would ask of them.
KNAPSACK: Any = Knapsack()


def things(sizes: list[int], gains: list[int], capacity: int) -> Things:
    """A problem of numpy arrays."""
    as_int = [np.asarray(v, np.int32) for v in (sizes, gains, capacity)]
    return Things(*as_int)


def best_return(problem: Things) -> int:
    """The best return, by trying every order of every subset."""
    numbers = range(len(problem.sizes))
    best = 0
    for order in itertools.permutations(numbers):
        room, gained = int(problem.capacity), 0
        for thing in order:
            if problem.sizes[thing] > room:
                break
            doubled = 2 if room == problem.capacity else 1
            room -= int(problem.sizes[thing])
            gained += doubled * int(problem.gains[thing])
            best = max(best, gained)
    return best
