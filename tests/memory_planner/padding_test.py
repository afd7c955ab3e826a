"""Problems as arrays: rounding, order of the decisions, and what does not fit."""

import dataclasses

import numpy as np
import pytest

from memory_planner.errors import MemoryPlannerError
from memory_planner.padding import BUCKETS, PaddedShape, bucket, pad, stack, unit_bytes
from memory_planner.problem import MemoryProblem, Use
from tests.memory_planner.small_problems import buffer, operation, problem

SHAPE = PaddedShape(buffers=3, operations=40, uses=2, decisions=5, units=4)


def test_memory_is_counted_in_units_that_keep_the_alignment() -> None:
    padded = pad(
        problem(
            buffer("a", 0, 1, size=1),
            buffer("b", 0, 1, size=17),
            operations=(operation(), operation(reserved=10)),
            capacity=60,
            alignment=8,
        ),
        SHAPE,
    )
    assert padded.unit_bytes == 16  # 15 bytes would do, but for the alignment
    assert padded.size_units[:2].tolist() == [1, 2]
    # 60 bytes are three whole units, and 50 are three too; padding has none.
    assert padded.limit_units[:3].tolist() == [3, 3, 0]
    bits = (padded.reserved[:, None] >> np.arange(32)[:, None] & 1).reshape(-1, 4)
    assert bits[:3].tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
    assert padded.demand_units[:3].tolist() == [3, 3, 0]
    assert padded.shape == SHAPE


def test_a_buffer_larger_than_memory_is_one_unit_larger() -> None:
    padded = pad(problem(buffer("a", 0, 1, size=1 << 40)), SHAPE)
    assert padded.size_units[0] == SHAPE.units + 1


def test_decisions_are_in_order_of_time_then_of_buffers() -> None:
    padded = pad(problem(buffer("a", 0, 2, 4), buffer("b", 1, 2), buffer("c", 0, 1)), SHAPE)
    assert padded.decision_count == 4
    assert padded.decision_buffer[:4].tolist() == [2, 0, 1, 0]
    assert padded.decision_use[:4].tolist() == [0, 0, 0, 1]


def test_possible_gain_stops_at_the_floor() -> None:
    operations = (operation(), operation(repeats=3), operation(slow_ns=100, floor_ns=70))
    a = buffer("a", 0, 1, 2)
    b = buffer("b", 0, 2, starts=True, benefit_ns=50)  # an input: nobody writes it
    assert pad(problem(a, b, operations=operations), SHAPE).possible_ns == 5 + 3 * 20 + 30


def test_a_buffer_without_uses_is_no_part_of_the_game() -> None:
    padded = pad(problem(buffer("a", 0), buffer("b", 0, 1)), SHAPE)
    assert padded.is_buffer.tolist() == [False, True, False]


def test_the_smallest_bucket_that_holds_it() -> None:
    assert bucket(problem(buffer("a", 0, 1))) == BUCKETS[0]
    assert bucket(problem(*[buffer("a", 0, 1)] * 17)) == BUCKETS[1]
    assert bucket(problem(buffer("a", 0, *range(1, 10)), operations=10)) == BUCKETS[3]
    with pytest.raises(MemoryPlannerError, match=r"has 5000 buffers.*least benefit"):
        bucket(problem(*[buffer("a", 0, 1)] * 5000))


def test_stacked_problems_have_one_shape() -> None:
    one, other = pad(problem(buffer("a", 0, 1)), SHAPE), pad(problem(buffer("b", 0, 2)), SHAPE)
    both = stack([one, other])
    assert both.use_time[:, 0, 0].tolist() == [1, 2]
    assert both.shape == SHAPE
    with pytest.raises(MemoryPlannerError, match="2 shapes cannot be stacked"):
        stack([one, pad(problem(buffer("a", 0, 1)))])


def test_units_of_a_tiny_memory_are_single_bytes() -> None:
    assert unit_bytes(problem(capacity=3), 512) == 1


def broken(number: int) -> MemoryProblem:
    """Problems that no game can hold."""
    good = problem(buffer("a", 0, 1))
    disorderly = dataclasses.replace(good.buffers[0], uses=(Use(3, 1), Use(2, 1)))
    return (
        problem(*[buffer("a", 0, 1)] * 4),
        problem(buffer("a", 0, 1), operations=(operation(slow_ns=2**30),) * 2),
        problem(buffer("a", 0, 1, copy_ns=2**30)),
        dataclasses.replace(good, buffers=(disorderly,)),
        problem(buffer("a", 3, 2)),
        problem(buffer("a", 0, 6)),
        problem(buffer("a", 0, 1), operations=(operation(slow_ns=5, floor_ns=6),) * 2),
        problem(buffer("a", 0, 1), capacity=3, alignment=8),
    )[number]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, "has 4 buffers.*too many for a game of 3 buffers"),
        (1, "the step: 2147483648 ns does not fit int32"),
        (2, "twice the longest copy: 2147483648 ns"),
        (3, r"used at \[3, 2\]: uses must ascend"),
        (4, r"begins at 3 and is used at \[2\]"),
        (5, "lives until 7, but there are 6 operations"),
        (6, "floor_ns=6, but slow_ns=5"),
        (7, "capacity of 3 bytes is below the alignment of 8"),
    ],
)
def test_what_does_not_fit_is_named(number: int, message: str) -> None:
    with pytest.raises(MemoryPlannerError, match=message):
        pad(broken(number), SHAPE)


def test_too_many_units_and_operations_are_refused() -> None:
    shape = dataclasses.replace(SHAPE, units=2**20, operations=2**12)
    with pytest.raises(MemoryPlannerError, match="too many of both"):
        pad(problem(buffer("a", 0, 1)), shape)
