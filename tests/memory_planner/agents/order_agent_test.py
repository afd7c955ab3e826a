"""Players and searches on the games of programs, against every order and every mapping there is."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from memory_planner.agents import baselines
from memory_planner.agents.alphazero import AlphaZero, SearchSettings
from memory_planner.agents.best_episodes import PlaySettings, best_episodes
from memory_planner.agents.game_score import GameScore, candidate_of
from memory_planner.agents.learner import LearningSettings
from memory_planner.agents.local_search import Start, hill_climbing
from memory_planner.agents.network import MAPPING_MARK, NetworkConfig
from memory_planner.agents.stored_network import order_network
from memory_planner.games.mapping import MappingGame
from memory_planner.games.order import OrderGame
from memory_planner.padding import PaddedShape, pad, unit_bytes
from memory_planner.problem import Buffer, MemoryProblem, Operation, Use
from memory_planner.problems_random import RandomShape, random_problem
from tests.memory_planner.games.reference import ReferenceMapping, ReferenceOrder

SHAPE = PaddedShape(buffers=5, operations=8, uses=3, decisions=12, units=32)
PLAY = PlaySettings(
    episodes=48, lanes=16, learning=LearningSettings(batch_size=32, updates=4, replay_capacity=512)
)
# One operation reads all four. The best by benefit over the root of its size (and by its density,
# and by its size) fills memory so that only the worst goes beside it; two others fill it wholly.
GREEDY_FAILS = MemoryProblem(
    "greedy fails",
    (Operation("first", 100, 100, 0), Operation("reads all", 1000, 0, 0)),
    tuple(
        Buffer(f"b{i}", size, 0, (Use(1, benefit),), 0, 10)
        for i, (size, benefit) in enumerate([(6, 90), (5, 70), (5, 69), (4, 1)])
    ),
    capacity_bytes=10,
)


def units(problem: MemoryProblem) -> int:
    return unit_bytes(problem, SHAPE.units)


def played_by_reference(problem: MemoryProblem, actions: tuple[int, ...]) -> int:
    game = ReferenceOrder(problem, SHAPE.units, units(problem), SHAPE.buffers)
    return sum(game.step(action) for action in actions)


@functools.cache
def small_problems() -> list[MemoryProblem]:
    rng = np.random.default_rng(17)
    shape = RandomShape(4, uses=3, residual=0.6, contention=(0.2, 0.6))
    return [random_problem(rng, shape) for _ in range(4)]


def best_of_all_orders(problem: MemoryProblem) -> float:
    count = len(problem.buffers)
    eagerness = list(itertools.product(range(3), repeat=count))
    orders = list(itertools.permutations(range(count)))
    pairs = np.array([(o, e) for o in orders for e in eagerness], np.int32)
    return float(GameScore(OrderGame(), pad(problem, SHAPE))(pairs[:, 0], pairs[:, 1]).max())


def best_of_all_mappings(problem: MemoryProblem) -> int:
    """Every sequence of legal actions, in plain Python."""

    def deepest(actions: tuple[int, ...]) -> int:
        game = ReferenceMapping(problem, SHAPE.units, units(problem))
        gained = sum(game.step(action) for action in actions)
        if game.is_over():
            return gained
        return max(deepest((*actions, a)) for a, legal in enumerate(game.legal()) if legal)

    return deepest(())


def test_score_is_what_plain_python_gains() -> None:
    rng = np.random.default_rng(0)
    for problem in small_problems():
        count = len(problem.buffers)
        orders = rng.permuted(np.tile(np.arange(count), (40, 1)), axis=1)
        eagerness = rng.integers(3, size=(40, count))
        scores = GameScore(OrderGame(), pad(problem, SHAPE))(orders, eagerness)
        for order, eager, score in zip(orders, eagerness, scores, strict=True):
            actions = tuple(int(3 * buffer + eager[buffer]) for buffer in order)
            assert played_by_reference(problem, actions) == score


def test_agents_find_what_the_compilers_order_misses() -> None:
    padded = pad(GREEDY_FAILS, SHAPE)
    score = GameScore(OrderGame(), padded)
    order = baselines.by_benefit(GREEDY_FAILS)
    assert score(np.array([order]), np.zeros((1, 4), int)) == [91]
    found = hill_climbing(Start([order]), score, budget=200)
    assert found.candidates[0].score == 139

    network = order_network()
    agent = AlphaZero(OrderGame(), network.config, SearchSettings(8, 4))
    played = best_episodes(agent, padded, PLAY, params=network.params)
    best = candidate_of(played.episodes[0], 4)
    assert best.score == 139 == played_by_reference(GREEDY_FAILS, played.episodes[0].actions)
    assert score(np.array([best.order]), np.array([best.eagerness])) == [139]


def test_order_player_reaches_the_best_of_all_orders() -> None:
    network = order_network()
    agent = AlphaZero(OrderGame(), network.config, SearchSettings(8, 4))
    for problem in small_problems():
        played = best_episodes(agent, pad(problem, SHAPE), PLAY, params=network.params)
        assert played.episodes[0].return_ns == best_of_all_orders(problem) > 0


def test_mapping_player_reaches_the_best_of_all_mappings() -> None:
    config = NetworkConfig(width=8, layers=1, marked_feature=MAPPING_MARK)
    agent = AlphaZero(MappingGame(), config, SearchSettings(8, 3))
    for problem in small_problems():
        played = best_episodes(agent, pad(problem, SHAPE), PLAY)
        assert played.episodes[0].return_ns == best_of_all_mappings(problem) > 0


def test_the_mark_is_on_the_buffer_to_decide() -> None:
    problem = small_problems()[0]
    padded, game = pad(problem, SHAPE), MappingGame()
    state = jax.jit(game.reset)(padded)
    observe = jax.jit(game.observe)
    for number in range(problem.use_count):
        seen = observe(padded, state.replace(decision=jnp.int32(number)))
        marks = list(seen.buffers[:, MAPPING_MARK])
        assert marks == [n == padded.decision_buffer[number] for n in range(SHAPE.buffers)]


def test_shipped_network_reads_what_the_order_game_shows() -> None:
    padded = pad(GREEDY_FAILS, SHAPE)
    game = OrderGame()
    seen = jax.eval_shape(lambda: game.observe(padded, game.reset(padded)))
    order_network().check_fits(seen)
