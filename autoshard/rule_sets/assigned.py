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
    deal_out,
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
                behind = spills.get(atom, ())
                dealt, _ = deal_out(context, (atom, *behind), context.parts(axis))
                choices += [ClassChoice(a, parts, "auto", _WHY) for a, parts in dealt]
        return Choices(tuple(choices))

    return RuleSet(label, decide, claims)
