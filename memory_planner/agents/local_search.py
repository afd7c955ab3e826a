"""Searches over orders by small changes: hill climbing, and evolution with crossover.

Both are deterministic for a seed, and count every candidate that the objective is asked about.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from memory_planner.agents.candidates import EAGERNESS_CHOICES, Found, Ledger, Score


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a search begins.

    Attributes:
      orders: permutations of the buffers' numbers; at least one.
      flip_chance: how often a change is of an eagerness instead of the order.
    """

    orders: Sequence[Sequence[int]]
    flip_chance: float = 0.3

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Orders int32[S, n], and the default eagerness for each."""
        orders = np.array(self.orders, np.int32)
        return orders, np.zeros_like(orders)


def neighbour(
    rng: np.random.Generator, order: np.ndarray, eagerness: np.ndarray, flip_chance: float
) -> tuple[np.ndarray, np.ndarray]:
    """One change: two buffers swapped, one moved elsewhere, or one's eagerness changed.

    Args:
      rng: of the chance.
      order: int[n].
      eagerness: int[n].
      flip_chance: of the last kind; the other two share the rest.
    """
    order, eagerness, count = order.copy(), eagerness.copy(), len(order)
    if count < 2 or rng.random() < flip_chance:
        buffer = rng.integers(count)
        eagerness[buffer] = (eagerness[buffer] + rng.integers(1, EAGERNESS_CHOICES)) % (
            EAGERNESS_CHOICES
        )
        return order, eagerness
    first, second = rng.choice(count, size=2, replace=False)
    if rng.random() < 0.5:
        order[[first, second]] = order[[second, first]]
    else:
        order = np.insert(np.delete(order, first), second, order[first])
    return order, eagerness


def hill_climbing(
    start: Start,
    score: Score,
    *,
    budget: int,
    batch: int = 8,
    patience: int = 20,
    seed: int = 0,
    keep: int = 16,
) -> Found:
    """Climbs from the best start; the best of a batch of neighbours is taken if it is no worse.

    Equal scores are taken, too, as many orders give the same mapping. After `patience` batches
    without a better score it goes on from the best candidate, changed in several places.

    Args:
      start: where from.
      score: the objective.
      budget: candidates to score, the starts included.
      batch: neighbours in one call of `score`.
      patience: batches without a better score before a restart.
      seed: of the chance.
      keep: candidates to return, at most.
    """
    rng, ledger = np.random.default_rng(seed), Ledger(score, budget, keep)
    orders, eagerness = start.arrays()
    values = ledger.score(orders, eagerness)
    first = int(np.argmax(values))
    order, eager, value = orders[first], eagerness[first], values[first]
    best, stale, fruitless = (order, eager, value), 0, 0
    while ledger.left > 0 and fruitless < 10 * patience:
        calls = ledger.calls
        pairs = [neighbour(rng, order, eager, start.flip_chance) for _ in range(batch)]
        values = ledger.score(np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs]))
        # With few buffers every neighbour may be known already.
        fruitless = fruitless + 1 if ledger.calls == calls else 0
        top = int(np.argmax(values))
        stale = 0 if values[top] > value else stale + 1
        if values[top] >= value:
            (order, eager), value = pairs[top], values[top]
        if value > best[2]:
            best = (order, eager, value)
        if stale >= patience:
            order, eager, stale = best[0], best[1], 0
            for _ in range(3):
                order, eager = neighbour(rng, order, eager, start.flip_chance)
            value = ledger.score(order[None], eager[None])[0]
    return ledger.found()


def order_crossover(rng: np.random.Generator, mother: np.ndarray, father: np.ndarray) -> np.ndarray:
    """A stretch of the mother's order in its place, around it the others in the father's order.

    OX1 of "Applying Adaptive Algorithms to Epistatic Domains" (Davis; 1985).

    Args:
      rng: of the chance.
      mother: int[n], a permutation.
      father: int[n], one of the same numbers.
    """
    low, high = np.sort(rng.integers(len(mother) + 1, size=2))
    kept = mother[low:high]
    others = father[~np.isin(father, kept)]
    return np.concatenate([others[:low], kept, others[low:]])


@dataclasses.dataclass(frozen=True)
class _Population:
    orders: np.ndarray
    eagerness: np.ndarray
    scores: np.ndarray

    def chosen(self, places: Sequence[int]) -> "_Population":
        return _Population(self.orders[places], self.eagerness[places], self.scores[places])


def _child(
    rng: np.random.Generator, parents: _Population, flip_chance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Crossover of two winners of tournaments of three, and a change or two."""
    pair = []
    for _ in range(2):
        entrants = rng.integers(len(parents.scores), size=3)
        pair.append(int(entrants[np.argmax(parents.scores[entrants])]))
    mother, father = pair
    order = order_crossover(rng, parents.orders[mother], parents.orders[father])
    from_mother = rng.random(len(order)) < 0.5
    eager = np.where(from_mother, parents.eagerness[mother], parents.eagerness[father])
    for _ in range(rng.integers(1, 3)):
        order, eager = neighbour(rng, order, eager, flip_chance)
    return order, eager


def evolution(
    start: Start,
    score: Score,
    *,
    budget: int,
    population: int = 16,
    seed: int = 0,
    keep: int = 16,
) -> Found:
    """Evolves orders: each generation the best of parents and children live on.

    Args:
      start: members of the first generation, which changed copies of them fill up.
      score: the objective.
      budget: candidates to score.
      population: members, and children in one call of `score`.
      seed: of the chance.
      keep: candidates to return, at most.
    """
    rng, ledger = np.random.default_rng(seed), Ledger(score, budget, keep)
    orders, eagerness = start.arrays()
    members = list(zip(orders, eagerness, strict=True))[:population]
    while len(members) < population:
        one = members[len(members) % len(orders)]
        for _ in range(1 + len(orders[0]) // 4):
            one = neighbour(rng, *one, start.flip_chance)
        members.append(one)
    parents, fruitless = _scored(ledger, members), 0
    while ledger.left > 0 and fruitless < 50:
        calls = ledger.calls
        children = _scored(
            ledger, [_child(rng, parents, start.flip_chance) for _ in range(population)]
        )
        fruitless = fruitless + 1 if ledger.calls == calls else 0
        parents = _survivors(parents, children, population)
    return ledger.found()


def _scored(ledger: Ledger, members: Sequence[tuple[np.ndarray, np.ndarray]]) -> _Population:
    orders = np.stack([order for order, _ in members])
    eagerness = np.stack([eager for _, eager in members])
    return _Population(orders, eagerness, ledger.score(orders, eagerness))


def _survivors(parents: _Population, children: _Population, count: int) -> _Population:
    """The best distinct ones; the younger of equals, so that plateaus are crossed."""
    both = _Population(
        np.concatenate([children.orders, parents.orders]),
        np.concatenate([children.eagerness, parents.eagerness]),
        np.concatenate([children.scores, parents.scores]),
    )
    seen: set[bytes] = set()
    places: list[int] = []
    for place in map(int, np.argsort(-both.scores, kind="stable")):
        key = both.orders[place].tobytes() + both.eagerness[place].tobytes()
        if key not in seen and len(places) < count:
            seen.add(key)
            places.append(place)
    return both.chosen(places)
