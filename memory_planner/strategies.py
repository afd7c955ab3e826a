"""Ways to propose orders for the compiler, each within the same number of screened compilations.

Some only ask the compiler; the agents play the order game first, as often as they like, and ask the
compiler about their best games.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from memory_planner.agents import baselines, local_search
from memory_planner.agents.alphazero import AlphaZero, SearchSettings
from memory_planner.agents.best_episodes import PlaySettings, best_episodes
from memory_planner.agents.candidates import Candidate
from memory_planner.agents.game_score import GameScore, candidate_of
from memory_planner.agents.muzero import MuZero
from memory_planner.agents.network import NetworkConfig
from memory_planner.agents.stored_network import order_network
from memory_planner.evaluation import Trial
from memory_planner.games.order import OrderGame
from memory_planner.padding import PaddedProblem, pad
from memory_planner.session import Session

# Of the compilations that an agent may ask for, those that go to its own games; the rest improves
# the best of them by small changes, which the game has no say in.
_GAMES_SHARE = 0.5
_MUTATION_BATCH = 4
# The game is not the compiler: where they disagree, an order that a person would try may win.
_SEEDS = 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to try.

    Attributes:
      assignments: compilations to screen.
      episodes: games for an agent to play.
      seconds: after which an agent stops playing; None: all episodes, whatever it takes.
      seed: of all chance.
    """

    assignments: int = 40
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
    trials: list[Trial] = []
    score = session.score(method, trials)
    share = max(1, int(settings.assignments * _GAMES_SHARE))
    seeds = (_own_order(session), *fixed[: min(_SEEDS, share // 4)])
    scored = [(_ask(score, c), c) for c in (*games[: max(1, share - len(seeds))], *seeds)]
    best = max(scored, key=lambda pair: pair[0])[1]
    _refine(settings, score, best, trials, game)
    return trials


def _own_order(session: Session) -> Candidate:
    """What the compiler does by itself."""
    return Candidate(tuple(range(session.count)), (0,) * session.count, 0.0)


def _ask(score: Callable[[np.ndarray, np.ndarray], np.ndarray], candidate: Candidate) -> float:
    orders = np.array([candidate.order], np.int32)
    return float(score(orders, np.array([candidate.eagerness], np.int32))[0])


def _refine(
    settings: Settings,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    best: Candidate,
    trials: list[Trial],
    game: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    """Neighbours of the best, those first that the game likes, while there is budget."""
    rng = np.random.default_rng(settings.seed)
    order, eagerness = np.array(best.order), np.array(best.eagerness)
    value = max((-t.screened.total for t in trials if t.screened is not None), default=-np.inf)
    while len(trials) < settings.assignments:
        count = min(_MUTATION_BATCH, settings.assignments - len(trials))
        pairs = [_changed(rng, order, eagerness) for _ in range(8 * count)]
        orders = np.array([p[0] for p in pairs], np.int32)
        eager = np.array([p[1] for p in pairs], np.int32)
        chosen = np.argsort(-game(orders, eager), kind="stable")[:count]
        values = score(orders[chosen], eager[chosen])
        top = int(np.argmax(values))
        if values[top] >= value:
            value, order, eagerness = values[top], orders[chosen[top]], eager[chosen[top]]


def _changed(
    rng: np.random.Generator, order: np.ndarray, eagerness: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One to four small changes."""
    step = functools.partial(local_search.neighbour, rng, flip_chance=0.2)
    for _ in range(rng.integers(1, 5)):
        order, eagerness = step(order, eagerness)
    return order, eagerness
