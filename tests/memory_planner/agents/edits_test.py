"""Changes of an order: what they do, what is at stake with them, which are tried when."""

import numpy as np
import pytest

from memory_planner.agents.candidates import Candidate
from memory_planner.agents.edits import GROUP, Edit, Kind, Queue, applied, stakes
from memory_planner.problem import Buffer, MemoryMapping, MemoryProblem, Operation, Stay, Use

OWN = Candidate((0, 1, 2), (0, 0, 0), 0.0)


def operation(name: str, repeats: int = 1) -> Operation:
    return Operation(name, slow_ns=100, floor_ns=10, free_ns=50, repeats=repeats)


# 0 is an input that is read twice, the second time in a loop; 1 is made by operation 1; 2 is an
# input that overlaps with 0 only.
PROBLEM = MemoryProblem(
    "three",
    (operation("a"), operation("b"), operation("c", repeats=3), operation("d")),
    (
        Buffer("x", 40, 0, (Use(0, 7), Use(2, 5)), 0, 4, starts_in_hbm=True),
        Buffer("y", 10, 1, (Use(2, 2),), 3, 4),
        Buffer("z", 80, 0, (Use(0, 11),), 0, 4, starts_in_hbm=True),
    ),
    capacity_bytes=50,
)


def stay(buffer: int, begin: int, end: int, is_copied: bool, *uses: int) -> Stay:
    return Stay(buffer, begin, end, 0, is_copied, uses)


def test_buffers_are_placed_first_or_last_and_copied_early_or_late() -> None:
    edits = [Edit(2, Kind.FIRST), Edit(0, Kind.LAST), Edit(1, Kind.EARLIEST), Edit(0, Kind.LATEST)]
    changed = applied(OWN, edits)
    assert changed.order == (2, 1, 0) and changed.eagerness == (2, 1, 0)
    assert OWN.order == (0, 1, 2)
    # The later of two changes of one buffer holds.
    assert applied(OWN, [Edit(1, Kind.LAST), Edit(1, Kind.FIRST)]).order == (1, 0, 2)


def test_with_nothing_in_fast_memory_each_buffer_misses_all_its_benefit() -> None:
    found = stakes(PROBLEM, MemoryMapping(()))
    assert {e.buffer: v for e, v in found.items() if e.kind is Kind.FIRST} == {
        0: 7 + 5 * 3,
        1: 3 + 2 * 3,
        2: 11,
    }
    # Copies serve uses, not the writing of a value.
    for kind in (Kind.EARLIEST, Kind.LATEST):
        assert {e.buffer: v for e, v in found.items() if e.kind is kind} == {0: 22, 1: 6, 2: 11}
    assert not any(e.kind is Kind.LAST for e in found)


def test_what_lies_in_the_way_is_at_stake_with_placing_it_last() -> None:
    mapping = MemoryMapping((stay(0, 0, 1, True, 0), stay(1, 1, 3, False, 0)))
    found = stakes(PROBLEM, mapping)
    # 0 still misses its second use, 1 nothing, 2 everything.
    assert found[Edit(0, Kind.FIRST)] == 15 and found[Edit(2, Kind.FIRST)] == 11
    assert Edit(1, Kind.FIRST) not in found
    # 0's room holds half of 2; 1 is in the way of 0's second use, and holds a quarter of it.
    assert found[Edit(0, Kind.LAST)] == pytest.approx(11 * 0.5)
    assert found[Edit(1, Kind.LAST)] == pytest.approx(15 * 0.25)
    # A value that is born there is not copied.
    assert Edit(1, Kind.EARLIEST) not in found


def test_each_change_comes_once_and_copies_in_groups() -> None:
    at_stake = {Edit(n, kind): 1.0 + n for n in range(7) for kind in Kind}
    queue, groups = Queue(at_stake, np.random.default_rng(0)), []
    while (group := queue.next()) is not None:
        groups.append(group)
        queue.tell(group, 0.0)
    assert sorted((e.buffer, e.kind.name) for g in groups for e in g) == sorted(
        (e.buffer, e.kind.name) for e in at_stake
    )
    for group in groups:
        assert len({e.kind for e in group}) == 1
        grouped = group[0].kind in (Kind.EARLIEST, Kind.LATEST)
        assert len(group) == 1 if not grouped else len(group) in (GROUP, 7 % GROUP)


def test_more_at_stake_comes_earlier() -> None:
    at_stake = {Edit(n, Kind.FIRST): 1.0 if n else 1000.0 for n in range(10)}
    firsts = [Queue(at_stake, np.random.default_rng(seed)).next() for seed in range(50)]
    assert sum(g == (Edit(0, Kind.FIRST),) for g in firsts) >= 45


def test_halves_of_what_harms_come_next() -> None:
    at_stake = {Edit(n, Kind.LATEST): 1.0 for n in range(GROUP)}
    queue = Queue(at_stake, np.random.default_rng(1))
    group = queue.next()
    assert group is not None and len(group) == GROUP
    queue.tell(group, -1.0)
    halves = [queue.next(), queue.next()]
    assert halves == [group[: GROUP // 2], group[GROUP // 2 :]]
    assert queue.next() is None
    queue.tell(group[:1], -1.0)
    assert queue.next() is None  # one alone is not halved


def test_kinds_that_help_come_more_often() -> None:
    at_stake = {Edit(n, kind): 1.0 for n in range(200) for kind in (Kind.FIRST, Kind.LAST)}
    queue, count = Queue(at_stake, np.random.default_rng(2)), 0
    for _ in range(100):
        group = queue.next()
        assert group is not None
        helps = group[0].kind is Kind.LAST
        count += helps
        queue.tell(group, 1.0 if helps else -1.0)
    assert count >= 80
