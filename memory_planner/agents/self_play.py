"""Plays a batch of games at once, one in each lane, each with a problem of its own.

The moves are a Python loop around one compiled move: a move is a search of many game steps, beside
which the loop costs nothing, and no length of a game is compiled in.
"""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from memory_planner.agents.episodes import Episode
from memory_planner.games.game import Game, Observation


@dataclasses.dataclass(frozen=True)
class Position:
    """What a player chooses an action by, for B lanes; a pytree.

    Attributes:
      problems: the game's problem, each array with a leading [B].
      states: the game's state, each array with a leading [B].
      done: bool[B], the lane's game is over.
      observation: arrays [B, ...].
      legal: bool[B, A].
      scale_ns: f32[B], what rewards are divided by.
    """

    problems: Any
    states: Any
    done: jax.Array
    observation: Observation
    legal: jax.Array
    scale_ns: jax.Array


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a player chose, for B lanes; a pytree.

    Attributes:
      action: int32[B].
      weights: f32[B, A], an improved policy to learn from.
      value: f32[B], the rest of the return that the search expects, in units of the scale.
    """

    action: jax.Array
    weights: jax.Array
    value: jax.Array


for _kind in (Position, Choice):
    jax.tree_util.register_dataclass(_kind)


class Player(Protocol):
    """Chooses actions. Hashable, as it is compiled in."""

    @property
    def game(self) -> Game: ...

    def choose(
        self, params: Any, key: jax.Array, position: Position, temperature: jax.Array
    ) -> Choice:
        """One action for each lane; `temperature` f32[B] is 0 where no chance is wanted."""
        ...


@dataclasses.dataclass(frozen=True)
class Record:
    """Games of B lanes, up to L moves each, as numpy arrays; times are in moves.

    Attributes:
      observation: arrays [L, B, ...], before each move.
      legal: bool[L, B, A].
      actions: int32[L, B].
      weights: f32[L, B, A].
      rewards: int32[L, B], in ns; 0 after the end.
      playing: bool[L, B], the game was not over before the move.
      scale_ns: f32[B].
    """

    observation: Observation
    legal: np.ndarray
    actions: np.ndarray
    weights: np.ndarray
    rewards: np.ndarray
    playing: np.ndarray
    scale_ns: np.ndarray

    def returns(self) -> np.ndarray:
        """f32[L, B]: what is still gained from each move on, in units of the scale."""
        scaled = self.rewards.astype(np.float64) / self.scale_ns[None]
        return np.cumsum(scaled[::-1], axis=0)[::-1].astype(np.float32)

    def episodes(self) -> list[Episode]:
        """The games, lane by lane."""
        lengths = self.playing.sum(0)
        totals = self.rewards.astype(np.int64).sum(0)
        return [
            Episode(tuple(map(int, self.actions[: lengths[lane], lane])), int(totals[lane]))
            for lane in range(len(lengths))
        ]


def position_of(
    game: Game, problems: Any, states: Any, done: jax.Array, scale_ns: jax.Array
) -> Position:
    """The position with its observation and legal actions filled in."""
    observation = jax.vmap(game.observe)(problems, states)
    legal = jax.vmap(game.legal)(problems, states)
    return Position(problems, states, done, observation, legal, scale_ns)


@functools.partial(jax.jit, static_argnames="game")
def _start(game: Game, problems: Any, scale_ns: jax.Array) -> Position:
    states = jax.vmap(game.reset)(problems)
    done = jnp.zeros(scale_ns.shape, bool)
    return position_of(game, problems, states, done, scale_ns)


@functools.partial(jax.jit, static_argnames="player")
def _move(
    player: Player, params: Any, key: jax.Array, position: Position, temperature: jax.Array
) -> tuple[Position, Choice, jax.Array]:
    choice = player.choose(params, key, position, temperature)
    states, reward, done = jax.vmap(player.game.step)(
        position.problems, position.states, choice.action
    )
    reward = jnp.where(position.done, 0, reward)
    done = position.done | done
    after = position_of(player.game, position.problems, states, done, position.scale_ns)
    return after, choice, reward


def play(
    player: Player, params: Any, key: jax.Array, problems: Any, scale_ns: Any, temperature: Any
) -> Record:
    """Plays one game in each lane to its end.

    Args:
      player: chooses the actions.
      params: of its network.
      key: of its chance.
      problems: arrays [B, ...].
      scale_ns: f32[B], positive.
      temperature: f32[B].
    """
    position = _start(player.game, problems, jnp.asarray(scale_ns, jnp.float32))
    moves = []
    while not np.asarray(position.done).all():
        key, use = jax.random.split(key)
        before = position
        position, choice, reward = _move(
            player, params, use, before, jnp.asarray(temperature, jnp.float32)
        )
        kept = (before.observation, before.legal, choice.action, choice.weights, reward)
        moves.append(jax.device_get((*kept, ~before.done)))
    observation, legal, actions, weights, rewards, playing = jax.tree.map(
        lambda *arrays: np.stack(arrays), *moves
    )
    scale = np.asarray(scale_ns, np.float32)
    return Record(observation, legal, actions, weights, rewards, playing, scale)


def blank_record(game: Game, problem: Any) -> Record:
    """A record of one lane and one move that changes nothing: for the shapes of its arrays.

    Args:
      game: the rules.
      problem: the game's, without a leading dimension.
    """
    position = jax.device_get(_start(game, lanes_of(problem, 1), jnp.ones(1)))
    observation, legal = jax.tree.map(lambda a: a[None], (position.observation, position.legal))
    zero = np.zeros((1, 1), np.int32)
    playing = np.ones((1, 1), bool)
    weights = np.zeros(legal.shape, np.float32)
    return Record(observation, legal, zero, weights, zero, playing, np.ones(1, np.float32))


@dataclasses.dataclass(frozen=True)
class RandomPlayer:
    """Takes legal actions by pure chance."""

    game: Game

    def choose(
        self, params: Any, key: jax.Array, position: Position, temperature: jax.Array
    ) -> Choice:
        """Uniform over the legal actions, whatever the temperature."""
        del params, temperature
        logits = jnp.where(position.legal, 0.0, -jnp.inf)
        logits = jnp.where(position.legal.any(-1, keepdims=True), logits, 0.0)
        weights = jax.nn.softmax(logits)
        return Choice(jax.random.categorical(key, logits), weights, jnp.zeros(len(logits)))


def lanes_of(problem: Any, count: int) -> Any:
    """One problem in every lane: arrays [...] -> [count, ...]."""
    return jax.tree.map(lambda a: np.broadcast_to(a, (count, *np.shape(a))), problem)


def random_scale(game: Game, problems: Any, tries: int = 4, seed: int = 0) -> np.ndarray:
    """f32[B] ns: the best return of a few random games of each problem, at least 1.

    It makes returns of all problems alike in size, so that one network learns from all.
    """
    best = np.ones(len(jax.tree.leaves(problems)[0]), np.float32)
    for number in range(tries):
        key = jax.random.fold_in(jax.random.key(seed), number)
        record = play(RandomPlayer(game), (), key, problems, np.ones_like(best), np.ones_like(best))
        best = np.maximum(best, record.rewards.astype(np.int64).sum(0))
    return best.astype(np.float32)
