"""Closed forms of the share of a step in which a stage waits, and of a step's time.

All schedules here run in lockstep: every stage does the same kind of work in the same tick. With S
stages, M microbatches, f, b and w the seconds of a stage's forward, input-gradient and
weight-gradient work on one microbatch, and v chunks a stage:

    gpipe        (M + S - 1)(f + b + w)               waits (S-1) / (M+S-1)
    1f1b         (M + S - 1)(f + b + w)               waits (S-1) / (M+S-1)
    interleaved  (M + (S - 1) / v)(f + b + w)         waits (S-1) / (Mv+S-1)
    zero_bubble  M (f + b + w) + (S - 1)(f + b)       waits (S-1)(f+b) of that

GPipe: Huang et al., 2019, section 2.3. 1F1B: "Efficient Large-Scale Language Model Training"
(Narayanan et al., 2021), section 2.2, with interleaving. Zero bubble: Qi et al., 2023, section 2.3;
their ZB-H1 waits (S-1)(f + b - w), since stages there do different work at the same time, which one
program of all devices cannot without a conditional around its collectives.
"""

import dataclasses
from typing import Literal

ScheduleName = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]


@dataclasses.dataclass(frozen=True)
class TickCosts:
    """Seconds of one stage's work on one microbatch, all its layers.

    Attributes:
      forward: f.
      inputs: b, the gradient by the stage's input, with what is computed again for it.
      weights: w, what the gradient by the weights adds to that.
      always: work of every microbatch that all stages share (a vocabulary split over them).
    """

    forward: float = 1.0
    inputs: float = 1.0
    weights: float = 1.0
    always: float = 0.0


def step_time(
    name: ScheduleName, stages: int, microbatches: int, chunks: int, costs: TickCosts
) -> float:
    """Seconds of all ticks."""
    f, b, w = costs.forward, costs.inputs, costs.weights
    busy = microbatches * (f + b + w + costs.always)
    if name == "zero_bubble":
        return busy + (stages - 1) * (f + b)
    return busy + (stages - 1) * (f + b + w) / (chunks if name == "interleaved" else 1)


def bubble(
    name: ScheduleName,
    stages: int,
    microbatches: int,
    chunks: int = 1,
    costs: TickCosts | None = None,
) -> float:
    """The share of a step in which a stage does nothing useful, from 0 to 1.

    Args:
      name: the schedule.
      stages: S.
      microbatches: M.
      chunks: v, of an interleaved schedule.
      costs: of a tick; the default gives forward and both halves of the backward pass a third each.
    """
    costs = costs or TickCosts()
    busy = microbatches * (costs.forward + costs.inputs + costs.weights + costs.always)
    return 1 - busy / step_time(name, stages, microbatches, chunks, costs)
