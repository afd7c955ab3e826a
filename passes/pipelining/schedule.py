"""A schedule as data: which ticks do what, and which microbatch a stage works on in each.

Stages work in lockstep. A *piece* is a chunk of a stage, so the model is cut into S * v pieces and
a microbatch passes them one tick after the other. With v > 1 microbatches go in groups of S: a
group's last one has entered the first stage when its first one comes back from the last stage for
the next chunk, so nothing waits in between.

    w = t - s                      what stage s forwards in tick t:    group w // (S v)
    w = t - (S v - 1) - (S-1-s)    what it runs backward:              chunk (w mod S v) // S
                                                                       place in its group w mod S
"""

import dataclasses
import enum
from typing import Any

from passes.pipelining.closed_forms import ScheduleName


class Backward(enum.Enum):
    """What a tick differentiates by."""

    NOTHING = "nothing"
    INPUTS = "inputs"
    EVERYTHING = "everything"


@dataclasses.dataclass(frozen=True)
class Run:
    """Ticks that do the same.

    Attributes:
      ticks: how many.
      enters: whether the next microbatch is prepared for the first stage.
      forward: whether stages run forward.
      leaves: whether the epilogue runs, on what the last stage has just made.
      backward: what stages run backward.
      returns: whether the prologue runs backward, on what left the first stage a tick before.
    """

    ticks: int
    enters: bool = False
    forward: bool = False
    leaves: bool = False
    backward: Backward = Backward.NOTHING
    returns: bool = False


@dataclasses.dataclass(frozen=True)
class Phase:
    """Runs, and how often they repeat."""

    runs: tuple[Run, ...]
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Item:
    """What a stage works on in a tick; fields are Python or traced integers and booleans.

    Attributes:
      valid: whether there is something to do.
      microbatch: of 0..M-1 where valid.
      chunk: of 0..v-1.
      late: whether it is the second half of a backward pass that was begun before.
    """

    valid: Any
    microbatch: Any
    chunk: Any
    late: Any = False


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A schedule.

    Attributes:
      name: `gpipe`, `1f1b`, `interleaved` or `zero_bubble`.
      stages: S.
      microbatches: M.
      chunks: v.
      phases: all ticks, in order.
      defers: whether early weight gradients are left for the ticks at the end.
    """

    name: ScheduleName
    stages: int
    microbatches: int
    chunks: int
    phases: tuple[Phase, ...]
    defers: bool = False

    @property
    def pieces(self) -> int:
        """S * v."""
        return self.stages * self.chunks

    @property
    def slots(self) -> int:
        """Arrays of a stage's input's size that a stage keeps for the backward pass."""
        return 2 * self.pieces - 1

    @property
    def first_backward(self) -> int:
        """The tick in which the last stage begins with the first microbatch's backward pass."""
        return self.pieces - 1

    def forward_item(self, tick: Any, stage: Any) -> Item:
        """What a stage runs forward in a tick."""
        return self._item(tick - stage, backward=False)

    def backward_item(self, tick: Any, stage: Any) -> Item:
        """What a stage runs backward in a tick."""
        order = tick - self.first_backward - (self.stages - 1 - stage)
        if not self.defers:
            return self._item(order, backward=True)
        late = order >= self.microbatches
        return Item(order >= 0, order - self.microbatches * late, 0 * order, late)

    def leaving(self, tick: Any) -> Any:
        """The microbatch that leaves the last stage's last chunk in a tick."""
        return self._item(tick - (self.stages - 1), backward=False).microbatch

    def entering(self, tick: Any) -> Any:
        """The microbatch that enters the first stage in a tick."""
        return self._item(tick, backward=False).microbatch

    def returning(self, tick: Any) -> Any:
        """The microbatch whose gradient leaves the first stage's first chunk in a tick."""
        return self.backward_item(tick, 0).microbatch

    def slot(self, item: Item, stage: Any) -> Any:
        """Where a stage keeps its input of an item from its forward to its backward pass.

        A ring; with deferred weight gradients stage s keeps the inputs of its first s microbatches
        to the end, in slots of their own, and rings in what is left.
        """
        if not self.defers:
            place = item.microbatch // self.stages * self.pieces + item.microbatch % self.stages
            return (place + item.chunk * self.stages) % self.slots
        early = item.microbatch < stage
        ring = 2 * stage + (item.microbatch - stage) % (2 * (self.stages - 1 - stage) + 1)
        microbatch = item.microbatch * (item.microbatch > 0)
        return microbatch * early + ring * (1 - early)

    def cotangent_slot(self, item: Item, stage: Any) -> Any:
        """Where a stage keeps the output gradient of a microbatch that it defers."""
        return stage + item.microbatch * (item.microbatch > 0)

    def _item(self, order: Any, backward: bool) -> Item:
        valid = (order >= 0) & (order < self.microbatches * self.chunks)
        chunk = order % self.pieces // self.stages
        microbatch = order // self.pieces * self.stages + order % self.stages
        return Item(valid, microbatch, self.chunks - 1 - chunk if backward else chunk)
