"""Orders without search, on a problem in which all of them differ."""

import numpy as np
import pytest

from memory_planner.agents.baselines import ORDERS, fixed_orders, total_benefit_ns
from memory_planner.problem import Buffer, MemoryProblem, Operation, Use

OPERATIONS = tuple(Operation(f"op{t}", 100, 10, 50, repeats=1 + (t == 2)) for t in range(6))
PROBLEM = MemoryProblem(
    "four",
    OPERATIONS,
    (
        Buffer("weights", 400, 0, (Use(2, 30), Use(5, 20)), 0, 9, starts_in_hbm=True),  # 80
        Buffer("bias", 1, 0, (Use(3, 5),), 0, 1, starts_in_hbm=True),  # 5
        Buffer("fusion.7", 100, 1, (Use(2, 25),), 20, 3),  # 70
        Buffer("convolution.1", 100, 3, (Use(4, 10),), 11, 3),  # 21
    ),
    capacity_bytes=400,
)


def test_benefit_counts_repeats_and_the_definition() -> None:
    benefits = [total_benefit_ns(PROBLEM, buffer) for buffer in PROBLEM.buffers]
    assert benefits == [80, 5, 70, 21]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("benefit", (2, 1, 0, 3)),  # 7, 5, 4, 2.1
        ("density", (1, 2, 3, 0)),  # 1.25, 0.35, 0.105, 0.033
        ("size", (0, 2, 3, 1)),
        ("size ascending", (1, 2, 3, 0)),
        ("lifetime", (2, 3, 1, 0)),
        ("begin", (0, 1, 2, 3)),
        ("parameters first", (1, 0, 2, 3)),
        ("results first", (2, 3, 1, 0)),
        ("fusions last", (1, 0, 3, 2)),
    ],
)
def test_order(name: str, order: tuple[int, ...]) -> None:
    assert ORDERS[name](PROBLEM) == order


def test_all_orders_are_scored_once_each() -> None:
    rows: list[tuple[int, ...]] = []

    def score(orders: np.ndarray, eagerness: np.ndarray) -> np.ndarray:
        rows.extend(map(tuple, orders))
        assert not eagerness.any()
        return -orders[:, 0].astype(float)

    found = fixed_orders(PROBLEM, score)
    assert sorted(rows) == sorted({order(PROBLEM) for order in ORDERS.values()})
    assert found.candidates[0].order == (0, 2, 3, 1) and found.calls == len(rows)
