import pytest

from memory_planner.offsets import Buffer, Infeasible, OffsetError, OffsetProblem, Proof, Section


def test_pieces_are_the_life_without_its_gaps() -> None:
    buffer = Buffer("a", 2, 9, 4, gaps=((2, 3), (5, 6), (6, 7)))
    assert buffer.pieces == ((3, 5), (7, 9))


@pytest.mark.parametrize(
    "buffer",
    [
        Buffer("no bytes", 0, 5, 0),
        Buffer("no life", 3, 3, 4),
        Buffer("a gap for life", 0, 5, 4, gaps=((0, 5),)),
    ],
)
def test_what_occupies_nothing_has_no_pieces(buffer: Buffer) -> None:
    assert buffer.pieces == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"end": 4}, "'a' ends at 4, before it begins at 5"),
        ({"size_bytes": -1}, "'a' has a size of -1 bytes"),
        ({"alignment": 0}, "'a' has an alignment of 0"),
        ({"offset": -4}, "'a' is fixed at offset -4"),
        ({"offset": 6, "alignment": 4}, "'a' is fixed at offset 6, which is no multiple"),
        ({"gaps": ((4, 6),)}, r"'a', live \[5, 9\), has a gap \[4, 6\)"),
        ({"gaps": ((7, 10),)}, r"a gap \[7, 10\)"),
        ({"gaps": ((6, 6),)}, r"a gap \[6, 6\)"),
        ({"gaps": ((6, 8), (7, 9))}, r"a gap \[7, 9\): gaps lie within its life, in order"),
    ],
)
def test_senseless_buffers_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(OffsetError, match=message):
        Buffer(**({"name": "a", "begin": 5, "end": 9, "size_bytes": 1} | arguments))  # type: ignore[arg-type]


def test_names_are_unique() -> None:
    with pytest.raises(OffsetError, match="two buffers are named 'a'"):
        OffsetProblem((Buffer("a", 0, 1, 1), Buffer("a", 2, 3, 1)))


def test_infeasible_says_where_and_why() -> None:
    section = Section(3, 5, 20, tuple("abcdefghij"))
    text = str(Infeasible(16, Proof.LOAD, section))
    assert text == (
        "no packing within 16 bytes: a section holds more than the capacity; binding is time "
        "[3, 5), where 20 bytes are live in 10 buffers (a, b, c, d, e, f, g, h, ...)"
    )
