import itertools
import random

import pytest

from memory_planner.offsets.orders import Measures, before, random_orders
from memory_planner.offsets.sections import cliques, partitions
from tests.memory_planner.offsets.instances import problem

# Lifetimes 10, 2, 6; sizes 1, 9, 2; largest loads 10, 10, 3.
THREE = problem((0, 10, 1), (0, 2, 9), (4, 10, 2))


@pytest.fixture
def measures() -> Measures:
    (partition,) = partitions(cliques(THREE))
    return Measures(THREE, partition)


@pytest.mark.parametrize(
    ("letters", "order"),
    [("W", [0, 2, 1]), ("Z", [1, 2, 0]), ("AW", [1, 2, 0]), ("TZ", [1, 0, 2]), ("TW", [0, 1, 2])],
)
def test_named_orders(measures: Measures, letters: str, order: list[int]) -> None:
    assert measures.named(letters) == order


def test_random_orders_differ_and_are_always_the_same(measures: Measures) -> None:
    first, again = (list(itertools.islice(random_orders(measures), 20)) for _ in range(2))
    assert first == again
    assert all(sorted(order) == [0, 1, 2] for order in first)
    assert len({tuple(order) for order in first}) > 2


def test_before_moves_one_forward() -> None:
    rng = random.Random(0)
    moved = {tuple(before([3, 1, 2, 0], 2, rng)) for _ in range(50)}
    assert moved == {(2, 3, 1, 0), (3, 2, 1, 0)}
    assert before([3, 1], 3, rng) == [3, 1]
