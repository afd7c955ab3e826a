"""Groups of classes on mesh axes, as the planner's search assigns them."""

import dataclasses

from autoshard.mesh_shape import MeshShape
from autoshard.rule_sets.base import (
    AxisRules,
    Choices,
    ClassChoice,
    RuleContext,
    RuleSet,
    Subject,
    take_parts,
)

_WHY = "chosen by search"


@dataclasses.dataclass(frozen=True)
class Unit:
    """Classes that are sharded together or not at all.

    Attributes:
      label: a named dimension, or a part of one (`hidden/1`).
      atoms: the classes.
      spills: pairs (class, the classes behind it that take what it leaves of an axis): queries that
        share fewer keys than there are devices.
    """

    label: str
    atoms: tuple[int, ...]
    spills: tuple[tuple[int, tuple[int, ...]], ...] = ()


def assigned(pairs: tuple[tuple[Unit, str], ...]) -> RuleSet:
    """Shard units over axes; a size that does not divide takes the parts of the axis that do."""
    label = " ".join(f"{unit.label}={axis}" for unit, axis in pairs)

    def claims(subject: Subject, shape: MeshShape, rules: AxisRules) -> frozenset[str]:
        del subject, rules
        return frozenset(axis for _, axis in pairs if axis in shape.names)

    def decide(context: RuleContext) -> Choices:
        choices: list[ClassChoice] = []
        for unit, axis in pairs:
            spills = dict(unit.spills)
            for atom in unit.atoms:
                choices += _taken(context, atom, spills.get(atom, ()), axis)
        return Choices(tuple(choices))

    return RuleSet(label, decide, claims)


def _taken(
    context: RuleContext, atom: int, behind: tuple[int, ...], axis: str
) -> list[ClassChoice]:
    sizes, mesh = context.subject.analysis.sizes, context.mesh.refined
    rest, found = context.parts(axis), []
    for target in (atom, *behind):
        taken, rest = take_parts(mesh.by_name, rest, sizes[target])
        if taken:
            found.append(ClassChoice(target, taken, "auto", _WHY))
        if not rest or mesh.shards(taken) != sizes[target]:
            break
    return found
