"""Changes of an order: what they do, what is at stake with them, which are tried when."""

import dataclasses

import numpy as np
import pytest

from memory_planner.agents.candidates import Candidate
from memory_planner.agents.edits import GROUP, Edit, Kind, Queue, Reason, applied, stakes
from memory_planner.problem import Buffer, MemoryMapping, MemoryProblem, Operation, Stay, Use
from memory_planner.replay import replay

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


def test_buffers_are_placed_first_or_last_and_copied_early() -> None:
    edits = [Edit(2, Kind.FIRST), Edit(0, Kind.LAST), Edit(1, Kind.EARLIEST)]
    changed = applied(OWN, edits)
    assert changed.order == (2, 1, 0) and changed.eagerness == (0, 1, 0)
    assert OWN.order == (0, 1, 2)
    # The later of two changes of one buffer holds.
    assert applied(OWN, [Edit(1, Kind.LAST), Edit(1, Kind.FIRST)]).order == (1, 0, 2)


def test_with_nothing_in_fast_memory_each_buffer_misses_all_its_benefit() -> None:
    found = stakes(PROBLEM, MemoryMapping(()))
    assert found[Reason.MISSED] == {
        Edit(0, Kind.FIRST): 7 + 5 * 3,
        Edit(1, Kind.FIRST): 3 + 2 * 3,
        Edit(2, Kind.FIRST): 11,
    }
    # A copy that begins earlier serves no use in the operation where the buffer begins.
    assert found[Reason.UNSERVED] == {Edit(0, Kind.EARLIEST): 15, Edit(1, Kind.EARLIEST): 6}
    assert not found[Reason.ROOM] and not found[Reason.WAITS]


def test_what_lies_in_the_way_is_at_stake_with_placing_it_last() -> None:
    mapping = MemoryMapping((stay(0, 0, 1, False, 0), stay(1, 1, 3, False, 0)))
    found = stakes(PROBLEM, mapping)
    # 0 still misses its second use, 1 nothing, 2 everything.
    assert found[Reason.MISSED] == {Edit(0, Kind.FIRST): 15, Edit(2, Kind.FIRST): 11}
    # 0's room would hold half of 2, which saves 5.5, but it saves 7 there. 1 is in the way of 0's
    # second use for two of three operations, and its room holds a quarter: 2.5, but it saves 9.
    assert not found[Reason.ROOM]
    smaller = dataclasses.replace(
        PROBLEM,
        buffers=(PROBLEM.buffers[0], dataclasses.replace(PROBLEM.buffers[1], benefit_ns=0,
                 uses=(Use(2, 0),)), PROBLEM.buffers[2]),
    )  # fmt: skip
    room = stakes(smaller, mapping)[Reason.ROOM]
    assert room == {Edit(1, Kind.LAST): pytest.approx(15 * 0.25 * 2 / 3)}


def test_copies_that_are_waited_for_are_at_stake() -> None:
    late = Buffer("late", 10, 0, (Use(1, 5),), 0, 70, starts_in_hbm=True)
    problem = dataclasses.replace(PROBLEM, buffers=(late,))
    mapping = MemoryMapping((stay(0, 0, 2, True, 0),))
    # Of 70 ns operation 0 leaves HBM 50.
    assert replay(problem, mapping).waits_ns == (20.0,)
    assert stakes(problem, mapping)[Reason.WAITS] == {
        Edit(0, Kind.LAST): 20.0,
        Edit(0, Kind.EARLIEST): 20.0,
    }


def test_each_change_comes_once_and_earlier_copies_in_groups() -> None:
    kinds = {Reason.MISSED: Kind.FIRST, Reason.ROOM: Kind.LAST, Reason.UNSERVED: Kind.EARLIEST}
    at_stake = {
        reason: {Edit(n, kind): 1.0 + n for n in range(7)} for reason, kind in kinds.items()
    }
    at_stake[Reason.WAITS] = {Edit(2, Kind.LAST): 1.0, Edit(2, Kind.EARLIEST): 1.0}
    queue, groups = Queue(at_stake, np.random.default_rng(0)), []
    while (group := queue.next()) is not None:
        groups.append(group)
        queue.tell(group, 0.0)
    tried = [edit for group in groups for edit in group]
    assert len(tried) == len(set(tried)) == 21
    for group in groups:
        assert len({e.kind for e in group}) == 1
        assert len(group) == 1 or group[0].kind is Kind.EARLIEST
    assert max(map(len, groups)) == GROUP


def test_more_at_stake_comes_earlier() -> None:
    at_stake = {Reason.MISSED: {Edit(n, Kind.FIRST): 1.0 if n else 1000.0 for n in range(10)}}
    firsts = [Queue(at_stake, np.random.default_rng(seed)).next() for seed in range(50)]
    assert sum(g == (Edit(0, Kind.FIRST),) for g in firsts) >= 45


def test_halves_of_what_harms_come_next() -> None:
    at_stake = {Reason.UNSERVED: {Edit(n, Kind.EARLIEST): 1.0 for n in range(GROUP)}}
    queue = Queue(at_stake, np.random.default_rng(1))
    group = queue.next()
    assert group is not None and len(group) == GROUP
    queue.tell(group, -1.0)
    halves = [queue.next(), queue.next()]
    assert halves == [group[: GROUP // 2], group[GROUP // 2 :]]
    assert queue.next() is None
    queue.tell(group[:1], -1.0)
    assert queue.next() is None  # one alone is not halved


def test_reasons_that_hold_come_more_often() -> None:
    at_stake = {
        Reason.MISSED: {Edit(n, Kind.FIRST): 1.0 for n in range(200)},
        Reason.ROOM: {Edit(n, Kind.LAST): 1.0 for n in range(200)},
    }
    queue, count = Queue(at_stake, np.random.default_rng(2)), 0
    for _ in range(100):
        group = queue.next()
        assert group is not None
        helps = group[0].kind is Kind.LAST
        count += helps
        queue.tell(group, 1.0 if helps else -1.0)
    assert count >= 80
