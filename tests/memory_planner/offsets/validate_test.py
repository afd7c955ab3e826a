import pytest

from memory_planner.offsets import (
    Buffer,
    InvalidPackingError,
    OffsetProblem,
    OffsetSolution,
    validate,
)

TWO = OffsetProblem((Buffer("a", 0, 5, 4), Buffer("b", 4, 9, 2, alignment=2)))


def check(offsets: tuple[int, ...], of: OffsetProblem = TWO, capacity: int = 8) -> None:
    validate(of, OffsetSolution(offsets, 8), capacity)


def test_what_touches_does_not_overlap() -> None:
    check((0, 4))
    check((2, 0))
    back_to_back = OffsetProblem((Buffer("a", 0, 5, 4), Buffer("b", 5, 9, 4)))
    check((0, 0), back_to_back)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ((0,), "1 offsets for 2 buffers"),
        ((0, 2), r"'a' at \[0, 4\) and 'b' at \[2, 4\) share bytes"),
        ((0, 5), "'b' of 2 bytes at offset 5 is off its alignment 2"),
        ((-1, 4), "'a' of 4 bytes at offset -1 is off"),
        ((5, 0), "'a' of 4 bytes at offset 5 ends above 8"),
    ],
)
def test_faults_are_named(offsets: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidPackingError, match=message):
        check(offsets)


def test_height_is_not_to_be_exceeded_either() -> None:
    with pytest.raises(InvalidPackingError, match="'b' of 2 bytes at offset 8 ends above 8"):
        check((0, 8), capacity=12)


def test_fixed_offset_is_to_be_kept() -> None:
    fixed = OffsetProblem((Buffer("a", 0, 5, 4, offset=4),))
    check((4,), fixed)
    with pytest.raises(InvalidPackingError, match="at offset 0 is fixed at 4"):
        check((0,), fixed)


def test_gap_may_be_filled_but_not_exceeded() -> None:
    a = Buffer("a", 0, 9, 8, gaps=((3, 6),))
    check((0, 0), OffsetProblem((a, Buffer("b", 3, 6, 8))))
    for begin, end in ((2, 4), (3, 7), (0, 9)):
        with pytest.raises(InvalidPackingError, match="share bytes while both are live"):
            check((0, 0), OffsetProblem((a, Buffer("b", begin, end, 8))))


def test_what_occupies_nothing_is_in_no_ones_way() -> None:
    nothing = Buffer("no bytes", 0, 9, 0), Buffer("no life", 3, 3, 100)
    check((0, 2, 0), OffsetProblem((Buffer("a", 0, 9, 8), *nothing)))
