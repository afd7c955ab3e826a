"""The best that a small problem allows: every legal course of a game, alike states counted once.

All courses advance together, a move a round. Two that lead to the same memory have the same future
and, since gains add up to what the memory saves, the same past gain: one of them goes on.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from memory_planner.errors import MemoryPlannerError
from memory_planner.games.game import Game
from memory_planner.padding import PaddedProblem, PaddedShape, pad
from memory_planner.problem import MemoryMapping, MemoryProblem

# States that are advanced at once; the last of a round are filled up to it.
CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best episode.

    Attributes:
      gain_ns: of a step, over everything lying in HBM.
      actions: that lead to it, one a move.
      mapping: that it ends with.
      states: that differ, in all rounds together.
    """

    gain_ns: int
    actions: tuple[int, ...]
    mapping: MemoryMapping
    states: int


def best(
    game: Game[Any],
    problem: MemoryProblem,
    shape: PaddedShape | None = None,
    max_states: int = 200_000,
) -> Optimum:
    """The episode of the largest gain.

    Up to 12 uses in the mapping game and 6 buffers in the order game are a matter of seconds.

    Raises:
      MemoryPlannerError: a round has more than `max_states` states.
    """
    padded = pad(problem, shape)
    states = jax.tree.map(lambda leaf: np.asarray(leaf)[None], game.reset(padded))
    gains_ns = np.zeros(1, np.int64)
    history = np.zeros((1, 0), np.int32)
    total = 1
    legal = np.asarray(_legal(game, padded, states))
    for _ in range(game.move_count(padded)):
        parents, actions = np.nonzero(legal)
        if len(parents) > max_states:
            raise MemoryPlannerError(
                f"{problem.name}: {len(parents)} states after {history.shape[1] + 1} moves, more "
                f"than max_states={max_states}. Give a smaller problem, or a larger bound."
            )
        states, more_ns, legal = _advance(game, padded, states, parents, actions.astype(np.int32))
        keep = _distinct(states)
        states = jax.tree.map(lambda leaf, keep=keep: leaf[keep], states)
        legal = legal[keep]
        gains_ns = (gains_ns[parents] + more_ns)[keep]
        history = np.concatenate([history[parents], actions[:, None]], axis=1)[keep]
        total += len(keep)
    winner = int(np.argmax(gains_ns))
    last = jax.tree.map(lambda leaf: leaf[winner], states)
    return Optimum(
        gain_ns=int(gains_ns[winner]),
        actions=tuple(history[winner].tolist()),
        mapping=game.to_mapping(problem, padded, last),
        states=total,
    )


@functools.partial(jax.jit, static_argnums=0)
def _legal(game: Game[Any], problem: PaddedProblem, states: Any) -> jax.Array:
    """[states, A] of many states of one problem."""
    return jax.vmap(game.legal, in_axes=(None, 0))(problem, states)


@functools.partial(jax.jit, static_argnums=0)
def _step(
    game: Game[Any], problem: PaddedProblem, states: Any, actions: jax.Array
) -> tuple[Any, jax.Array, jax.Array]:
    """(states, gains, legality) after an action from each state."""
    step = jax.vmap(game.step, in_axes=(None, 0, 0))
    states, gains_ns, _ = step(problem, states, actions)
    return states, gains_ns, _legal(game, problem, states)


def _advance(
    game: Game[Any], padded: PaddedProblem, states: Any, parents: np.ndarray, actions: np.ndarray
) -> tuple[Any, np.ndarray, np.ndarray]:
    """(states, gains, legality) after an action from each of `parents`."""
    chunks = []
    for begin in range(0, len(parents), CHUNK):
        rows = np.arange(begin, begin + CHUNK) % len(parents)
        chosen = jax.tree.map(lambda leaf, rows=rows: leaf[parents[rows]], states)
        out = _step(game, padded, chosen, actions[rows])
        size = min(CHUNK, len(parents) - begin)
        chunks.append(jax.tree.map(lambda leaf, size=size: np.asarray(leaf)[:size], out))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *chunks)


def _distinct(states: Any) -> np.ndarray:
    """Numbers of states of which no earlier one is the same but for which stay serves which use."""
    memory = states.memory
    kept = states.replace(memory=memory.replace(stays=memory.hbm_from))
    count = len(memory.hbm_from)
    rows = np.concatenate(
        [
            np.ascontiguousarray(leaf).reshape(count, -1).view(np.uint8)
            for leaf in jax.tree.leaves(kept)
        ],
        axis=1,
    )
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0]
    return np.sort(np.unique(whole, return_index=True)[1])
