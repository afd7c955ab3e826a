"""The order game as an objective for searches over orders, and its episodes as candidates."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memory_planner.agents.candidates import EAGERNESS_CHOICES, Candidate
from memory_planner.agents.episodes import Episode
from memory_planner.games.game import Game
from memory_planner.padding import PaddedProblem

# Orders are scored so many at a time: one compiled program for any number of them.
CHUNK = 32


@dataclasses.dataclass(frozen=True)
class GameScore:
    """A `candidates.Score`: the return in ns of the order game.

    Attributes:
      game: `games.order.OrderGame`.
      problem: of it.
    """

    game: Game
    problem: PaddedProblem

    def __call__(self, orders: np.ndarray, eagerness: np.ndarray) -> np.ndarray:
        """float64[B] of int32[B, n] orders, and int32[B, n] eagerness by the buffers' numbers."""
        actions = np.asarray(actions_of(orders, eagerness), np.int32)
        moves = self.problem.begin.shape[0]
        scores: list[np.ndarray] = []
        for first in range(0, len(actions), CHUNK):
            part = actions[first : first + CHUNK]
            # Beyond the end, and in lanes that are not needed, the first buffer is chosen again,
            # which is illegal and earns nothing.
            padded = np.repeat(np.zeros_like(part[:1, :1]), moves, axis=1).repeat(CHUNK, axis=0)
            padded[: len(part)] = part[:, :1]
            padded[: len(part), : part.shape[1]] = part
            scores.append(np.asarray(_returns(self.game, self.problem, padded))[: len(part)])
        return np.concatenate(scores).astype(np.float64)


def actions_of(orders: np.ndarray, eagerness: np.ndarray) -> np.ndarray:
    """The order game's actions [B, n] of orders and eagerness [B, n]."""
    return orders * EAGERNESS_CHOICES + np.take_along_axis(eagerness, orders, axis=1)


def candidate_of(episode: Episode, count: int) -> Candidate:
    """The order that an episode played, of a problem with `count` buffers.

    Buffers without uses have no move; they follow at the end, as they are.
    """
    chosen = [divmod(action, EAGERNESS_CHOICES) for action in episode.actions]
    eagerness = [0] * count
    for buffer, eager in chosen:
        eagerness[buffer] = eager
    order = [buffer for buffer, _ in chosen]
    rest = sorted(set(range(count)) - set(order))
    return Candidate(tuple(order + rest), tuple(eagerness), float(episode.return_ns))


@functools.partial(jax.jit, static_argnames="game")
def _returns(game: Game, problem: Any, actions: jax.Array) -> jax.Array:
    """int32[B] of actions int32[B, moves]."""

    def play(own: jax.Array) -> jax.Array:
        def move(carry: Any, action: jax.Array) -> tuple[Any, None]:
            state, gained = carry
            state, reward, _ = game.step(problem, state, action)
            return (state, gained + reward), None

        start = (game.reset(problem), jnp.int32(0))
        return jax.lax.scan(move, start, own)[0][1]

    return jax.vmap(play)(actions)
