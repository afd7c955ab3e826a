"""The collectives that a layout will cause, predicted from the gradient program.

A sharded factor that is contracted, or picked from, leaves *partial sums* on the devices:

    y = x @ w      x [batch, ffn/model], w [ffn/model, embed]     y is partial over `model`

Partial sums go through casts and views, and two that are only added to each other are added first
(dX of q, k and v). The first operation that needs the value makes it whole by an all-reduce; a
gradient that is kept sharded (ZeRO 2 and 3) by a reduce-scatter. To that come the gathers of
parameters that are stored sharded, those of operands that an operation needs whole, and the scalars
of the global gradient norm. XLA's compilers reduce 16-bit floats in float32, all of them.
"""

import dataclasses
import enum
import math
from collections.abc import Collection, Sequence

from autoshard import graph as graphs
from autoshard.factors import FactorRole
from autoshard.graph import Op
from autoshard.layouts import ArrayLayout, Layout
from autoshard.looked_up_rows import gathering, moving
from autoshard.named_dims import Analysis
from autoshard.program_flow import VIEWS, ParameterUse, ProgramFlow, program_flow
from autoshard.sharded_program import ShardedProgram
from passes.program import Role
from passes.spec import Spec

ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER = "all-reduce", "reduce-scatter", "all-gather"
ALL_TO_ALL = "all-to-all"
GRADIENT_NORM = "global norm of the gradients"
_SUMS = frozenset({"add", "add_any", "sub"})
_REDUCED_ITEMSIZE = 4


class Purpose(enum.StrEnum):
    """What a collective moves: activations (or their gradients), gradients of parameters,
    parameters, or scalars (the loss, the norm of the gradients).
    """

    ACTIVATIONS = "activations"
    GRADIENTS = "gradients"
    PARAMETERS = "parameters"
    SCALARS = "scalars"


class Phase(enum.StrEnum):
    """When: recomputation counts as backward."""

    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


@dataclasses.dataclass(frozen=True)
class CompilerHabits:
    """What XLA's compilers do differently.

    Attributes:
      merges_reductions: partial sums that are only added to each other are added first, and a
        reduction along several dimensions is one.
      gathers_16_bits: arrays of 16-bit floats are gathered as such, else as float32.
      sums_16_bits: sums of 16-bit floats over devices are made as such, else in float32.
      sums_gathered: gradients of gathered parameters are summed and then cut, because the lowering
        asks for it (`parameter_gather`).
    """

    merges_reductions: bool = True
    gathers_16_bits: bool = True
    sums_16_bits: bool = True
    sums_gathered: bool = False

    def gathered_itemsize(self, itemsize_bytes: int) -> int:
        """Bytes an element that is gathered, of those that it has."""
        return 4 if itemsize_bytes == 2 and not self.gathers_16_bits else itemsize_bytes


def habits_of(platform: str) -> CompilerHabits:
    """The habits of the compiler for `cpu`, `tpu` or `gpu`."""
    if platform == "cpu":
        return CompilerHabits(False, False, False)
    return CompilerHabits(sums_gathered=platform == "tpu")


@dataclasses.dataclass(frozen=True)
class PredictedCollective:
    """Arrays that one operation makes every device move.

    Attributes:
      kind: `all-reduce`, `reduce-scatter`, `all-gather`, `all-to-all`.
      purpose: what is moved.
      phase: when.
      source: `file.py:line (function)` of the user's code; empty if unknown.
      operation: the primitive, or the parameter's path.
      axes: the parts of the mesh that it runs over.
      devices: how many take part together.
      count: arrays a step, loops multiplied.
      payload_bytes: of one array on a device: the gathered result, the input of a reduction.
    """

    kind: str
    purpose: Purpose
    phase: Phase
    source: str
    operation: str
    axes: tuple[str, ...]
    devices: int
    count: int
    payload_bytes: int

    @property
    def sent_bytes(self) -> float:
        """What a device of a ring sends for all arrays: 2 (n-1)/n of an all-reduce, else (n-1)/n.

        Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH",
        2005, section 4.
        """
        share = (self.devices - 1) / self.devices
        return self.count * self.payload_bytes * share * (2 if self.kind == ALL_REDUCE else 1)


@dataclasses.dataclass(frozen=True)
class _Partial:
    """A value that is not summed yet: over which parts, and which operation left it so."""

    parts: tuple[str, ...]
    op: int
    value: int


class _Predictor:
    def __init__(self, program: ShardedProgram, flow: ProgramFlow, habits: CompilerHabits) -> None:
        self.program = program
        self.flow = flow
        self.habits = habits
        self.partial: dict[int, _Partial] = {}
        self.found: list[PredictedCollective] = []

    def run(self) -> list[PredictedCollective]:
        analysis = self.program.analysis
        for index, op in enumerate(analysis.graph.ops):
            if op.primitive == graphs.TIE:
                for value in op.inputs:
                    self._finish(value)
            elif any(analysis.sources[v] for v in op.inputs):
                self._operation(index, op)
        for value in analysis.graph.outputs:
            self._finish(value)
        return self.found

    def _operation(self, index: int, op: Op) -> None:
        if self._carried(op):
            return
        for value in op.inputs:
            self._finish(value)
        sums, kept = self._factors(index, op)
        for value in dict.fromkeys(op.inputs):
            self._gather(index, value, kept)
        if self.program.degree(sums) > 1:
            for value in op.outputs:
                self.partial[value] = _Partial(self.program.wide(sums), index, value)

    def _carried(self, op: Op) -> bool:
        """Whether the operation hands partial sums on, unsummed."""
        given = [self.partial.get(v) for v in op.inputs]
        alone = all(len(self.flow.users[v]) == 1 for v in op.inputs)
        if op.primitive in VIEWS and given[0] is not None and alone:
            self.partial[op.outputs[0]] = self.partial.pop(op.inputs[0])
            return True
        if op.primitive not in _SUMS or not self.habits.merges_reductions or not alone:
            return False
        first = given[0]
        if first is None or len(given) < 2 or given[1] is None or given[1].parts != first.parts:
            return False
        for value in op.inputs:
            self.partial.pop(value, None)
        self.partial[op.outputs[0]] = first
        return True

    def _factors(self, index: int, op: Op) -> tuple[set[str], set[str]]:
        """(parts whose shards are summed, parts that operands may keep)."""
        sums: set[str] = set()
        blocked: set[str] = set()
        kept = {p for v in op.outputs for p in self.program.spec_parts(v)}
        rule = self.program.analysis.rules[index]
        bound = self.program.analysis.factor_dims(index)
        for info, atoms in zip(rule.factors, bound, strict=True):
            parts = self.program.factor_parts(atoms)
            picked = info.role is FactorRole.INDEXED and op.primitive == "gather"
            if info.role is FactorRole.CONTRACTED or picked:
                sums.update(parts)
            if info.role is FactorRole.BLOCKED:
                blocked.update(parts)
            else:
                kept.update(parts)
        return sums, kept - blocked

    def _gather(self, index: int, value: int, kept: set[str]) -> None:
        """Gather an operand over the parts of its layout that the operation cannot keep.

        They are those of dimensions that must be whole, and those that no dimension of a result can
        carry: behind a major atom that is not sharded, or across a reshape without a nested
        refinement. The batch stays where it is.
        """
        lost = self.program.spec_parts(value) - kept - self.program.stays
        degree = self.program.degree(lost)
        if degree > 1:
            payload = self.program.local_bytes(value) * degree
            self._emit(ALL_GATHER, Purpose.ACTIVATIONS, index, lost, payload)

    def _finish(self, value: int) -> None:
        """Make a partial sum whole."""
        partial = self.partial.pop(value, None)
        if partial is None:
            return
        least = 1 if self.habits.sums_16_bits else _REDUCED_ITEMSIZE
        payload = self.program.local_size(partial.value) * max(
            self.program.itemsize_bytes(partial.value), least
        )
        position = self.flow.gradient_of.get(value)
        if position is None:
            scalar = not self.program.analysis.graph.values[value].shape
            purpose = Purpose.SCALARS if scalar else Purpose.ACTIVATIONS
            self._emit(ALL_REDUCE, purpose, partial.op, partial.parts, payload)
            return
        array = self.program.layout.arrays[position]
        kept = _parts(array.grad) - _parts(array.compute)
        scattered = [p for p in partial.parts if p in kept]
        rest = [p for p in partial.parts if p not in kept]
        if scattered and not self._moves_rows(partial, position, scattered, payload):
            self._emit(REDUCE_SCATTER, Purpose.GRADIENTS, partial.op, scattered, payload)
        if rest:
            payload /= self.program.degree(scattered)
            self._emit(ALL_REDUCE, Purpose.GRADIENTS, partial.op, rest, payload)

    def _moves_rows(
        self, partial: _Partial, position: int, parts: list[str], table_bytes: float
    ) -> bool:
        """Move the rows that fall on a table to where its gradient is kept, if they are fewer.

        The gradient of a lookup is a scatter of rows. Where the table's rows are cut, every device
        takes all of the batch's; where its columns are, each takes its columns of them (all-to-all)
        and everybody's indices. Compiled programs do so where that weighs no more than the table;
        and the gradients of rows that were looked up in shards go back to them.
        """
        array = self.program.layout.arrays[position]
        op = self.program.analysis.graph.ops[partial.op]
        rule = self.program.analysis.rules[partial.op]
        if op.primitive != "scatter-add" or partial.parts != tuple(parts):
            return False
        if moving(self.program, self.flow, position):
            itemsize = self.program.itemsize_bytes(op.inputs[2])
            rows_bytes = self.program.local_size(op.inputs[2]) * itemsize
            self._emit(ALL_TO_ALL, Purpose.GRADIENTS, partial.op, parts, rows_bytes)
            return True
        if self.habits.sums_gathered and array.param != array.compute:
            return False
        cut = [d for d, dim in enumerate(array.grad) if set(dim) & set(parts)]
        if len(cut) != 1 or len(rule.operands[0]) != len(array.grad):
            return False
        roles = {rule.factors[f].role for f in rule.operands[0][cut[0]]}
        degree = self.program.degree(parts)
        kind, times = (ALL_GATHER, degree) if FactorRole.INDEXED in roles else (ALL_TO_ALL, 1)
        rows_bytes = self.program.local_size(op.inputs[2]) * _REDUCED_ITEMSIZE * times
        indices_bytes = self.program.local_bytes(op.inputs[1]) * degree
        weighed = rows_bytes / degree if kind == ALL_TO_ALL else rows_bytes + indices_bytes
        if weighed > table_bytes:
            return False
        self._emit(kind, Purpose.GRADIENTS, partial.op, parts, rows_bytes)
        self._emit(ALL_GATHER, Purpose.GRADIENTS, partial.op, parts, indices_bytes)
        return True

    def _emit(
        self,
        kind: str,
        purpose: Purpose,
        index: int,
        parts: Collection[str],
        payload: float,
    ) -> None:
        op = self.program.analysis.graph.ops[index]
        self.found.append(
            PredictedCollective(
                kind=kind,
                purpose=purpose,
                phase=Phase.FORWARD if self.flow.forward[index] else Phase.BACKWARD,
                source=op.source,
                operation=op.primitive,
                axes=self.program.wide(parts),
                devices=self.program.degree(parts),
                count=math.ceil(self.program.repeats(index)),
                payload_bytes=round(payload),
            )
        )


def _parts(spec: Spec) -> set[str]:
    return {p for dim in spec for p in dim}


def _parameter_gathers(
    program: ShardedProgram, flow: ProgramFlow, position: int, habits: CompilerHabits
) -> list[PredictedCollective]:
    """Gathers of one parameter that is stored otherwise than it is used, or moves of its rows."""
    array = program.layout.arrays[position]
    lost = _parts(array.param) - _parts(array.compute)
    if program.degree(lost) == 1:
        return []
    used = array.leaf.size / program.degree(_parts(array.compute))

    def one(
        use: ParameterUse, kind: str, parts: Collection[str], size: float, itemsize: int
    ) -> PredictedCollective:
        return PredictedCollective(
            kind=kind,
            purpose=Purpose.PARAMETERS,
            phase=Phase.FORWARD if use.forward else Phase.BACKWARD,
            source=program.analysis.graph.ops[use.op].source,
            operation=array.leaf.path,
            axes=program.wide(parts),
            devices=program.degree(parts),
            count=program.slices(use),
            payload_bytes=round(size / program.slices(use) * itemsize),
        )

    found = [
        one(use, ALL_GATHER, lost, used, habits.gathered_itemsize(use.itemsize_bytes))
        for use in gathering(program, flow, position)
    ]
    for use, move in moving(program, flow, position):
        op = program.analysis.graph.ops[use.op]
        rows = program.local_size(op.outputs[0])
        found.append(one(use, ALL_TO_ALL, move.parts, rows, use.itemsize_bytes))
        if program.analysis.sources[op.inputs[1]]:
            indices = program.local_size(op.inputs[1]) * program.degree(move.parts)
            itemsize = program.itemsize_bytes(op.inputs[1])
            found.append(one(use, ALL_GATHER, move.parts, indices, itemsize))
    return found


def _optimizer(program: ShardedProgram, habits: CompilerHabits) -> list[PredictedCollective]:
    """Gathers of what is updated by shards, and the scalars of the gradients' norm."""
    arrays = [a for a in program.layout.arrays if a.leaf.role is Role.PARAMETER]
    found = []
    for array in arrays:
        lost = _parts(array.opt) - _parts(array.param)
        if program.degree(lost) > 1:
            used = array.leaf.size_bytes / program.degree(_parts(array.param))
            found.append(_update(program, ALL_GATHER, lost, round(used), array.leaf.path))
    return found + _gradient_norm(program, arrays, habits)


def _gradient_norm(
    program: ShardedProgram, arrays: Sequence[ArrayLayout], habits: CompilerHabits
) -> list[PredictedCollective]:
    """One sum of squares an array whose gradient is kept sharded.

    They are added one after the other, so that those of the first arrays, up to one with another
    layout, are added before they are reduced; over several axes the compiler does not do that.
    """
    if habits.merges_reductions:
        kept = [program.wide(_parts(a.grad)) for a in arrays]
    else:
        kept = [program.wide(dim) for a in arrays for dim in a.grad]
    if habits.merges_reductions and kept and len(kept[0]) == 1:
        merged = next((i for i, k in enumerate(kept) if k != kept[0]), len(kept))
        kept = [kept[0], *kept[merged:]]
    return [
        _update(program, ALL_REDUCE, parts, _REDUCED_ITEMSIZE, GRADIENT_NORM)
        for parts in kept
        if program.degree(parts) > 1
    ]


def _update(
    program: ShardedProgram, kind: str, parts: Collection[str], payload: int, what: str
) -> PredictedCollective:
    gathers = kind == ALL_GATHER
    return PredictedCollective(
        kind=kind,
        purpose=Purpose.PARAMETERS if gathers else Purpose.SCALARS,
        phase=Phase.OPTIMIZER,
        source="",
        operation=what,
        axes=program.wide(parts),
        devices=program.degree(parts),
        count=1,
        payload_bytes=payload,
    )


def predict_collectives(
    analysis: Analysis,
    layout: Layout,
    trains: bool,
    flow: ProgramFlow | None = None,
    habits: CompilerHabits | None = None,
    stages: int = 1,
) -> tuple[PredictedCollective, ...]:
    """Predict the collectives of one step.

    Args:
      analysis: of the gradient program when training, else of the forward program.
      layout: its arrays are the program's inputs.
      trains: whether parameters are updated.
      flow: `program_flow(analysis)`, if it is at hand.
      habits: of the compiler; those of most where not given.
      stages: of a pipeline, which share loops over layers.
    """
    program = ShardedProgram(analysis, layout, stages)
    flow = flow or program_flow(analysis)
    habits = habits or CompilerHabits()
    found = _Predictor(program, flow, habits).run()
    for position, leaf in enumerate(analysis.program.inputs):
        if leaf.role is Role.PARAMETER:
            found += _parameter_gathers(program, flow, position, habits)
    if trains:
        found += _optimizer(program, habits)
    return _joined(found)


def _joined(found: Sequence[PredictedCollective]) -> tuple[PredictedCollective, ...]:
    """Equal ones counted together."""
    counts: dict[PredictedCollective, int] = {}
    for collective in found:
        key = dataclasses.replace(collective, count=0)
        counts[key] = counts.get(key, 0) + collective.count
    return tuple(dataclasses.replace(key, count=count) for key, count in counts.items())
