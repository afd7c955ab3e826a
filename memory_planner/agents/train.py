"""Teaches an agent on ever new problems, so that it knows what to do with one it never saw."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from memory_planner.agents import learner as learners
from memory_planner.agents.checkpoints import LearnerCheckpoints
from memory_planner.agents.learner import Agent, Learner, LearningSettings
from memory_planner.agents.self_play import random_scale


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How an agent is trained.

    Attributes:
      seed: of all chance.
      lanes: games at a time, each of a problem of its own.
      learning: from them.
    """

    seed: int = 0
    lanes: int = 32
    learning: LearningSettings = dataclasses.field(default_factory=LearningSettings)


@dataclasses.dataclass(frozen=True)
class Limits:
    """When training ends, whichever comes first.

    Attributes:
      iterations: done in all, those before a restart included; None for no limit.
      seconds: since this process began to train; None for no limit.
      stop: asked after each iteration.
    """

    iterations: int | None = None
    seconds: float | None = None
    stop: Callable[[], bool] = lambda: False

    def reached(self, iteration: int, seconds: float) -> bool:
        """Whether to end here."""
        late = self.seconds is not None and seconds >= self.seconds
        done = self.iterations is not None and iteration >= self.iterations
        return late or done or self.stop()


@dataclasses.dataclass(frozen=True)
class Report:
    """One iteration.

    Attributes:
      iteration: its number, from 1.
      seconds: since this process began to train.
      mean_return: of its games, over the best of a few random games of the same problem.
      losses: by name.
    """

    iteration: int
    seconds: float
    mean_return: float
    losses: dict[str, float]


def train(
    agent: Agent,
    make_problems: Callable[[int], Any],
    settings: TrainingSettings,
    limits: Limits,
    *,
    directory: pathlib.Path | None = None,
    save_every_s: float = 120.0,
    report: Callable[[Report], None] = lambda _: None,
) -> Learner:
    """Trains from nothing, or on from the newest checkpoint.

    Args:
      agent: who is trained.
      make_problems: the number of an iteration -> its problems, arrays [lanes, ...] of one shape.
      settings: how.
      limits: how long.
      directory: of the checkpoints; None for none.
      save_every_s: seconds from one checkpoint to the next; the last iteration is always saved.
      report: called after each iteration.

    Raises:
      MemoryPlannerError: the directory cannot be used, or holds another run.
    """
    first = _without_lanes(make_problems(0))
    learner = learners.begin(agent, settings.learning, first, settings.seed)
    checkpoints = None
    if directory is not None:
        checkpoints = LearnerCheckpoints(directory, f"{agent} {settings}")
        learner = checkpoints.restore(learner)
    temperature = np.ones(settings.lanes, np.float32)
    began = saved = time.monotonic()
    saved_iteration = learner.iteration
    while not limits.reached(learner.iteration, time.monotonic() - began):
        problems = make_problems(learner.iteration)
        scale = random_scale(agent.game, problems, seed=learner.iteration)
        learner, record, losses = learners.iterate(
            agent, settings.learning, learner, problems, scale, temperature, settings.seed
        )
        now = time.monotonic()
        mean_return = float(record.returns()[0].mean())
        report(Report(learner.iteration, now - began, mean_return, losses))
        if checkpoints is not None and now - saved >= save_every_s:
            checkpoints.save(learner)
            saved, saved_iteration = now, learner.iteration
    if checkpoints is not None:
        if learner.iteration != saved_iteration:
            checkpoints.save(learner)
        checkpoints.close()
    return learner


def _without_lanes(problems: Any) -> Any:
    """The first of the problems."""
    return jax.tree.map(lambda a: a[0], problems)
