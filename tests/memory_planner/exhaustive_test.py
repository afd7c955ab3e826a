"""The best episode, against every sequence of moves played in plain Python."""

import itertools

import numpy as np
import pytest

from memory_planner.errors import MemoryPlannerError
from memory_planner.exhaustive import best
from memory_planner.games.mapping import MappingGame
from memory_planner.games.order import OrderGame
from memory_planner.padding import PaddedShape, unit_bytes
from memory_planner.problem import MemoryProblem
from memory_planner.problems_random import RandomShape, random_problem
from memory_planner.validate import validate
from tests.memory_planner.games.reference import ReferenceMapping, ReferenceOrder
from tests.memory_planner.small_problems import buffer, problem

SHAPE = PaddedShape(buffers=8, operations=10, uses=3, decisions=12, units=32)
MAPPING, ORDER = MappingGame(), OrderGame()


def small(seed: int, buffers: int, uses: int) -> MemoryProblem:
    """The first random problem with contention and at most so many uses."""
    rng = np.random.default_rng(seed)
    while True:
        found = random_problem(rng, RandomShape(buffers, uses=3, contention=(0.2, 0.5)))
        if found.use_count <= uses:
            return found


@pytest.mark.parametrize("seed", range(6))
def test_mapping_optimum_is_that_of_every_sequence(seed: int) -> None:
    found = small(seed, 4, 5)
    size = unit_bytes(found, SHAPE.units)
    gains = []
    for actions in itertools.product(range(3), repeat=found.use_count):
        rules = ReferenceMapping(found, SHAPE.units, size)
        gains.append(sum(rules.step(action) for action in actions))
    optimum = best(MAPPING, found, SHAPE)
    assert optimum.gain_ns == max(gains)
    rules = ReferenceMapping(found, SHAPE.units, size)
    assert sum(rules.step(action) for action in optimum.actions) == optimum.gain_ns
    assert validate(found, optimum.mapping) == found.slow_ns - optimum.gain_ns


@pytest.mark.parametrize("seed", range(4))
def test_order_optimum_is_that_of_every_sequence(seed: int) -> None:
    found = small(seed, 3, 5)
    size = unit_bytes(found, SHAPE.units)
    gains = []
    for order in itertools.permutations(range(3)):
        for eagerness in itertools.product(range(3), repeat=3):
            rules = ReferenceOrder(found, SHAPE.units, size, SHAPE.buffers)
            gains.append(sum(rules.step(3 * b + e) for b, e in zip(order, eagerness, strict=True)))
    optimum = best(ORDER, found, SHAPE)
    assert optimum.gain_ns == max(gains)
    assert validate(found, optimum.mapping) == found.slow_ns - optimum.gain_ns


def test_twelve_uses_and_seven_buffers_are_within_reach() -> None:
    found = small(11, 8, 12)
    assert found.use_count >= 10
    assert best(MAPPING, found, SHAPE).states < 3**8
    assert best(ORDER, small(12, 7, 12), SHAPE).gain_ns > 0


def test_a_later_gain_is_worth_waiting_for() -> None:
    """Two that exclude each other: the first to be decided gains less."""
    pair = problem(
        buffer("a", 0, 2, size=8, copy_ns=500), buffer("b", 1, 3, 4, size=8, copy_ns=500)
    )
    optimum = best(MAPPING, pair, SHAPE)
    assert optimum.actions == (2, 0, 0) and optimum.gain_ns == 45


def test_without_uses_there_is_nothing_to_gain() -> None:
    for nothing in (problem(), problem(buffer("a", 0))):
        for game in (MAPPING, ORDER):
            optimum = best(game, nothing, SHAPE)
            assert (optimum.gain_ns, optimum.actions, optimum.mapping.stays) == (0, (), ())


def test_too_many_states_are_refused() -> None:
    with pytest.raises(MemoryPlannerError, match="more than max_states=1"):
        best(MAPPING, small(0, 4, 5), SHAPE, max_states=1)
