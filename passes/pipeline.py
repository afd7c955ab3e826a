"""Pipeline parallelism: layers in stages, one device (or group of devices) a stage.

    scan over L layers  ->  stages of L/S layers, microbatches passing from one to the next

The forward program stays what it is; outputs and gradients are computed by a schedule of ticks in
which all stages work side by side on different microbatches. See `passes.pipelining`.
"""

import dataclasses
import math
from typing import ClassVar

from passes import ir
from passes.batch_split import split_batch
from passes.errors import PassError
from passes.pipelining.closed_forms import ScheduleName, bubble
from passes.pipelining.gpipe import gpipe
from passes.pipelining.interleaved import interleaved
from passes.pipelining.one_f_one_b import one_f_one_b
from passes.pipelining.rule import Pipelined
from passes.pipelining.schedule import Schedule
from passes.pipelining.segments import Segments, cut_segments
from passes.pipelining.stage_steps import StageSteps
from passes.pipelining.stages import StageLayout, cut_stages
from passes.pipelining.vocabulary import Vocabulary, find_vocabulary
from passes.pipelining.zero_bubble import zero_bubble
from passes.program import Placement, Program, Role

_SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Runs a program's layers in stages.

    Attributes:
      axis: the mesh axis whose devices are the stages.
      schedule: `gpipe`, `1f1b`, `interleaved` or `zero_bubble`.
      microbatches: M, parts of the batch; the more, the less stages wait.
      chunks: pieces of the model that a stage holds, for `interleaved`.
      split_vocabulary: split embedding and vocabulary layers over the stages.
    """

    axis: str = "stage"
    schedule: ScheduleName = "1f1b"
    microbatches: int = 8
    chunks: int = 2
    split_vocabulary: bool = True
    name: str = dataclasses.field(default="pipeline", init=False, repr=False)
    after_planning: ClassVar[bool] = True

    @property
    def pins(self) -> tuple[tuple[str, str], ...]:
        """The dimensions that the stage axis shards."""
        vocabulary = (("vocab", self.axis),) if self.split_vocabulary else ()
        return (("layers", self.axis), *vocabulary)

    def apply(self, program: Program) -> Program:
        """The same forward program; its gradient is computed stage by stage.

        Raises:
          PassError: there is no loop over stacked parameters, it has fewer layers than there are
            stages, the microbatches do not divide, or the mesh has no such axis.
        """
        placement = self._placement(program)
        stages = placement.mesh.shape[self.axis]
        schedule = self.ticks(stages)
        split = split_batch(program, self.microbatches)
        batch = self._batch_axes(program, placement)
        ways, rows = math.prod(batch.values()), split.size // split.count
        if rows % ways:
            batch = {}
        elif ways > 1:
            split = split_batch(program, self.microbatches * ways)
        segments = cut_segments(program, split)
        counts = cut_stages([1.0] * segments.layers, schedule.pieces)
        layout = StageLayout(stages, schedule.chunks, counts)
        dims = find_vocabulary(segments, stages) if self.split_vocabulary else ()
        steps = StageSteps(segments, layout, schedule, placement.mesh, self.axis, tuple(batch))
        rule = Pipelined(steps, Vocabulary(placement.mesh, self.axis, dims))
        notes = self._notes(segments, layout, schedule, dims)
        if rows % ways:
            notes.append(
                f"a microbatch's {rows} rows do not divide over the {ways} ways of data, so "
                "gradients are summed over them in every tick: use fewer microbatches"
            )
        return dataclasses.replace(program, gradient=rule).noting(*notes)

    def ticks(self, stages: int) -> Schedule:
        """The schedule as data, for its picture (`passes.pipelining.picture`).

        Raises:
          PassError: there is no such schedule, or it does not fit the microbatches.
        """
        if self.schedule == "gpipe":
            return gpipe(stages, self.microbatches)
        if self.schedule == "1f1b":
            return one_f_one_b(stages, self.microbatches)
        if self.schedule == "zero_bubble":
            return zero_bubble(stages, self.microbatches)
        if self.schedule == "interleaved":
            return interleaved(stages, self.microbatches, self.chunks)
        raise PassError(f"unknown schedule {self.schedule!r}: use one of {', '.join(_SCHEDULES)}")

    def _placement(self, program: Program) -> Placement:
        if program.placement is None:
            raise PassError("there is no plan yet: the stages are an axis of the plan's mesh")
        if program.gradient is not None or program.split is not None:
            raise PassError(
                "the program is computed in microbatches already (a pipeline has its own): leave "
                "one of the two out"
            )
        axes = dict(program.placement.mesh.shape)
        if self.axis not in axes:
            listed = ", ".join(f"{name}={size}" for name, size in axes.items())
            raise PassError(
                f"the mesh has no axis {self.axis!r} for the stages (it has {listed}): add "
                f"'{self.axis}=2' to it, or name one of its axes with axis="
            )
        return program.placement

    def _batch_axes(self, program: Program, placement: Placement) -> dict[str, int]:
        """The mesh axes that shard rows, and their sizes."""
        specs = placement.specs(program)
        for var, leaf in zip(ir.closed(program.jaxpr)[0].invars, program.inputs, strict=True):
            spec = specs.get(var)
            if leaf.role is Role.BATCH and leaf.shape and spec:
                return {axis: placement.mesh.shape[axis] for axis in spec[0] if axis != self.axis}
        return {}

    def _notes(
        self,
        segments: Segments,
        layout: StageLayout,
        schedule: Schedule,
        dims: tuple[tuple[int, int], ...],
    ) -> list[str]:
        waits = bubble(self.schedule, layout.stages, self.microbatches, schedule.chunks)
        pieces = f" of {layout.chunks} chunks" if layout.chunks > 1 else ""
        notes = [
            f"{segments.layers} layers in {layout.stages} stages{pieces}, {self.microbatches} "
            f"microbatches, {self.schedule}: stages wait {waits:.1%} of the time"
        ]
        if not layout.is_even:
            notes.append(
                f"the layers do not divide: pieces of {', '.join(map(str, layout.counts))} layers "
                f"all take the time of {layout.slots}"
            )
        elif not layout.is_stored:
            notes.append(
                "the stacks are not stored in the stages' order, so each step moves layers between "
                f"stages: the order would be {', '.join(map(str, layout.storage_order))}"
            )
        if segments.others:
            notes.append(
                f"{segments.others} other loops over layers are not pipelined: every stage runs "
                "them for each microbatch"
            )
        if dims:
            shapes = [segments.shared_specs[place].shape for place, _ in dims]
            notes.append(
                f"split over the stages along the vocabulary: {', '.join(map(str, shapes))}"
            )
        return notes
