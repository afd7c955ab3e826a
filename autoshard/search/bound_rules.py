"""The user's rule sets and the passes' pins, which bind every layout of the search."""

from autoshard.rule_sets import AUTO, RuleSet, dims
from autoshard.rule_sets.base import check_axis
from autoshard.search.question import Question


def bound_rules(question: Question) -> tuple[RuleSet, ...]:
    """Rule sets that come before what the search decides."""
    return (*(rule for rule in question.rules if rule is not AUTO), *pinned(question))


def axes_taken(question: Question) -> frozenset[str]:
    """Axes that the user's rules or passes use, so that the search does not."""
    pins = {axis for _, axis in question.pins}
    ruled = {a for rule in question.rules for _, a in rule.axis_rules if a is not None}
    claimed = {
        axis
        for shape in question.shapes
        for rule in question.rules
        if rule is not AUTO
        for axis in rule.claims(question.subject, shape, rule.axis_rules)
    }
    return frozenset(pins | ruled | claimed)


def kept_whole(question: Question) -> frozenset[str]:
    """Dimensions that a pair (dimension, None) of the user's keeps from being sharded."""
    pairs = [pair for rule in question.rules for pair in rule.axis_rules]
    return frozenset(name for name, axis in pairs if axis is None)


def pinned(question: Question) -> tuple[RuleSet, ...]:
    """The rule set of the passes' pins: of dimensions that the program has and that divide.

    The axes are reserved in any case: they shard neither the batch nor anything else.
    """
    if not question.pins:
        return ()
    names = question.subject.names

    def divides(dimension: str, axis: str) -> bool:
        found = names.find(dimension)
        return found is not None and all(
            size % shape.size(axis) == 0 for size in found.sizes for shape in question.shapes
        )

    for shape in question.shapes:
        for _, axis in question.pins:
            check_axis(shape, axis, "a pass")
    axes = frozenset(axis for _, axis in question.pins)
    rule = dims(*(pair for pair in question.pins if divides(*pair)))
    return (RuleSet(rule.name or "passes", rule.decide, axis_rules=rule.axis_rules, reserves=axes),)
