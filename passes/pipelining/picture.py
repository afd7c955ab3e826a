"""A schedule as a picture: who does what when, as data."""

import dataclasses
from typing import Literal

from passes.pipelining.closed_forms import TickCosts
from passes.pipelining.schedule import Backward, Run, Schedule

Kind = Literal["forward", "backward", "inputs", "weights"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A stage's work on a microbatch.

    Attributes:
      stage: 0..S-1.
      begin, end: half-open interval, in the unit of the costs.
      microbatch: 0..M-1.
      chunk: 0..v-1.
      kind: `forward`; `backward`, by everything; `inputs`, the gradient by the stage's input alone;
        `weights`, what was deferred then.
    """

    stage: int
    begin: float
    end: float
    microbatch: int
    chunk: int
    kind: Kind


def picture(schedule: Schedule, costs: TickCosts | None = None) -> tuple[Cell, ...]:
    """All cells of a schedule, by time and stage.

    Args:
      schedule: the schedule.
      costs: of all layers of a stage; a chunk's ticks are shorter. What all stages share
        (`always`) comes between a tick's halves.
    """
    costs = costs or TickCosts()
    cells: list[Cell] = []
    now, tick = 0.0, 0
    for run in _runs(schedule):
        for _ in range(run.ticks):
            now = _tick(schedule, run, tick, now, costs, cells)
            tick += 1
    return tuple(sorted(cells, key=lambda cell: (cell.begin, cell.stage)))


def _runs(schedule: Schedule) -> list[Run]:
    return [run for phase in schedule.phases for _ in range(phase.repeats) for run in phase.runs]


def _tick(
    schedule: Schedule, run: Run, tick: int, now: float, costs: TickCosts, cells: list[Cell]
) -> float:
    """Add the cells of a tick that begins at `now`; its end."""
    stages = range(schedule.stages)
    if run.forward:
        end = now + costs.forward / schedule.chunks
        for stage in stages:
            item = schedule.forward_item(tick, stage)
            if item.valid:
                cells.append(Cell(stage, now, end, item.microbatch, item.chunk, "forward"))
        now = end + (costs.always if run.leaves else 0.0)
    if run.backward is not Backward.NOTHING:
        weights = costs.weights if run.backward is Backward.EVERYTHING else 0.0
        end = now + (costs.inputs + weights) / schedule.chunks
        for stage in stages:
            item = _backward_item(schedule, tick, stage)
            kind: Kind = "backward" if weights else "inputs"
            if item.valid:
                late: Kind = "weights" if item.late else kind
                cells.append(Cell(stage, now, end, item.microbatch, item.chunk, late))
        now = end
    return now


def _backward_item(schedule: Schedule, tick: int, stage: int):  # type: ignore[no-untyped-def]
    if schedule.name == "gpipe":  # the forward ticks in reverse
        last = 2 * (schedule.microbatches + schedule.stages - 1) - 1
        return schedule.forward_item(last - tick, stage)
    return schedule.backward_item(tick, stage)
