"""Options for the compiler: what is named, what is left to it, how it is written."""

import random

from hypothesis import given
from hypothesis import strategies as st

from memory_planner.overrides import (
    MOST_NAMED,
    ORDER_OPTION,
    PREFETCH_OPTION,
    Prefetch,
    moved,
    order_options,
)


@given(st.permutations(range(9)))
def test_what_is_named_around_what_is_not_gives_the_order(order: list[int]) -> None:
    before, behind = moved(tuple(order))
    others = sorted(set(order) - {*before, *behind})
    assert [*before, *others, *behind] == order


def test_only_what_moves_is_named() -> None:
    assert moved((0, 1, 2, 3, 4)) == ((), ())
    assert moved((3, 0, 1, 2, 4)) == ((3,), ())
    assert moved((0, 2, 3, 4, 1)) == ((), (1,))
    assert moved((4, 0, 2, 3, 1)) == ((4,), (1,))
    assert moved((2, 1, 0)) == ((), (1, 0))


def test_of_many_those_nearest_to_the_ends_are_named() -> None:
    order = list(range(1000))
    random.Random(0).shuffle(order)
    before, behind = moved(tuple(order))
    assert len(before) + len(behind) == MOST_NAMED
    assert list(before) == order[: len(before)]
    assert list(behind) == order[len(order) - len(behind) :]


def test_orders_become_ascending_ranks_around_all_others() -> None:
    options = order_options((("fusion.2", -1), ("while.1", 3)), (("p", -1), ("q", -1)))
    assert options == {
        ORDER_OPTION: 'overrides { hlo_position_matcher { instruction_name_regex: "fusion\\\\.2" } '
        "override_options { assign_value: -2 } } "
        'overrides { hlo_position_matcher { instruction_name_regex: "while\\\\.1" '
        "tuple_index { index: 3 } } override_options { assign_value: -1 } } "
        'overrides { hlo_position_matcher { instruction_name_regex: "p" } '
        "override_options { assign_value: 1 } } "
        'overrides { hlo_position_matcher { instruction_name_regex: "q" } '
        "override_options { assign_value: 2 } }"
    }


def test_prefetches_name_operands() -> None:
    options = order_options((), prefetches=(Prefetch("a-b", 1, 0.5),))
    assert options == {
        PREFETCH_OPTION: 'overrides { hlo_operand_filter { instruction_name_regex: "a\\\\-b" '
        "operand_number: 1 } override_options { prefetch_eagerness: 0.5 } }"
    }
    assert order_options(()) == {}
