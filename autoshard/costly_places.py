"""Notes on what makes a layout dearer than it looks, with the way out."""

from collections.abc import Mapping

from autoshard import graph as graphs
from autoshard.cost import class_parts
from autoshard.factors import FactorRole
from autoshard.layouts import Layout
from autoshard.named_dims import Source
from autoshard.rule_sets.base import Subject
from passes.lazy_inputs import SLICED_THROUGH

_CUTS = ("slice", "split")


def costly_places(subject: Subject, layout: Layout) -> tuple[str, ...]:
    """Notes on a layout of a forward program: cut dimensions that are sharded, gathered stacks."""
    notes = _cut_dimensions(subject, class_parts(subject.analysis, layout))
    if layout.zero_stage == 3 and _scans_made_stacks(subject):
        notes.append(
            "the program scans over stacks that it makes of parameters: zero3 gathers each whole "
            "before its loop, so the gathered copies take as much memory as the unsharded stacks; "
            "keep the parameters stacked, [layers, ...], and slices are gathered in the loop"
        )
    return tuple(dict.fromkeys(notes))


def _cut_dimensions(subject: Subject, parts: Mapping[int, tuple[str, ...]]) -> list[str]:
    analysis = subject.analysis
    batch = set(subject.structure.batch_atoms)
    notes = []
    for index, (op, rule) in enumerate(zip(analysis.graph.ops, analysis.rules, strict=True)):
        if op.primitive not in _CUTS or not analysis.sources[op.inputs[0]] & Source.BATCH:
            continue
        for factor, atoms in enumerate(analysis.factor_dims(index)):
            if rule.factors[factor].role is not FactorRole.BLOCKED:
                continue
            if any(atom in parts and atom not in batch for atom in atoms[:1]):
                notes.append(
                    f"a sharded dimension of size {rule.factors[factor].size} "
                    f"({subject.names.of[atoms[0]]}) is cut in pieces, which costs all-to-alls or "
                    "permutes: use separate projections, or a layout [heads, pieces, head_dim]"
                )
    return notes


def _scans_made_stacks(subject: Subject) -> bool:
    """Whether the operand of some scan is more than a parameter, or a slice of one, seen anew."""
    analysis = subject.analysis
    made_by = {value: op for op in analysis.graph.ops for value in op.outputs}
    for op in analysis.graph.ops:
        if op.primitive != graphs.SCAN_XS or analysis.sources[op.inputs[0]] != Source.PARAMETER:
            continue
        maker = made_by.get(op.inputs[0])
        while maker is not None and maker.primitive in (*SLICED_THROUGH, graphs.SCAN_XS):
            maker = made_by.get(maker.inputs[0])
        if maker is not None:
            return True
    return False
