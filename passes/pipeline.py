"""Pipeline parallelism: layers in stages, one device (or group of devices) a stage.

    scan over L layers  ->  stages of L/S layers, microbatches passing from one to the next

The forward program stays what it is; outputs and gradients are computed by a schedule of ticks in
which all stages work side by side on different microbatches. See `passes.pipelining`.
"""

import dataclasses
import math
from typing import ClassVar

from jax.sharding import Mesh

from passes import ir
from passes.errors import PassError
from passes.pipelining.closed_forms import ScheduleName, bubble
from passes.pipelining.constraints import count_constraints, without_constraints
from passes.pipelining.gpipe import gpipe
from passes.pipelining.interleaved import interleaved
from passes.pipelining.one_f_one_b import one_f_one_b
from passes.pipelining.rule import Pipelined
from passes.pipelining.schedule import Schedule
from passes.pipelining.segments import Segments, cut_segments
from passes.pipelining.stage_steps import StageSteps
from passes.pipelining.stages import StageLayout, cut_stages
from passes.pipelining.vocabulary import Vocabulary, find_vocabulary, source_of
from passes.pipelining.ways import split_microbatches
from passes.pipelining.zero_bubble import zero_bubble
from passes.program import Placement, Program, Role
from passes.spec import Spec

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
        mesh = placement.mesh
        stages = mesh.shape[self.axis]
        schedule = self.ticks(stages)
        constraints = count_constraints(program.jaxpr)
        plain = dataclasses.replace(program, jaxpr=without_constraints(program.jaxpr))
        specs = _input_specs(plain, placement)
        batch = self._batch_axes(plain, specs)
        ways = math.prod(mesh.shape[axis] for axis in batch)
        split, own_ways = split_microbatches(plain, self.microbatches, ways)
        segments = cut_segments(plain, split)
        counts = cut_stages([1.0] * segments.layers, schedule.pieces)
        layout = StageLayout(stages, schedule.chunks, counts)
        own = batch if own_ways == ways else ()
        vocabulary = self._vocabulary(segments, specs, mesh, own)
        steps = StageSteps(segments, layout, schedule, mesh, self.axis, own)
        notes = self._notes(segments, layout, schedule, vocabulary)
        if own_ways != ways:
            notes.append(
                f"a microbatch's {split.size // self.microbatches} rows cannot be computed apart "
                f"on {ways} ways of data, so gradients are summed over them in every tick: use "
                "fewer microbatches"
            )
        if constraints:
            notes.append(f"{constraints} sharding constraints are left out: stages lay out anew")
        rule = Pipelined(steps, vocabulary)
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
        if program.gradient is not None:
            raise PassError(
                "the program's gradient is computed by another pass already: leave one of them out"
            )
        if ir.has_manual_axes(program.jaxpr):
            raise PassError(
                "attention is spread over devices by the pass sequence, which does not work inside "
                "stages yet: leave one of the two out"
            )
        axes = dict(program.placement.mesh.shape)
        if self.axis not in axes:
            listed = ", ".join(f"{name}={size}" for name, size in axes.items())
            raise PassError(
                f"the mesh has no axis {self.axis!r} for the stages (it has {listed}): add "
                f"'{self.axis}=2' to it, or name one of its axes with axis="
            )
        return program.placement

    def _batch_axes(self, program: Program, specs: tuple[Spec, ...]) -> tuple[str, ...]:
        """The mesh axes that shard rows."""
        for leaf, spec in zip(program.whole_inputs, specs, strict=True):
            if leaf.role is Role.BATCH and leaf.shape and spec:
                return tuple(axis for axis in spec[0] if axis != self.axis)
        return ()

    def _vocabulary(
        self, segments: Segments, specs: tuple[Spec, ...], mesh: Mesh, batch: tuple[str, ...]
    ) -> Vocabulary:
        """What to split over the stages, besides the axes that split it already."""
        stages = mesh.shape[self.axis]
        dims = find_vocabulary(segments, stages) if self.split_vocabulary else ()
        whole = [i for i, is_cut in enumerate(segments.split.cut) if not is_cut]
        others = []
        for place, dim in dims:
            source = source_of(segments, place, dim)
            known = source is not None and source[0] < len(whole)
            spec = specs[whole[source[0]]] if source is not None and known else ()
            axes = spec[source[1]] if source is not None and spec else ()
            axes = tuple(axis for axis in axes if axis not in (self.axis, *batch))
            parts = stages * math.prod(mesh.shape[axis] for axis in axes)
            size = segments.shared_specs[place].shape[dim]
            others.append(axes if size % parts == 0 else ())
        return Vocabulary(mesh, self.axis, dims, tuple(others))

    def _notes(
        self,
        segments: Segments,
        layout: StageLayout,
        schedule: Schedule,
        vocabulary: Vocabulary,
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
        if vocabulary.dims:
            shapes = [segments.shared_specs[place].shape for place, _ in vocabulary.dims]
            notes.append(
                f"split over the stages along the vocabulary: {', '.join(map(str, shapes))}"
            )
        return notes


def _input_specs(program: Program, placement: Placement) -> tuple[Spec, ...]:
    """How each input of the whole lies on the mesh; an empty tuple where that is not known."""
    specs = placement.specs(program)
    variables = ir.closed(program.jaxpr)[0].invars
    first = 0 if program.split is None else 1  # a part's program begins with its number
    own = variables[first : first + len(program.whole_inputs)]
    return tuple(specs.get(var, ()) for var in own)
