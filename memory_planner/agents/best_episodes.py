"""Lets an agent play one problem over and over, learning from it, and keeps its best games."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from memory_planner.agents import learner as learners
from memory_planner.agents.episodes import BestEpisodes, Episode
from memory_planner.agents.learner import Agent, LearningSettings
from memory_planner.agents.self_play import lanes_of, random_scale
from memory_planner.errors import MemoryPlannerError


@dataclasses.dataclass(frozen=True)
class PlaySettings:
    """How long a problem is played.

    Attributes:
      episodes: games, at most.
      lanes: games at a time.
      seconds: no round of games begins after so long; None for no limit. With a limit, the answer
        depends on the machine's speed.
      keep: episodes that are returned, at most.
      learning: how the agent learns between rounds.
    """

    episodes: int = 256
    lanes: int = 16
    seconds: float | None = None
    keep: int = 16
    learning: LearningSettings = dataclasses.field(default_factory=LearningSettings)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far it is.

    Attributes:
      episodes: games played.
      seconds: since the beginning.
      best: the best game.
    """

    episodes: int
    seconds: float
    best: Episode


@dataclasses.dataclass(frozen=True)
class Played:
    """What came out.

    Attributes:
      episodes: the best distinct ones, best first.
      count: games played.
      params: of the network, after it.
    """

    episodes: tuple[Episode, ...]
    count: int
    params: Any


def best_episodes(
    agent: Agent,
    problem: Any,
    settings: PlaySettings,
    *,
    params: Any = None,
    seed: int = 0,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Played:
    """The best games that the agent plays of a problem.

    Args:
      agent: who plays.
      problem: the game's, without a leading dimension.
      settings: how long.
      params: of a trained network; None begins with an untrained one.
      seed: of all chance: the same seed gives the same games, but for a limit of `seconds`.
      progress: called after each round.

    Raises:
      MemoryPlannerError: no game is to be played.
    """
    lanes = min(settings.lanes, settings.episodes)
    if lanes < 1:
        raise MemoryPlannerError(
            f"episodes={settings.episodes} and lanes={settings.lanes} leave no game to play: both "
            f"must be at least 1."
        )
    started = time.monotonic()
    problems = lanes_of(problem, lanes)
    scale = np.repeat(random_scale(agent.game, lanes_of(problem, 1)), lanes)
    temperature = np.linspace(0.0, 1.0, lanes, dtype=np.float32)
    learner = learners.begin(agent, settings.learning, problem, seed, params)
    best = BestEpisodes(settings.keep)
    for played in range(lanes, settings.episodes + 1, lanes):
        learner, record, _ = learners.iterate(
            agent, settings.learning, learner, problems, scale, temperature, seed
        )
        for episode in record.episodes():
            best.add(episode)
        seconds = time.monotonic() - started
        progress(Progress(played, seconds, best.ranked()[0]))
        if settings.seconds is not None and seconds >= settings.seconds:
            break
    return Played(best.ranked(), played, learner.params)
