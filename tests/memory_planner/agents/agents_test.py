"""AlphaZero and MuZero on games whose answer is known."""

import pytest

from memory_planner.agents.alphazero import AlphaZero, SearchSettings
from memory_planner.agents.best_episodes import PlaySettings, Progress, best_episodes
from memory_planner.agents.learner import Agent, LearningSettings
from memory_planner.agents.muzero import MuZero
from memory_planner.agents.network import NetworkConfig
from tests.memory_planner.agents.toy_game import KNAPSACK, best_return, things

TINY = NetworkConfig(width=8, layers=1, heads=2, choices=2)
SEARCH = SearchSettings(simulations=8, considered=4)
PLAY = PlaySettings(
    episodes=96, lanes=8, keep=4,
    learning=LearningSettings(learning_rate=1e-2, batch_size=32, updates=4, replay_capacity=256),
)  # fmt: skip
# The thing of the greatest gain, first and so doubled, leaves no room for the better pair.
PROBLEM = things([6, 5, 5, 3], [8, 7, 7, 1], 10)
AGENTS: dict[str, Agent] = {
    "alphazero": AlphaZero(KNAPSACK, TINY, SEARCH),
    "muzero": MuZero(KNAPSACK, TINY, SEARCH),
}


@pytest.mark.parametrize("agent", AGENTS.values(), ids=AGENTS)
def test_agent_finds_the_best_return(agent: Agent) -> None:
    steps: list[Progress] = []
    found = best_episodes(agent, PROBLEM, PLAY, seed=1, progress=steps.append)
    assert best_return(PROBLEM) == 21
    assert found.episodes[0].return_ns == 21
    assert found.count == 96
    assert [step.episodes for step in steps] == list(range(8, 97, 8))
    assert steps[-1].best == found.episodes[0]
    returns = [episode.return_ns for episode in found.episodes]
    assert returns == sorted(returns, reverse=True)
    assert len({episode.actions for episode in found.episodes}) == 4
    again = best_episodes(agent, PROBLEM, PLAY, seed=1)
    assert again.episodes == found.episodes
