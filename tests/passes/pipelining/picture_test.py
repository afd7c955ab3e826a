"""Pictures take the time of the closed forms, and show every piece of work once."""

import itertools

import pytest

from passes.pipeline import Pipeline
from passes.pipelining.closed_forms import ScheduleName, TickCosts, bubble, step_time
from passes.pipelining.picture import Cell, picture

NAMES: tuple[ScheduleName, ...] = ("gpipe", "1f1b", "interleaved", "zero_bubble")


def cells_of(name: ScheduleName, costs: TickCosts) -> tuple[Cell, ...]:
    return picture(Pipeline(schedule=name, microbatches=8, chunks=2).ticks(4), costs)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_takes_the_time_of_the_closed_form(name: ScheduleName) -> None:
    costs = TickCosts(forward=2.0, inputs=3.0, weights=5.0)
    cells = cells_of(name, costs)
    assert max(c.end for c in cells) == pytest.approx(step_time(name, 4, 8, 2, costs))
    assert min(c.begin for c in cells) == 0.0
    for stage in range(4):
        own = sorted((c for c in cells if c.stage == stage), key=lambda c: c.begin)
        assert all(a.end <= b.begin + 1e-9 for a, b in itertools.pairwise(own))
        forward = {(c.microbatch, c.chunk) for c in own if c.kind == "forward"}
        back = [(c.microbatch, c.chunk) for c in own if c.kind in ("backward", "inputs")]
        assert len(forward) == 8 * (2 if name == "interleaved" else 1)
        assert sorted(back) == sorted(forward)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved"])
def test_busy_time_and_waiting_make_the_step(name: ScheduleName) -> None:
    costs = TickCosts(forward=2.0, inputs=3.0, weights=5.0)
    cells = cells_of(name, costs)
    busy = sum(c.end - c.begin for c in cells if c.stage == 2)
    step = max(c.end for c in cells)
    assert 1 - busy / step == pytest.approx(bubble(name, 4, 8, 2, costs))


def test_each_stage_forwards_after_the_one_before() -> None:
    ends = {(c.stage, c.microbatch): c for c in cells_of("gpipe", TickCosts())
            if c.kind == "forward"}  # fmt: skip
    back = {(c.stage, c.microbatch): c for c in cells_of("gpipe", TickCosts())
            if c.kind == "backward"}  # fmt: skip
    for (stage, microbatch), cell in ends.items():
        if stage:
            assert ends[stage - 1, microbatch].end <= cell.begin
            assert back[stage, microbatch].end <= back[stage - 1, microbatch].begin
        assert cell.end <= back[stage, microbatch].begin


def test_deferred_weight_gradients_are_at_the_end() -> None:
    cells = cells_of("zero_bubble", TickCosts())
    late = [(c.stage, c.microbatch) for c in cells if c.kind == "weights"]
    assert sorted(late) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    assert sorted((c.stage, c.microbatch) for c in cells if c.kind == "inputs") == sorted(late)


def test_known_shares() -> None:
    assert bubble("1f1b", 4, 16) == bubble("gpipe", 4, 16) == pytest.approx(3 / 19)
    assert bubble("interleaved", 4, 16, chunks=2) == pytest.approx(3 / 35)
    assert bubble("zero_bubble", 4, 16) == pytest.approx(6 / 54)
    assert bubble("1f1b", 1, 16) == 0.0
    with_head = TickCosts(always=1.0)
    assert bubble("1f1b", 4, 16, costs=with_head) == pytest.approx(9 / 73)
