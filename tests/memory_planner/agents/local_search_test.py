"""Searches over orders, on objectives whose best order is known."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_planner.agents.baselines import random_orders
from memory_planner.agents.candidates import Found, Score
from memory_planner.agents.local_search import (
    Start,
    evolution,
    hill_climbing,
    neighbour,
    order_crossover,
)

COUNT = 7
TARGET = np.array([3, 1, 6, 0, 5, 2, 4])
EAGER = np.array([0, 1, 2, 0, 1, 2, 0])
START = Start([range(COUNT), range(COUNT)[::-1]])
IDENTITY = tuple(range(COUNT))
Search = Callable[[Score, int, int], Found]


class Closeness:
    """Minus the distance of every place and eagerness to a target's; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __call__(self, orders: np.ndarray, eagerness: np.ndarray) -> np.ndarray:
        for order, eager in zip(orders, eagerness, strict=True):
            self.asked.append((tuple(order), tuple(eager)))
        places = np.argsort(orders, axis=1) - np.argsort(TARGET)[None]
        return -(np.abs(places).sum(1) + (eagerness != EAGER[None]).sum(1)).astype(float)


def climb(score: Score, budget: int, seed: int) -> Found:
    return hill_climbing(START, score, budget=budget, seed=seed, keep=5)


def evolve(score: Score, budget: int, seed: int) -> Found:
    return evolution(START, score, budget=budget, seed=seed, keep=5)


@pytest.mark.parametrize("search", [climb, evolve])
def test_search_finds_the_target_within_its_budget(search: Search) -> None:
    score = Closeness()
    found = search(score, 2000, 0)
    best = found.candidates[0]
    assert best.order == tuple(TARGET) and best.eagerness == tuple(EAGER) and best.score == 0
    assert len(score.asked) == found.calls <= 2000
    assert len(set(score.asked)) == found.calls, "nothing is paid for twice"
    scores = [candidate.score for candidate in found.candidates]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("search", [climb, evolve])
def test_search_is_the_same_for_a_seed_and_keeps_to_small_budgets(search: Search) -> None:
    assert search(Closeness(), 40, 1) == search(Closeness(), 40, 1)
    assert search(Closeness(), 40, 1) != search(Closeness(), 40, 2)
    for budget in (1, 3, 17):
        assert search(Closeness(), budget, 0).calls == budget
    # The first start is the first to be scored.
    assert search(Closeness(), 1, 0).candidates[0].order == IDENTITY


def test_random_orders_are_permutations_and_worse_than_search() -> None:
    score = Closeness()
    found = random_orders(COUNT, score, budget=300, seed=0, keep=300)
    assert found.calls == len(found.candidates) == 300
    for candidate in found.candidates:
        assert tuple(sorted(candidate.order)) == IDENTITY
        assert set(candidate.eagerness) <= {0, 1, 2}
    assert found.candidates[0].score < climb(Closeness(), 300, 0).candidates[0].score


def test_search_ends_where_there_is_nothing_new() -> None:
    def one_buffer(orders: np.ndarray, eagerness: np.ndarray) -> np.ndarray:
        return eagerness[:, 0].astype(float)

    found = hill_climbing(Start([[0]]), one_buffer, budget=1000)
    assert [c.eagerness for c in found.candidates] == [(2,), (1,), (0,)] and found.calls == 3
    assert evolution(Start([[0]]), one_buffer, budget=1000) == found
    assert random_orders(1, one_buffer, budget=1000) == found


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_changes_and_crossovers_stay_permutations(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mother, father, eager = rng.permutation(count), rng.permutation(count), np.zeros(count, int)
    child = order_crossover(rng, mother, father)
    changed, flipped = neighbour(rng, mother, eager, 0.3)
    assert sorted(child) == sorted(changed) == list(range(count))
    assert (list(changed) == list(mother)) == bool(flipped.any() or count == 1)
    np.testing.assert_array_equal(order_crossover(rng, mother, mother), mother)


def test_crossover_keeps_a_stretch_in_place_and_the_fathers_order_around_it() -> None:
    class Cuts:
        def integers(self, high: int, size: int) -> np.ndarray:
            return np.array([5, 2])

    mother, father = np.array([0, 1, 2, 3, 4, 5, 6]), np.array([6, 4, 2, 0, 5, 3, 1])
    child = order_crossover(Cuts(), mother, father)  # type: ignore[arg-type]
    assert list(child) == [6, 0, 2, 3, 4, 5, 1]
