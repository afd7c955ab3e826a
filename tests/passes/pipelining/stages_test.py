"""Stages by dynamic programming against all ways to cut, and where layers are kept."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.errors import PassError
from passes.pipelining.stages import StageLayout, cut_stages


def slowest(costs: list[float], counts: tuple[int, ...], before: float, after: float) -> float:
    ends = list(itertools.accumulate(counts))
    sums = [sum(costs[end - count : end]) for end, count in zip(ends, counts, strict=True)]
    sums[0] += before
    sums[-1] += after
    return max(sums)


@settings(deadline=None)
@given(
    costs=st.lists(st.integers(1, 9).map(float), min_size=1, max_size=8),
    stages=st.integers(1, 4),
    before=st.integers(0, 9).map(float),
    after=st.integers(0, 20).map(float),
)
def test_no_cut_is_faster(costs: list[float], stages: int, before: float, after: float) -> None:
    if len(costs) < stages:
        with pytest.raises(PassError, match=f"{len(costs)} layers do not fill {stages} stages"):
            cut_stages(costs, stages, before, after)
        return
    found = cut_stages(costs, stages, before, after)
    assert len(found) == stages and sum(found) == len(costs) and min(found) >= 1
    every = (
        tuple(b - a for a, b in itertools.pairwise((0, *cuts, len(costs))))
        for cuts in itertools.combinations(range(1, len(costs)), stages - 1)
    )
    best = min(slowest(costs, counts, before, after) for counts in every)
    assert slowest(costs, found, before, after) == best


def test_known_cuts() -> None:
    assert cut_stages([1.0] * 8, 4) == (2, 2, 2, 2)
    assert cut_stages([1.0] * 10, 4) == (3, 3, 3, 1)
    assert cut_stages([1.0] * 6, 2, after=2.0) == (4, 2)
    assert cut_stages([4.0, 1.0, 1.0, 1.0, 1.0], 2) == (1, 4)


def test_stage_major_order_needs_no_moves() -> None:
    even = StageLayout(2, 1, (2, 2))
    assert even.is_even and even.is_stored and even.layers == (0, 1, 2, 3)


def test_chunks_are_dealt_round() -> None:
    layout = StageLayout(2, 2, (1, 1, 1, 1))
    assert layout.layers == layout.storage_order == (0, 2, 1, 3)
    assert layout.is_even and not layout.is_stored


def test_uneven_stages_have_empty_slots() -> None:
    layout = StageLayout(2, 1, (2, 1))
    assert layout.slots == 2 and layout.layers == (0, 1, 2, -1)
    assert not layout.is_even and not layout.is_stored
    assert layout.storage_order == (0, 1, 2)
