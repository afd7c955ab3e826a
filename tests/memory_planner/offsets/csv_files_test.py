from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_planner.offsets import (
    Buffer,
    OffsetError,
    OffsetProblem,
    format_csv,
    parse_csv,
    read_csv,
    solve,
    write_csv,
)
from tests.memory_planner.offsets.instances import EXAMPLE

EXAMPLE_TEXT = "id,lower,upper,size\nb0,0,3,4\nb1,3,9,4\nb2,0,9,4\nb3,9,21,4\nb4,0,21,4\n"


def test_upper_is_exclusive() -> None:
    assert parse_csv(EXAMPLE_TEXT) == EXAMPLE


def test_end_is_inclusive_also_of_gaps() -> None:
    old = parse_csv("buffer_id,start,end,size,gaps\nx,0,8,4,2-3 5-5\n")
    assert old == OffsetProblem((Buffer("x", 0, 9, 4, gaps=((2, 4), (5, 6))),))


def test_columns_come_in_any_order_and_under_other_names() -> None:
    text = "offset,size,upper,begin,buffer,alignment\r\n8,4,9,1,x,2\r\n\r\n,4,9,1,y,4\r\n"
    assert parse_csv(text) == OffsetProblem(
        (Buffer("x", 1, 9, 4, 2, 8), Buffer("y", 1, 9, 4, 4, None))
    )


def test_solution_is_written_as_a_column() -> None:
    solution = solve(EXAMPLE, 12)
    text = format_csv(EXAMPLE, solution)  # type: ignore[arg-type]
    assert text.splitlines()[0] == "id,lower,upper,size,offset"
    fixed = parse_csv(text)
    assert tuple(b.offset for b in fixed.buffers) == solution.offsets_bytes  # type: ignore[union-attr]


@st.composite
def problems(draw: st.DrawFn) -> OffsetProblem:
    buffers = []
    for index in range(draw(st.integers(0, 5))):
        times = sorted(draw(st.sets(st.integers(-9, 99), min_size=4, max_size=4)))
        alignment = draw(st.sampled_from([1, 8]))
        offset = draw(st.none() | st.integers(0, 9).map(lambda k, a=alignment: k * a))  # type: ignore[misc]
        gaps = draw(st.sampled_from([(), ((times[1], times[2]),)])) if times[1] >= 0 else ()
        size = draw(st.integers(0, 10**12))
        buffers.append(Buffer(f"b {index}", times[0], times[3], size, alignment, offset, gaps))
    return OffsetProblem(tuple(buffers))


@given(problems())
def test_what_is_written_is_read(problem: OffsetProblem) -> None:
    assert parse_csv(format_csv(problem)) == problem


def test_files(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", EXAMPLE)
    assert (tmp_path / "a.csv").read_text() == EXAMPLE_TEXT
    assert read_csv(tmp_path / "a.csv") == EXAMPLE
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OffsetError, match=r"bad\.csv is not a text file"):
        read_csv(tmp_path / "bad.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("c,1,2", "3 fields for 4 columns: c,1,2"),
        ("c,1,2,3,4", "5 fields for 4 columns"),
        ("c,1,2,many", "size is 'many', not an integer"),
        ("c,1.5,2,3", "lower is '1.5', not an integer"),
        ("c,1,,3", "upper is '', not an integer"),
        ("c,2,1,3", "buffer 'c' ends at 1, before it begins at 2"),
        ("a,1,2,3", "'a' is in line 2 already"),
    ],
)
def test_bad_rows_are_named_by_line(row: str, message: str) -> None:
    with pytest.raises(OffsetError) as caught:
        parse_csv(f"id,lower,upper,size\na,0,1,4\n\n{row}\n", "some.csv")
    assert str(caught.value).startswith("some.csv, line 4: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("gap", "message"),
    [
        ("3", "gap '3' is not of the form begin-end"),
        ("3-x", "a gap's end is 'x', not an integer"),
        ("3-4@0:2", "gap '3-4@0:2' keeps a window"),
        ("3-40", r"has a gap \[3, 40\)"),
    ],
)
def test_bad_gaps_are_named_by_line(gap: str, message: str) -> None:
    with pytest.raises(OffsetError, match=f"line 2: .*{message}"):
        parse_csv(f"id,lower,upper,size,gaps\na,0,9,4,{gap}\n")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id,lower,upper", "line 1: the header lacks size"),
        ("id,lower,upper,size,colour", "line 1: no column is called 'colour'"),
        ("id,lower,begin,upper,size", "line 1: two columns mean 'lower'"),
        ("b1,0,3,4", "line 1: no column is called 'b1'"),
    ],
)
def test_bad_headers_are_named(header: str, message: str) -> None:
    with pytest.raises(OffsetError, match=message):
        parse_csv(header + "\n")


def test_empty_file_is_no_problem() -> None:
    with pytest.raises(OffsetError, match="text is empty"):
        parse_csv("\n \n")
    assert parse_csv("id,lower,upper,size\n") == OffsetProblem(())


@pytest.mark.parametrize("name", ["a,b", "a\nb", " a"])
def test_names_that_break_the_file_are_not_written(name: str) -> None:
    with pytest.raises(OffsetError, match="cannot be an id"):
        format_csv(OffsetProblem((Buffer(name, 0, 1, 1),)))
