"""Schedules, played tick by tick by a checker that knows what depends on what and nothing else."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.errors import PassError
from passes.pipeline import Pipeline
from passes.pipelining.closed_forms import ScheduleName
from passes.pipelining.gpipe import gpipe
from passes.pipelining.interleaved import interleaved
from passes.pipelining.one_f_one_b import one_f_one_b
from passes.pipelining.schedule import Backward, Run, Schedule
from passes.pipelining.zero_bubble import zero_bubble


def runs(schedule: Schedule) -> list[Run]:
    """One run a tick."""
    return [
        run
        for phase in schedule.phases
        for _ in range(phase.repeats)
        for run in phase.runs
        for _ in range(run.ticks)
    ]


class Player:
    """The state of all stages: what arrived, what is kept where, what is done."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.pieces = schedule.stages * schedule.chunks
        self.fresh: int | None = 0  # the microbatch prepared for the first stage
        self.arrived: dict[int, tuple[int, int]] = {}  # stage -> (microbatch, piece)
        self.returned: dict[int, tuple[int, int]] = {}
        self.kept: dict[tuple[int, int], tuple[str, int, int]] = {}
        self.done: collections.Counter[tuple[str, int, int]] = collections.Counter()
        self.delivered: int | None = None  # whose gradient left the first stage in the last tick

    def forward(self, tick: int, run: Run) -> int | None:
        left, moved = None, {}
        for stage in range(self.schedule.stages):
            item = self.schedule.forward_item(tick, stage)
            piece = item.chunk * self.schedule.stages + stage
            slot = self.schedule.slot(item, stage)
            assert 0 <= slot < self.schedule.slots
            if not item.valid:  # it computes with what is there, and keeps that
                assert (stage, slot) not in self.kept
                continue
            if piece == 0:
                assert self.fresh == item.microbatch
            else:
                assert self.arrived[stage] == (item.microbatch, piece)
            assert (stage, slot) not in self.kept, "something is overwritten"
            self.kept[stage, slot] = ("input", item.microbatch, piece)
            self.done["forward", item.microbatch, piece] += 1
            if piece == self.pieces - 1:
                assert run.leaves and self.schedule.leaving(tick) == item.microbatch
                left = item.microbatch
            else:
                moved[(stage + 1) % self.schedule.stages] = (item.microbatch, piece + 1)
        self.arrived = moved
        return left

    def backward(self, tick: int, run: Run, left: int | None) -> None:
        moved = {}
        self.delivered = None
        for stage in range(self.schedule.stages):
            item = self.schedule.backward_item(tick, stage)
            piece = item.chunk * self.schedule.stages + stage
            if not item.valid:
                continue
            slot = self.schedule.slot(item, stage)
            assert self.kept[stage, slot] == ("input", item.microbatch, piece)
            weights = run.backward is Backward.EVERYTHING
            if item.late:
                place = (stage, self.schedule.cotangent_slot(item, stage))
                assert weights and self.kept.pop(place) == ("output", item.microbatch, piece)
                del self.kept[stage, slot]
                self.done["weights", item.microbatch, piece] += 1
                continue
            if piece == self.pieces - 1:
                assert left == item.microbatch
            else:
                assert self.returned[stage] == (item.microbatch, piece)
            self.done["inputs", item.microbatch, piece] += 1
            if weights:
                self.done["weights", item.microbatch, piece] += 1
                del self.kept[stage, slot]
            else:
                place = (stage, self.schedule.cotangent_slot(item, stage))
                assert place not in self.kept and 0 <= place[1] < self.schedule.slots
                self.kept[place] = ("output", item.microbatch, piece)
            if piece == 0:
                self.delivered = item.microbatch
            else:
                moved[(stage - 1) % self.schedule.stages] = (item.microbatch, piece - 1)
        self.returned = moved

    def play(self) -> None:
        tick = 0
        for tick, run in enumerate(runs(self.schedule)):
            self.prologue_backward(tick, run.returns)
            left = self.forward(tick, run) if run.forward else None
            if run.backward is not Backward.NOTHING:
                self.backward(tick, run, left)
            self.fresh = self.schedule.entering(tick + 1) if run.enters else None
        self.prologue_backward(tick + 1, True)

    def prologue_backward(self, tick: int, returns: bool) -> None:
        if self.delivered is not None:
            assert returns and self.schedule.returning(tick - 1) == self.delivered
            self.done["prologue", self.delivered, 0] += 1
        self.delivered = None


def made(name: ScheduleName, stages: int, microbatches: int, chunks: int) -> Schedule:
    return Pipeline(schedule=name, microbatches=microbatches, chunks=chunks).ticks(stages)


@settings(deadline=None)
@given(
    name=st.sampled_from(["1f1b", "interleaved", "zero_bubble"]),
    stages=st.integers(1, 5),
    groups=st.integers(1, 3),
    extra=st.integers(0, 4),
    chunks=st.integers(1, 4),
)
def test_everything_is_done_once_and_in_order(
    name: ScheduleName, stages: int, groups: int, extra: int, chunks: int
) -> None:
    microbatches = stages * groups + (0 if name == "interleaved" else extra)
    player = Player(made(name, stages, microbatches, chunks))
    player.play()
    pieces = player.pieces
    assert pieces == stages * (chunks if name == "interleaved" else 1)
    wanted = {
        (kind, m, p): 1
        for kind in ("forward", "inputs", "weights")
        for m in range(microbatches)
        for p in range(pieces)
    }
    wanted |= {("prologue", m, 0): 1 for m in range(microbatches)}
    assert player.done == wanted
    assert not player.kept


def ticks(schedule: Schedule) -> dict[str, int]:
    every = runs(schedule)
    return {
        "forward": sum(run.forward for run in every),
        "inputs": sum(run.backward is not Backward.NOTHING for run in every),
        "weights": sum(run.backward is Backward.EVERYTHING for run in every),
        "epilogue": sum(run.leaves for run in every),
    }


def test_ticks_of_each_kind() -> None:
    """Four stages and 16 microbatches: M + S - 1 is 19, and Mv + S - 1 is 35 for two chunks."""
    both = {"forward": 19, "inputs": 19, "weights": 19, "epilogue": 16}
    assert ticks(gpipe(4, 16)) == both
    assert ticks(one_f_one_b(4, 16)) == both
    assert ticks(interleaved(4, 16, 2)) == {**both, "forward": 35, "inputs": 35, "weights": 35}
    assert ticks(zero_bubble(4, 16)) == {**both, "weights": 16}


def test_what_is_kept_does_not_grow_with_microbatches() -> None:
    assert one_f_one_b(4, 16).slots == one_f_one_b(4, 64).slots == zero_bubble(4, 16).slots == 7
    assert interleaved(4, 16, 2).slots == 15


def test_microbatches_that_do_not_fit() -> None:
    with pytest.raises(PassError, match=r"groups of 4.*10 do not divide: use 12 microbatches"):
        interleaved(4, 10, 2)
    with pytest.raises(PassError, match="a microbatch for each of its 4 stages, and there are 3"):
        zero_bubble(4, 3)
