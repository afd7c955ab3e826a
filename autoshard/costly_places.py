"""Notes on what makes a layout dearer than it looks, with the way out."""

from collections.abc import Mapping

from autoshard.factors import FactorRole
from autoshard.layouts import Layout
from autoshard.named_dims import Source
from autoshard.rule_sets.base import Subject
from autoshard.scanned_stacks import scans_made_stacks
from autoshard.sharded_program import class_parts

_CUTS = ("slice", "split")


def costly_places(subject: Subject, layout: Layout) -> tuple[str, ...]:
    """Notes on a layout of a forward program: cut dimensions that are sharded, gathered stacks."""
    notes = _cut_dimensions(subject, class_parts(subject.analysis, layout))
    if layout.zero_stage == 3 and scans_made_stacks(subject.analysis):
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
