"""The user's regular expressions on parameter paths."""

import re
from typing import Any

from autoshard.errors import RuleError
from autoshard.mesh_shape import MeshShape
from autoshard.rule_sets.base import (
    AxisRules,
    Choices,
    LeafChoice,
    RuleContext,
    RuleSet,
    Subject,
    check_axis,
    is_data_axis,
)
from autoshard.rule_sets.user_rules import split_uses
from passes.program import Role


def patterns(*pairs: tuple[str, Any]) -> RuleSet:
    """The user's regular expressions on parameter paths, first match wins.

    Args:
      *pairs: (regex searched in paths such as `h_0/attn/query/kernel`, PartitionSpec or tuple with
        one entry a dimension: None, an axis, or a tuple of axes; missing trailing entries are
        None).
    """
    compiled = []
    for regex, spec in pairs:
        if isinstance(spec, str):
            raise RuleError(f"the pattern {regex!r} has the spec {spec!r}: write ({spec!r},)")
        try:
            compiled.append((re.compile(regex), tuple(spec)))
        except re.error as error:
            raise RuleError(
                f"the pattern {regex!r} is not a regular expression: {error}"
            ) from error

    def normal(spec: tuple[Any, ...]) -> list[tuple[str, ...]]:
        return [(e,) if isinstance(e, str) else tuple(e or ()) for e in spec]

    def claims(subject: Subject, shape: MeshShape, rules: AxisRules) -> frozenset[str]:
        del subject, rules
        used = [(axis, r) for r, spec in compiled for dim in normal(spec) for axis in dim]
        for axis, regex in used:
            check_axis(shape, axis, f"the pattern {regex.pattern!r}")
        return frozenset(axis for axis, _ in used if not is_data_axis(axis))

    def decide(context: RuleContext) -> Choices:
        program = context.subject.analysis.program
        choices, matched = list[LeafChoice](), set[str]()
        for position in program.with_role(Role.PARAMETER):
            leaf = program.inputs[position]
            for regex, spec in compiled:
                if regex.search(leaf.path):
                    matched.add(regex.pattern)
                    axes = normal(spec)
                    if len(axes) > len(leaf.shape):
                        raise RuleError(
                            f"the pattern {regex.pattern!r} gives {len(axes)} entries and matches "
                            f"{leaf.path} of shape {leaf.shape}: give at most one entry a dimension"
                        )
                    axes += [()] * (len(leaf.shape) - len(axes))
                    why = f"pattern {regex.pattern!r}"
                    choices += split_uses(position, leaf, axes, context, "patterns", why)
                    break
        unmatched = [r.pattern for r, _ in compiled if r.pattern not in matched]
        if unmatched:
            some = [program.inputs[i].path for i in program.with_role(Role.PARAMETER)][:5]
            raise RuleError(
                f"the pattern {unmatched[0]!r} matches no parameter that an earlier one has not "
                f"taken; paths look like {', '.join(some)}"
            )
        return Choices(leaves=tuple(choices))

    return RuleSet("patterns", decide, claims)
