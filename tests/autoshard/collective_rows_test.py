"""Predicted arrays beside compiled ones: what counts as the same, and what differs."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoshard.collective_rows import collective_rows, differs
from autoshard.compile_report import CollectiveRow
from autoshard.predicted_collectives import Phase, PredictedCollective, Purpose
from passes.hlo.moved_arrays import MovedArray

SOURCE, OTHER = "model.py:7 (block)", "model.py:9 (head)"


def predicted(**changes: Any) -> PredictedCollective:
    made = PredictedCollective(
        "reduce-scatter", Purpose.GRADIENTS, Phase.BACKWARD, SOURCE, "dot_general", ("data",), 4,
        count=2, payload_bytes=4096,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def moved(**changes: Any) -> MovedArray:
    made = MovedArray("reduce-scatter", 4096, 4, 2, SOURCE, "", "fusion.1", in_loop=True)
    return dataclasses.replace(made, **changes)


def test_equal_ones_are_equal_however_they_are_cut_up() -> None:
    rows = collective_rows([predicted()], [moved(count=1), moved(count=1, instruction="fusion.2")])
    assert rows == (CollectiveRow("reduce-scatter", SOURCE, 2, 2, 8192, 8192),)
    assert not differs(rows[0])


def test_a_combined_array_takes_the_source_of_what_it_was_predicted_for() -> None:
    rows = collective_rows(
        [predicted(), predicted(source=OTHER, count=1)], [moved(count=2), moved(count=1)]
    )
    assert {row.source: row.compiled_count for row in rows} == {SOURCE: 2, OTHER: 1}
    assert not any(map(differs, rows))


def test_a_gather_in_two_stages_is_the_gather_that_was_predicted() -> None:
    """Of 64 devices: four neighbours each, and then sixteen with what those gathered."""
    last = moved(kind="all-gather", devices=16, instruction="a")
    first = moved(kind="all-gather", devices=4, payload_bytes=256, instruction="b")
    wanted = predicted(kind="all-gather", devices=64)
    (row,) = collective_rows([wanted], [last, first])
    assert row == CollectiveRow("all-gather", f"{SOURCE}, in two stages", 2, 2, 8192, 8192)
    (alone,) = collective_rows([wanted], [last])
    assert alone.source == SOURCE  # the neighbours' part is missing


@pytest.mark.parametrize(
    ("compiled", "words", "count", "size"),
    [
        ([moved(kind="all-reduce")], "as an all-reduce", 2, 8192),
        ([moved(payload_bytes=4224)], "padded", 2, 8448),
        ([moved(payload_bytes=2048)], "in another type", 2, 4096),
        # Two rings of four devices, in chunks of a quarter: five steps each.
        (
            [moved(kind="collective-permute", payload_bytes=1024, devices=2, count=10)],
            "as permutes in a loop",
            2,
            8192,
        ),
        (
            [moved(kind="all-reduce", payload_bytes=8192, count=1, in_loop=False)],
            "after the loop",
            1,
            8192,
        ),
        # The compiler gave the stack the line of the loop, in half the type.
        (
            [moved(kind="all-reduce", payload_bytes=4096, count=1, in_loop=False, source="m.py:1")],
            "after the loop",
            1,
            4096,
        ),
    ],
)
def test_what_the_compiler_rewrites_is_recognised(
    compiled: list[MovedArray], words: str, count: int, size: int
) -> None:
    rows = collective_rows([predicted()], compiled)
    found = [row for row in rows if row.compiled_count]
    assert [(r.kind, r.source) for r in found] == [("reduce-scatter", f"{SOURCE}, {words}")]
    assert (found[0].compiled_count, found[0].compiled_bytes) == (count, size)


def test_a_gather_may_be_an_all_reduce_of_the_wide_type() -> None:
    wide = moved(kind="all-reduce", payload_bytes=8192)
    (row,) = collective_rows([predicted(kind="all-gather")], [wide])
    assert row.source == f"{SOURCE}, as an all-reduce, in another type"
    assert differs(row)


def test_too_few_permutes_are_no_ring() -> None:
    few = moved(kind="collective-permute", payload_bytes=1024, devices=2, count=5)
    rows = collective_rows([predicted()], [few])
    assert {(r.kind, r.predicted_count, r.compiled_count) for r in rows} == {
        ("reduce-scatter", 2, 0), ("collective-permute", 0, 5)
    }  # fmt: skip


def test_what_is_left_names_its_source() -> None:
    rows = collective_rows(
        [predicted(source="", operation="embed/table", devices=8)],
        [moved(), moved(kind="all-to-all", source="", op_name="jit(step)/scatter")],
    )
    assert {(r.kind, r.source) for r in rows} == {
        ("reduce-scatter", "embed/table"), ("reduce-scatter", SOURCE),
        ("all-to-all", "jit(step)/scatter"),
    }  # fmt: skip
    assert all(map(differs, rows))


_KINDS = st.sampled_from(["all-reduce", "all-gather", "reduce-scatter"])
_SIZES = st.sampled_from([4, 64, 128, 256])
_SOURCES = st.sampled_from([SOURCE, OTHER, ""])


@given(
    st.lists(st.builds(predicted, kind=_KINDS, payload_bytes=_SIZES, source=_SOURCES)),
    st.lists(st.builds(moved, kind=_KINDS, payload_bytes=_SIZES, source=_SOURCES)),
)
def test_every_array_is_in_one_row(
    wanted: list[PredictedCollective], found: list[MovedArray]
) -> None:
    rows = collective_rows(wanted, found)
    assert sum(r.predicted_count for r in rows) == sum(p.count for p in wanted)
    assert sum(r.compiled_count for r in rows) == sum(m.count for m in found)
    assert sum(r.predicted_bytes for r in rows) == sum(p.count * p.payload_bytes for p in wanted)
    assert sum(r.compiled_bytes for r in rows) == sum(m.count * m.payload_bytes for m in found)
    assert len({(r.kind, r.source) for r in rows}) == len(rows)
