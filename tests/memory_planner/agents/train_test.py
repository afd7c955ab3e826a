"""Training on toy problems, stopped and resumed."""

import pathlib

import jax
import numpy as np
import pytest

from memory_planner.agents.alphazero import AlphaZero, SearchSettings
from memory_planner.agents.learner import Learner, LearningSettings
from memory_planner.agents.network import NetworkConfig
from memory_planner.agents.train import Limits, Report, TrainingSettings, train
from memory_planner.errors import MemoryPlannerError
from tests.memory_planner.agents.toy_game import KNAPSACK, Things

LANES = 4
AGENT = AlphaZero(
    KNAPSACK, NetworkConfig(width=8, layers=1, heads=2, choices=2), SearchSettings(4, 4)
)
LEARNING = LearningSettings(batch_size=16, updates=2, replay_capacity=64)
SETTINGS = TrainingSettings(seed=3, lanes=LANES, learning=LEARNING)


def problems(iteration: int) -> Things:
    rng = np.random.default_rng(iteration)
    sizes, gains = rng.integers(1, 9, size=(2, LANES, 4)).astype(np.int32)
    return Things(sizes, gains, np.full(LANES, 10, np.int32))


def assert_same(one: Learner, other: Learner) -> None:
    assert one.iteration == other.iteration and one.replay.added == other.replay.added
    trees = [(x.params, x.optimizer_state, x.replay.samples) for x in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_run_resumed_from_a_checkpoint_ends_as_one_in_a_piece(tmp_path: pathlib.Path) -> None:
    reports: list[Report] = []
    whole = train(AGENT, problems, SETTINGS, Limits(iterations=5), report=reports.append)
    assert [r.iteration for r in reports] == [1, 2, 3, 4, 5]
    assert set(reports[0].losses) == {"policy", "value"}
    for end in (2, 5):
        part = train(AGENT, problems, SETTINGS, Limits(iterations=end), directory=tmp_path)
    assert_same(part, whole)
    # A run that has reached its end restores it and does nothing.
    assert_same(train(AGENT, problems, SETTINGS, Limits(iterations=5), directory=tmp_path), whole)
    other = TrainingSettings(seed=4, lanes=LANES, learning=LEARNING)
    with pytest.raises(MemoryPlannerError, match="holds another run"):
        train(AGENT, problems, other, Limits(iterations=5), directory=tmp_path)


def test_damaged_checkpoint_is_named(tmp_path: pathlib.Path) -> None:
    train(AGENT, problems, SETTINGS, Limits(iterations=1), directory=tmp_path)
    for file in (tmp_path / "1" / "learner").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(MemoryPlannerError, match=r"Checkpoint 1 in .* is damaged"):
        train(AGENT, problems, SETTINGS, Limits(iterations=2), directory=tmp_path)


def test_folder_of_something_else_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(MemoryPlannerError, match=r"thesis\.tex, which is no checkpoint"):
        train(AGENT, problems, SETTINGS, Limits(iterations=1), directory=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_time_limit_and_request_to_stop_end_training() -> None:
    assert train(AGENT, problems, SETTINGS, Limits(seconds=0.0)).iteration == 0
    asked = iter([False, False, True])
    limits = Limits(stop=lambda: next(asked))
    assert train(AGENT, problems, SETTINGS, limits).iteration == 2
