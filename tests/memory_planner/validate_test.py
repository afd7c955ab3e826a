"""The validator: durations known by hand, and every fault found by name."""

import pytest

from memory_planner.errors import MemoryPlannerError
from memory_planner.problem import MemoryMapping, MemoryProblem, Stay
from memory_planner.validate import duration_ns, validate
from tests.memory_planner.small_problems import buffer, operation, problem

EMPTY = MemoryMapping(())


def test_everything_in_hbm_is_slow() -> None:
    assert validate(problem(buffer("a", 0, 1)), EMPTY) == 600


def test_a_birth_saves_the_write_and_its_uses() -> None:
    small = problem(buffer("a", 0, 1, 3))
    assert validate(small, MemoryMapping((Stay(0, 0, 4, 0, False, (0, 1)),))) == 600 - 5 - 2 * 20


def test_loops_multiply_and_floors_hold() -> None:
    operations = (operation(repeats=3), operation(slow_ns=100, floor_ns=90, repeats=2))
    small = problem(buffer("a", 0, 1), operations=operations)
    mapping = MemoryMapping((Stay(0, 0, 2, 0, False, (0,)),))
    assert validate(small, mapping) == 3 * 95 + 2 * 90


def test_a_copy_has_its_time_before_the_use() -> None:
    # 50 ns need two operations of 40 ns.
    small = problem(buffer("a", 0, 3, starts=True, copy_ns=50))
    assert validate(small, MemoryMapping((Stay(0, 1, 4, 0, True, (0,)),))) == 580
    with pytest.raises(MemoryPlannerError, match=r"the copy of a is not done before .* 3: 10 ns"):
        validate(small, MemoryMapping((Stay(0, 2, 4, 0, True, (0,)),)))


def test_copies_share_hbm_and_the_urgent_one_goes_first() -> None:
    first = buffer("a", 0, 4, starts=True, copy_ns=80)
    second = buffer("b", 0, 2, starts=True, copy_ns=60)
    small = problem(first, second)
    stays = (Stay(0, 0, 5, 0, True, (0,)), Stay(1, 0, 3, 4, True, (0,)))
    assert validate(small, MemoryMapping(stays)) == 560
    late = (Stay(0, 1, 5, 0, True, (0,)), Stay(1, 1, 3, 4, True, (0,)))
    with pytest.raises(MemoryPlannerError, match="the copy of b is not done before operation 2"):
        validate(small, MemoryMapping(late))


def test_a_value_that_leaves_is_written_back_while_it_is_there() -> None:
    small = problem(buffer("a", 0, 1, 4, copy_ns=60))
    # Written in operations 1 and 2, so the place must be kept until then.
    assert validate(small, MemoryMapping((Stay(0, 0, 3, 0, False, (0,)),))) == 575
    with pytest.raises(MemoryPlannerError, match=r"the write-back of a is not done .* 2: 20"):
        validate(small, MemoryMapping((Stay(0, 0, 2, 0, False, (0,)),)))


def test_a_result_is_written_back_in_the_end() -> None:
    stays = MemoryMapping((Stay(0, 0, 2, 0, False, (0,)),))
    assert validate(problem(buffer("a", 0, 1, ends=True)), stays) == 575
    with pytest.raises(MemoryPlannerError, match="the write-back of a"):
        validate(problem(buffer("a", 0, 1, ends=True, copy_ns=41)), stays)


def test_a_copy_waits_for_the_write_back() -> None:
    small = problem(buffer("a", 0, 1, 5, copy_ns=40))
    born = Stay(0, 0, 2, 0, False, (0,))
    assert validate(small, MemoryMapping((born, Stay(0, 2, 6, 0, True, (1,))))) == 555
    with pytest.raises(MemoryPlannerError, match="write-back of a has no operation"):
        validate(small, MemoryMapping((born, Stay(0, 1, 6, 4, True, (1,)))))


def test_neighbours_touch_and_do_not_overlap() -> None:
    small = problem(buffer("a", 0, 2), buffer("b", 1, 3))
    stays = (Stay(0, 0, 3, 0, False, (0,)), Stay(1, 1, 4, 4, False, (0,)))
    assert validate(small, MemoryMapping(stays)) == 600 - 2 * 25


STAY = Stay(0, 0, 3, 0, False, (0,))
INPUT = Stay(1, 0, 3, 0, True, (0,))


def faulty() -> MemoryProblem:
    """One buffer of the program, one input, and an operation that reserves half of memory."""
    operations = (*[operation()] * 3, operation(reserved=4), operation())
    return problem(
        buffer("a", 0, 2, 4), buffer("b", 0, 2, starts=True), operations=operations, alignment=2
    )


@pytest.mark.parametrize(
    ("stays", "message"),
    [
        ((Stay(7, 0, 3, 0, False, ()),), "has no buffer 7"),
        ((Stay(0, 0, 6, 0, False, (0,)),), r"a in \[0, 6\): no interval of 5 operations"),
        ((Stay(0, 3, 3, 0, True, ()),), "no interval"),
        ((Stay(0, 0, 3, 0, False, (2,)),), "of 2 that exist"),
        ((Stay(0, 0, 3, 0, False, (0, 1)),), "use 1, in operation 4, is outside"),
        ((Stay(1, 0, 3, 0, False, (0,)),), "starts in HBM, so it must be copied"),
        ((Stay(0, 1, 3, 0, False, (0,)),), "not copied, though it is defined by operation 0"),
        ((Stay(0, 0, 3, 0, True, (0,)),), "copied before it is in HBM, in operation 1"),
        ((Stay(1, 0, 3, 0, True, ()),), "copied for no use"),
        ((Stay(1, 2, 3, 0, True, (0,)),), "the copy of b has no operation to run in"),
        ((Stay(0, 0, 3, 3, False, (0,)),), "not aligned to 2 bytes"),
        ((Stay(0, 0, 3, -2, False, (0,)),), "at -2: not aligned"),
        ((Stay(0, 0, 3, 6, False, (0,)),), "ends at 10 of 8 bytes"),
        ((Stay(0, 0, 5, 2, False, (0, 1)),), r"ends at 6 of 8 bytes.*operation 3\) reserves 4"),
        ((STAY, Stay(1, 1, 3, 2, True, (0,))), "a and b overlap at 2 in operation 1"),
        ((STAY, Stay(0, 1, 3, 4, True, (0,))), "use 0 of a is served by two stays"),
        ((STAY, Stay(0, 0, 3, 4, False, ())), "a is born twice"),
    ],
)
def test_faults_are_named(stays: tuple[Stay, ...], message: str) -> None:
    with pytest.raises(MemoryPlannerError, match=message):
        validate(faulty(), MemoryMapping(stays))


def test_the_faultless_neighbours_of_those_pass() -> None:
    small = faulty()
    assert validate(small, MemoryMapping((STAY, Stay(1, 0, 3, 4, True, (0,))))) == 500 - 25 - 20
    assert duration_ns(small, MemoryMapping((INPUT,))) == 480
