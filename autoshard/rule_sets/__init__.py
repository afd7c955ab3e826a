"""Rule sets: values of one type, usable alone by name and combinable in a list."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from autoshard.errors import RuleError
from autoshard.rule_sets.base import RuleSet
from autoshard.rule_sets.dims import dims
from autoshard.rule_sets.logical import logical
from autoshard.rule_sets.patterns import patterns
from autoshard.rule_sets.redco import redco

__all__ = ["AUTO", "RuleSet", "data", "dims", "logical", "parse", "patterns", "redco", "zero"]

AUTO = RuleSet("auto")
"""Not a layout but the wish to have one chosen: see `autoshard.search`."""


def data() -> RuleSet:
    """Batch only: every axis that no other rule set claims shards the batch."""
    return RuleSet("data")


def zero(stage: int, axes: tuple[str, ...] = ()) -> RuleSet:
    """ZeRO stage 1, 2 or 3 over the data axes, or over some of them (`axes`).

    Over some, storage is sharded inside a group of devices and replicated over groups, as MiCS does
    ("MiCS: Near-linear Scaling for Training Gigantic Model on Public Cloud", section 3).

    Raises:
      RuleError: another stage.
    """
    if stage not in (1, 2, 3):
        raise RuleError(f"there is no ZeRO stage {stage}: use 1, 2 or 3")
    name = f"zero{stage}" + (f"({','.join(axes)})" if axes else "")
    return RuleSet(name, zero_stage=stage, zero_axes=axes)


def _named(name: str) -> RuleSet:
    known = {
        "auto": AUTO,
        "data": data(),
        "redco": redco(),
        "zero1": zero(1),
        "zero2": zero(2),
        "zero3": zero(3),
        "logical": logical(),
    }
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}" if near else ""
        raise RuleError(f"unknown rule set {name!r}{hint}? There are {', '.join(known)}")
    return known[name]


def parse(rules: Any) -> tuple[RuleSet, ...]:
    """Rule sets from what the user wrote.

    Args:
      rules: a name, several joined by `+` or `,`, a `RuleSet`, a pair (dimension, axis), or a list
        of these. Neighbouring pairs form one `dims` rule set.

    Raises:
      RuleError: an entry is not understood.
    """
    if isinstance(rules, str):
        items: Sequence[Any] = [r for r in rules.replace(",", "+").split("+") if r.strip()]
    elif isinstance(rules, RuleSet) or _is_pair(rules):
        items = [rules]
    elif isinstance(rules, Mapping):
        items = list(rules.items())
    elif isinstance(rules, Sequence):
        items = list(rules)
    else:
        items = [rules]
    found: list[RuleSet] = []
    pairs: list[tuple[str, str | None]] = []
    for item in items:
        if isinstance(item, str):
            found.append(_named(item.strip()))
        elif isinstance(item, RuleSet):
            found.append(item)
        elif _is_pair(item):
            pairs.append((item[0], item[1]))
        else:
            raise RuleError(
                f"{item!r} is not a rule: use a rule set's name, a RuleSet, or a pair "
                "(dimension, mesh axis)"
            )
    if pairs:
        found.append(dims(*pairs))
    if not found:
        raise RuleError("no rule set given: use rules='auto', 'data', 'redco', 'zero3+redco', ...")
    if AUTO in found and any(rule.zero_stage for rule in found):
        raise RuleError(
            "'auto' chooses the ZeRO stage itself: leave it out, or leave 'auto' out; pairs "
            "(dimension, axis) and patterns beside 'auto' bind what it chooses"
        )
    return tuple(found)


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and (item[1] is None or isinstance(item[1], str))
    )
