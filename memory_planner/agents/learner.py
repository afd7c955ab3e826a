"""Playing and learning in turns: what AlphaZero and MuZero have in common.

One iteration plays a game in every lane, puts its samples into the replay and takes a few steps of
Adam on samples drawn from there. Its chance comes from the seed and the iteration's number alone,
so that a learner restored from a checkpoint goes on exactly as it would have.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
import optax

from memory_planner.agents import replay as replays
from memory_planner.agents import self_play
from memory_planner.agents.replay import Replay
from memory_planner.agents.self_play import Player, Record
from memory_planner.games.game import Observation


class Agent(Player, Protocol):
    """A player whose network learns from its games."""

    def init(self, key: jax.Array, observation: Observation) -> Any:
        """Parameters for observations like this one, without a batch dimension."""
        ...

    def samples(self, record: Record) -> Mapping[str, Any]:
        """What is learnt from: a pytree of arrays [samples, ...]."""
        ...

    def loss(
        self, params: Any, samples: Mapping[str, Any]
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """Mean loss over samples [M, ...], and its parts by name."""
        ...


@dataclasses.dataclass(frozen=True)
class LearningSettings:
    """How an agent learns.

    Attributes:
      learning_rate: of Adam.
      batch_size: samples of an update.
      updates: steps of Adam an iteration.
      replay_capacity: samples that are kept.
    """

    learning_rate: float = 1e-3
    batch_size: int = 128
    updates: int = 8
    replay_capacity: int = 8192

    def optimizer(self) -> optax.GradientTransformation:
        """Adam, its gradients clipped to norm 1."""
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(self.learning_rate))


@dataclasses.dataclass(frozen=True)
class Learner:
    """All that changes while an agent learns.

    Attributes:
      params: of the network.
      optimizer_state: of `LearningSettings.optimizer`.
      replay: samples of the newest games.
      iteration: iterations done.
    """

    params: Any
    optimizer_state: Any
    replay: Replay
    iteration: int


def begin(
    agent: Agent, settings: LearningSettings, problem: Any, seed: int, params: Any = None
) -> Learner:
    """A learner that has not played yet.

    Args:
      agent: who learns.
      settings: how.
      problem: one of the shape that will be played, without a leading dimension.
      seed: of the network's first parameters.
      params: a trained network to go on from, instead.
    """
    if params is None:
        params = _initial_params(agent, problem, jax.random.key(seed))
    blank = self_play.blank_record(agent.game, problem)
    replay = replays.empty(settings.replay_capacity, agent.samples(blank))
    return Learner(params, settings.optimizer().init(params), replay, 0)


@functools.partial(jax.jit, static_argnames="agent")
def _initial_params(agent: Agent, problem: Any, key: jax.Array) -> Any:
    state = agent.game.reset(problem)
    return agent.init(key, agent.game.observe(problem, state))


def iterate(
    agent: Agent,
    settings: LearningSettings,
    learner: Learner,
    problems: Any,
    scale_ns: np.ndarray,
    temperature: np.ndarray,
    seed: int,
) -> tuple[Learner, Record, dict[str, float]]:
    """Plays a game in each lane and learns.

    Args:
      agent: who plays and learns.
      settings: how it learns.
      learner: what it is; its replay is used up.
      problems: arrays [B, ...], one problem a lane.
      scale_ns: f32[B], what returns are divided by.
      temperature: f32[B], 0 for play without chance.
      seed: of all chance, with the number of the iteration.

    Returns:
      The learner after it, the games, and the mean losses by name.
    """
    key = jax.random.fold_in(jax.random.key(seed), learner.iteration)
    record = self_play.play(agent, learner.params, key, problems, scale_ns, temperature)
    replay = learner.replay.add(agent.samples(record))
    params, state = learner.params, learner.optimizer_state
    losses: list[Mapping[str, jax.Array]] = []
    for number in range(settings.updates):
        drawn = replay.draw(settings.batch_size, (seed, learner.iteration, number))
        params, state, parts = _update(agent, settings, params, state, drawn)
        losses.append(parts)
    means = {name: float(np.mean([part[name] for part in losses])) for name in losses[0]}
    return Learner(params, state, replay, learner.iteration + 1), record, means


@functools.partial(jax.jit, static_argnames=("agent", "settings"))
def _update(
    agent: Agent, settings: LearningSettings, params: Any, state: Any, samples: Any
) -> tuple[Any, Any, Mapping[str, jax.Array]]:
    gradient, parts = jax.grad(agent.loss, has_aux=True)(params, samples)
    changes, state = settings.optimizer().update(gradient, state, params)
    return optax.apply_updates(params, changes), state, parts
