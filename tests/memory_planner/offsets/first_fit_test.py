from memory_planner.offsets import Buffer, OffsetProblem
from memory_planner.offsets.first_fit import climb, first_fit
from memory_planner.offsets.search_state import Packing, packing
from memory_planner.offsets.sections import cliques, partitions
from tests.memory_planner.offsets.instances import problem


def packed(of: OffsetProblem) -> Packing:
    (partition,) = partitions(cliques(of))
    return packing(of, partition, 100)


def test_each_lies_as_low_as_those_before_it_allow() -> None:
    rows = problem((0, 4, 2), (2, 6, 2), (4, 8, 2), (0, 8, 2))
    fit = first_fit(packed(rows), [0, 1, 2, 3], [False] * 4)
    assert fit.offset.tolist() == [0, 2, 0, 4]
    assert fit.height == 6


def test_holes_are_filled_where_they_are_large_enough() -> None:
    rows = problem((0, 2, 4), (0, 9, 2), (3, 9, 5), (3, 9, 4))
    fit = first_fit(packed(rows), [0, 1, 2, 3], [False] * 4)
    assert fit.offset.tolist() == [0, 4, 6, 0]
    assert fit.height == 11


def test_alignment_and_fixed_offsets_are_kept() -> None:
    of = OffsetProblem(
        (Buffer("a", 0, 9, 3), Buffer("b", 0, 9, 3, alignment=4), Buffer("c", 0, 9, 2, offset=6))
    )
    fit = first_fit(packed(of), [0, 1, 2], [False, False, True])
    assert fit.offset.tolist() == [0, 8, 6]
    assert fit.height == 11


def test_climbing_finds_a_better_order_and_stops_where_it_is_told() -> None:
    rows = packed(problem((0, 2, 2), (1, 4, 2), (3, 6, 2), (0, 6, 1), (5, 8, 3)))
    worst = first_fit(rows, [0, 1, 2, 3, 4], [False] * 5)
    best = climb(rows, worst, [False] * 5, 100, lambda height: False)
    assert (worst.height, best.height) == (8, 6)
    assert climb(rows, worst, [False] * 5, 100, lambda height: height <= 8) is worst
    assert climb(rows, worst, [False] * 5, 0, lambda height: False) is worst
