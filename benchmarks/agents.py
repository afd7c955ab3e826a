"""Players and searches on held-out random problems of the order game, at equal numbers of orders.

  python -m benchmarks.agents
  python -m benchmarks.agents --network=runs/order_player/network.npz --episodes=512

Every method may score the same number of orders of each problem; an episode of a player is one. A
player also looks ahead in its game (`--simulations` steps a move), which costs no compilation: the
column of game steps has all of them. Returns are given relative to the best that any method found
of the problem. The compiler's order is what it does today; the fixed orders are all of `baselines`.

  python -m benchmarks.agents --bar

100 random problems with up to 12 uses: in how many the player reaches the optimum of the mapping
game, and of the order game, which are found by trying everything. The bar is 95% of them.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from memory_planner import exhaustive
from memory_planner.agents import baselines, local_search
from memory_planner.agents.alphazero import AlphaZero, SearchSettings
from memory_planner.agents.best_episodes import PlaySettings, best_episodes
from memory_planner.agents.game_score import GameScore
from memory_planner.agents.learner import Agent, LearningSettings
from memory_planner.agents.muzero import MuZero
from memory_planner.agents.network import MAPPING_MARK, NetworkConfig
from memory_planner.agents.random_batches import HELD_OUT, RandomBatches
from memory_planner.agents.stored_network import StoredNetwork, load_network, order_network
from memory_planner.games.mapping import MappingGame
from memory_planner.games.order import OrderGame
from memory_planner.padding import PaddedShape, pad
from memory_planner.problem import MemoryProblem
from memory_planner.problems_random import RandomShape, random_problem

SMALL_USES = range(3, 13)
SMALL = PaddedShape(buffers=7, operations=8, uses=5, decisions=12, units=64)


@dataclasses.dataclass(frozen=True)
class Result:
    """Of one method on one problem.

    Attributes:
      return_ns: the best.
      orders: that were scored.
      game_steps: that were played in all, those of looking ahead included.
      seconds: that it took, without compilation if the same ran before.
    """

    return_ns: float
    orders: int
    game_steps: int
    seconds: float


Method = Callable[[MemoryProblem], Result]


@dataclasses.dataclass(frozen=True)
class Methods:
    """Everything that is compared, at one budget.

    Attributes:
      shape: that problems are padded to.
      episodes: orders that each may score.
      simulations: of a player's search.
      network: that the player begins with.
      seed: of all chance.
    """

    shape: PaddedShape
    episodes: int
    simulations: int
    network: StoredNetwork
    seed: int

    def all(self) -> Mapping[str, Method]:
        """Methods by name."""
        config, search = self.network.config, SearchSettings(self.simulations)
        alphazero = AlphaZero(OrderGame(), config, search)
        muzero = MuZero(OrderGame(), config, search)
        return {
            "compiler's order": self._default,
            "fixed orders": self._search("fixed"),
            "random": self._search("random"),
            "hill climbing": self._search("climb"),
            "evolution": self._search("evolve"),
            "AlphaZero, trained": functools.partial(self._play, alphazero, self.network.params),
            "AlphaZero, untrained": functools.partial(self._play, alphazero, None),
            "MuZero": functools.partial(self._play, muzero, None),
        }

    def _default(self, problem: MemoryProblem) -> Result:
        began = time.monotonic()
        order = np.array([baselines.by_benefit(problem)], np.int32)
        score = GameScore(OrderGame(), pad(problem, self.shape))
        gained = score(order, np.zeros_like(order))[0]
        return Result(gained, 1, len(problem.buffers), time.monotonic() - began)

    def _search(self, kind: str) -> Method:
        def run(problem: MemoryProblem) -> Result:
            began = time.monotonic()
            count = len(problem.buffers)
            score = GameScore(OrderGame(), pad(problem, self.shape))
            start = local_search.Start([baselines.by_benefit(problem), baselines.by_size(problem)])
            budget, seed = self.episodes, self.seed
            if kind == "fixed":
                found = baselines.fixed_orders(problem, score)
            elif kind == "random":
                found = baselines.random_orders(count, score, budget=budget, seed=seed)
            elif kind == "climb":
                found = local_search.hill_climbing(start, score, budget=budget, seed=seed)
            else:
                found = local_search.evolution(start, score, budget=budget, seed=seed)
            best = found.candidates[0].score
            return Result(best, found.calls, found.calls * count, time.monotonic() - began)

        return run

    def _play(self, agent: Agent, params: Any, problem: MemoryProblem) -> Result:
        began = time.monotonic()
        padded = pad(problem, self.shape)
        learning = LearningSettings(replay_capacity=4096)
        settings = PlaySettings(self.episodes, lanes=min(32, self.episodes), learning=learning)
        played = best_episodes(agent, padded, settings, params=params, seed=self.seed)
        # A model that is learnt takes no steps of the game to look ahead.
        ahead = self.simulations if isinstance(agent, AlphaZero) else 0
        steps = played.count * len(problem.buffers) * (1 + ahead)
        best = played.episodes[0].return_ns
        return Result(best, played.count, steps, time.monotonic() - began)


def compare(methods: Mapping[str, Method], problems: list[MemoryProblem]) -> None:
    """Prints one row for each method."""
    results: dict[str, list[Result]] = {name: [] for name in methods}
    for number, problem in enumerate(problems):
        for name, method in methods.items():
            results[name].append(method(problem))
        print(f"{number + 1}/{len(problems)}", end="\r", flush=True)
    returns = np.array([[r.return_ns for r in rows] for rows in results.values()])
    best = np.maximum(returns.max(0), 1)
    climbing = returns[list(methods).index("hill climbing")]
    print(f"{len(problems)} problems, {min(len(p.buffers) for p in problems)} to "
          f"{max(len(p.buffers) for p in problems)} buffers")  # fmt: skip
    print(
        f"{'method':22} {'orders':>7} {'game steps':>11} {'of the best':>12} {'worst':>7} "
        f"{'is best':>8} {'>= climbing':>12} {'seconds':>8}"
    )
    for (name, rows), own in zip(results.items(), returns, strict=True):
        share = own / best
        print(
            f"{name:22} {np.mean([r.orders for r in rows]):7.0f} "
            f"{np.mean([r.game_steps for r in rows]):11.0f} {share.mean():12.4f} "
            f"{share.min():7.3f} {int((own >= best).sum()):8d} {int((own >= climbing).sum()):12d} "
            f"{np.median([r.seconds for r in rows]):8.2f}"
        )


def small_problems(count: int) -> list[MemoryProblem]:
    """Random problems of 3 to 7 buffers with 3 to 12 uses, as many of each number of uses."""
    rng = np.random.default_rng(HELD_OUT)
    wanted = {uses: -(-count // len(SMALL_USES)) for uses in SMALL_USES}
    problems: list[MemoryProblem] = []
    while any(wanted.values()):
        shape = RandomShape(
            buffers=int(rng.integers(3, SMALL.buffers + 1)),
            uses=SMALL.uses,
            mirrored=float(rng.uniform(0.5, 1.0)),
            weighted=float(rng.uniform(0.0, 0.5)),
            residual=float(rng.uniform(0.5, 1.0)),
            contention=(0.1, 0.7),
        )
        problem = random_problem(rng, shape, f"small {len(problems)}")
        if wanted.get(problem.use_count):
            wanted[problem.use_count] -= 1
            problems.append(problem)
    return problems[:count]


def optima_reached(agent: Agent, params: Any, settings: PlaySettings, count: int) -> float:
    """Prints and returns in which part of small problems the player reaches the optimum."""
    reached, misses, uses = 0, [], []
    for number, problem in enumerate(small_problems(count)):
        optimum = exhaustive.best(agent.game, problem, SMALL).gain_ns
        played = best_episodes(agent, pad(problem, SMALL), settings, params=params)
        got = played.episodes[0].return_ns
        reached += got == optimum
        uses.append(problem.use_count)
        if got != optimum:
            misses.append(f"{got / optimum:.4f}")
        print(f"{number + 1}/{count}", end="\r", flush=True)
    missed = f"; the others at {', '.join(misses)} of it" if misses else ""
    print(
        f"{type(agent.game).__name__}: optimum reached in {reached} of {count} problems with "
        f"{min(uses)} to {max(uses)} uses{missed}"
    )
    return reached / count


def bar(network: StoredNetwork, count: int) -> None:
    """Both games against their optima."""
    settings = PlaySettings(episodes=128, lanes=32)
    order = AlphaZero(OrderGame(), network.config, SearchSettings())
    config = NetworkConfig(width=32, layers=2, marked_feature=MAPPING_MARK)
    mapping = AlphaZero(MappingGame(), config, SearchSettings(considered=3))
    shares = [
        optima_reached(order, network.params, settings, count),
        optima_reached(mapping, None, settings, count),
    ]
    print(f"bar of 95%: {'met' if min(shares) >= 0.95 else 'MISSED'}")


def main() -> None:
    """The table, or the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bar", action="store_true", help="optima of small problems instead")
    parser.add_argument("--problems", type=int, default=30)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--buffers", type=int, default=32)
    parser.add_argument("--simulations", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--network", type=pathlib.Path, default=None, help="by default the shipped")
    options = parser.parse_args()
    network = load_network(options.network) if options.network else order_network()
    if options.bar:
        bar(network, 100)
        return
    operations = 32 * -(-(options.buffers + 1) // 32)
    shape = PaddedShape(options.buffers, operations, 8, 4 * options.buffers, 128)
    batches = RandomBatches(options.problems, options.buffers // 2, options.buffers, shape)
    methods = Methods(shape, options.episodes, options.simulations, network, options.seed)
    compare(methods.all(), batches.problems(HELD_OUT))


if __name__ == "__main__":
    main()
