"""Ways to propose orders for the compiler, each within the same number of screened compilations.

Some only ask the compiler; the agents play the order game first, as often as they like, and ask the
compiler about their best games.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from memory_planner.agents import baselines, local_search
from memory_planner.agents.alphazero import AlphaZero, SearchSettings
from memory_planner.agents.best_episodes import PlaySettings, best_episodes
from memory_planner.agents.candidates import EAGERNESS_CHOICES, Candidate
from memory_planner.agents.game_score import GameScore, candidate_of
from memory_planner.agents.muzero import MuZero
from memory_planner.agents.network import NetworkConfig
from memory_planner.agents.stored_network import order_network
from memory_planner.edit_search import Limits, edit_search
from memory_planner.evaluation import Trial
from memory_planner.games.order import OrderGame
from memory_planner.padding import PaddedProblem, pad
from memory_planner.session import Session


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to try.

    Attributes:
      assignments: compilations to screen.
      compiles: whole compilations of candidates, which only agents ask for as they search.
      episodes: games for an agent to play.
      seconds: after which an agent stops playing; None: all episodes, whatever it takes.
      seed: of all chance.
    """

    assignments: int = 40
    compiles: int = 4
    episodes: int = 256
    seconds: float | None = 120.0
    seed: int = 0


Strategy = Callable[[Session, Settings], list[Trial]]


def fixed_orders(session: Session, settings: Settings) -> list[Trial]:
    """Orders that a person would try first."""
    trials: list[Trial] = []
    score = session.score("fixed orders", trials)
    problem = session.extracted.problem
    orders = [order(problem) for order in baselines.ORDERS.values()][: settings.assignments]
    score(np.array(orders, np.int32), np.zeros((len(orders), session.count), np.int32))
    return trials


def random_orders(session: Session, settings: Settings) -> list[Trial]:
    """Random orders."""
    trials: list[Trial] = []
    score = session.score("random", trials)
    baselines.random_orders(
        session.count, score, budget=settings.assignments, batch=8, seed=settings.seed
    )
    return trials


def hill_climbing(session: Session, settings: Settings) -> list[Trial]:
    """Small changes of the compiler's own order."""
    trials: list[Trial] = []
    start = local_search.Start([tuple(range(session.count))])
    local_search.hill_climbing(
        start, session.score("hill climbing", trials), budget=settings.assignments, batch=4,
        seed=settings.seed,
    )  # fmt: skip
    return trials


def evolution(session: Session, settings: Settings) -> list[Trial]:
    """Mutation and crossover, from the compiler's own order and fixed ones."""
    trials: list[Trial] = []
    problem = session.extracted.problem
    orders = [tuple(range(session.count)), *(f(problem) for f in baselines.ORDERS.values())]
    population = max(4, settings.assignments // 4)
    local_search.evolution(
        local_search.Start(orders[:population]), session.score("evolution", trials),
        budget=settings.assignments, population=population, seed=settings.seed,
    )  # fmt: skip
    return trials


def alphazero(session: Session, settings: Settings) -> list[Trial]:
    """Gumbel AlphaZero on the order game, from the network that is shipped, then small changes."""
    network, game = order_network(), OrderGame()
    padded = pad(session.extracted.problem)
    network.check_fits(game.observe(padded, game.reset(padded)))
    agent = AlphaZero(game, network.config, SearchSettings())
    return _played(session, settings, "alphazero", agent, padded, network.params)


def muzero(session: Session, settings: Settings) -> list[Trial]:
    """The same with a learned model of the game, from nothing: the ablation."""
    agent = MuZero(OrderGame(), NetworkConfig(), SearchSettings())
    return _played(session, settings, "muzero", agent, pad(session.extracted.problem), None)


STRATEGIES: dict[str, Strategy] = {
    "fixed orders": fixed_orders,
    "random": random_orders,
    "hill climbing": hill_climbing,
    "evolution": evolution,
    "alphazero": alphazero,
    "muzero": muzero,
}


def _played(
    session: Session,
    settings: Settings,
    method: str,
    agent: AlphaZero | MuZero,
    padded: PaddedProblem,
    params: object,
) -> list[Trial]:
    play = PlaySettings(
        episodes=settings.episodes, seconds=settings.seconds, keep=4 * settings.assignments
    )
    played = best_episodes(agent, padded, play, params=params, seed=settings.seed)
    # Equal returns are mostly one mapping: the compiler is asked about one of each.
    distinct = {episode.return_ns: episode for episode in reversed(played.episodes)}
    games = [candidate_of(distinct[r], session.count) for r in sorted(distinct, reverse=True)]
    game = GameScore(OrderGame(), padded)
    fixed = baselines.fixed_orders(session.extracted.problem, game).candidates
    limits = Limits(settings.assignments, settings.compiles, settings.seed)
    # The game is not the compiler: where they disagree, an order that a person would try may win,
    # or any.
    chance = _random_candidates(session.count, settings)
    mixed = itertools.zip_longest(games, fixed, chance)
    starts = [c for candidates in mixed for c in candidates if c is not None]
    return edit_search(session, method, starts, limits)


def _random_candidates(count: int, settings: Settings) -> list[Candidate]:
    rng = np.random.default_rng(settings.seed)
    return [
        Candidate(
            tuple(map(int, rng.permutation(count))),
            tuple(map(int, rng.integers(EAGERNESS_CHOICES, size=count))),
            -np.inf,
        )
        for _ in range(settings.assignments)
    ]
