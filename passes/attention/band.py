"""Which positions see each other, read off the steps that make a mask.

Positions are counted, compared and combined: a small abstract interpretation of the steps follows
affine functions of the two positions, comparisons of them, and values that are hugely negative
unless (query position - key position) is in an interval. It finds a superset of what is visible,
so that blocks outside it may be skipped.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from passes.attention.steps import Known, Step, Steps

# A score as low as this leaves a weight of zero beside any other; libraries use -1e9, -1e10, and
# most of the least finite number.
HIDDEN = -1e4

_INF = math.inf
_KEPT = frozenset(
    "broadcast_in_dim reshape squeeze transpose copy name stop_gradient reduce_precision".split()
)


@dataclasses.dataclass(frozen=True)
class Band:
    """Where query position - key position lies for all pairs that see each other.

    Attributes:
      least, most: inclusive; infinite where there is no bound.
      alone: whether nothing else is masked: every pair inside is visible as far as is known.
    """

    least: float = -_INF
    most: float = _INF
    alone: bool = True

    @property
    def is_everything(self) -> bool:
        """Whether nothing is hidden by position."""
        return self.least == -_INF and self.most == _INF

    def meets(self, first: int, last: int) -> bool:
        """Whether any distance from `first` to `last` lies in it."""
        return first <= self.most and last >= self.least


@dataclasses.dataclass(frozen=True)
class _Interval:
    least: float = -_INF
    most: float = _INF

    def both(self, other: "_Interval") -> "_Interval":
        return _Interval(max(self.least, other.least), min(self.most, other.most))

    def touches(self, other: "_Interval") -> bool:
        """Whether there is no gap between them."""
        return max(self.least, other.least) <= min(self.most, other.most) + 1

    def either(self, other: "_Interval") -> "_Interval":
        if self.least > self.most:
            return other
        if other.least > other.most:
            return self
        return _Interval(min(self.least, other.least), max(self.most, other.most))


_ALL, _NONE = _Interval(), _Interval(_INF, -_INF)


@dataclasses.dataclass(frozen=True)
class _Affine:
    """query * position of the query + key * position of the key + offset; absolute if said so."""

    query: float
    key: float
    offset: float
    absolute: bool = False

    @property
    def is_constant(self) -> bool:
        return self.query == 0 and self.key == 0


@dataclasses.dataclass(frozen=True)
class _Truth:
    """Distances at which a predicate can be true, and can be false.

    Attributes:
      true, false: all such distances are inside.
      all_true: whether it is true at all of `true`.
      all_false: whether it is false at all of `false`.
    """

    true: _Interval = _ALL
    false: _Interval = _ALL
    all_true: bool = False
    all_false: bool = False

    def swapped(self) -> "_Truth":
        """The opposite."""
        return _Truth(self.false, self.true, self.all_false, self.all_true)

    def with_(self, other: "_Truth") -> "_Truth":
        """Both."""
        all_false = self.all_false and other.all_false and self.false.touches(other.false)
        return _Truth(
            self.true.both(other.true),
            self.false.either(other.false),
            self.all_true and other.all_true,
            all_false,
        )


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """One constant where a predicate is true, another where it is false."""

    truth: _Truth
    if_true: float
    if_false: float


@dataclasses.dataclass(frozen=True)
class _Score:
    """A value that is hugely negative outside of an interval of distances.

    Attributes:
      masked: whether something may hide it inside the interval, too.
    """

    visible: _Interval = _ALL
    masked: bool = False


def band_of(steps: Steps) -> Band:
    """The distances at which attention may have weight."""
    values: list[Any] = [_Score()]
    leaves = {leaf.place for leaf in steps.leaves}
    for place, step in enumerate(steps.steps, 1):
        if step is None:
            assert place in leaves
            values.append(None)
            continue
        operands = [_literal(x) if isinstance(x, Known) else values[x] for x in step.operands]
        values.append(_step(step, operands, steps))
    score = _as_score(values[steps.result])
    alone = not score.masked and not steps.leaves
    return Band(score.visible.least, score.visible.most, alone)


def _literal(known: Known) -> Any:
    value = np.asarray(known.value)
    return _Affine(0.0, 0.0, float(value)) if value.size == 1 and value.dtype != object else None


def _as_score(value: Any) -> _Score:
    if isinstance(value, _Score):
        return value
    if isinstance(value, _Affine) and value.is_constant:
        return _Score(_NONE if value.offset <= HIDDEN else _ALL)
    if isinstance(value, _Chosen):
        shown = value.if_true > HIDDEN, value.if_false > HIDDEN
        if shown == (True, False):
            return _Score(value.truth.true, not value.truth.all_true)
        if shown == (False, True):
            return _Score(value.truth.false, not value.truth.all_false)
        return _Score(_ALL if shown[0] else _NONE)
    return _Score(masked=True)


def _as_truth(value: Any) -> _Truth:
    if isinstance(value, _Truth):
        return value
    always = _Truth(_ALL, _NONE, True, True)
    if isinstance(value, _Affine) and value.is_constant:
        return always if value.offset else always.swapped()
    if isinstance(value, _Chosen):
        if bool(value.if_true) == bool(value.if_false):
            return always if value.if_true else always.swapped()
        return value.truth if value.if_true else value.truth.swapped()
    return _Truth()


def _step(step: Step, operands: list[Any], steps: Steps) -> Any:
    name = step.name
    if name in _KEPT:
        return operands[0]
    if name == "iota":
        along = step.dims[step.params["dimension"]]
        offset = float(step.params.get("offset", 0))
        if along == steps.query:
            return _Affine(1.0, 0.0, offset)
        return _Affine(0.0, 1.0, offset) if along == steps.key else None
    if name == "convert_element_type":
        return _converted(step, operands[0])
    if name in ("ge", "gt", "le", "lt", "eq", "ne"):
        return _compared(name, *operands)
    if name in ("and", "or", "not"):
        return _combined(name, [_as_truth(x) for x in operands])
    if name == "select_n":
        return _selected(operands)
    if name in ("add", "sub", "mul", "div", "neg", "abs", "max", "min"):
        return _computed(name, operands)
    return _Score(masked=any(isinstance(x, _Score) and x.masked for x in operands))


def _converted(step: Step, value: Any) -> Any:
    if isinstance(value, _Truth):
        return value if np.dtype(step.dtype) == np.bool_ else _Chosen(value, 1.0, 0.0)
    if np.dtype(step.dtype) == np.bool_:
        return _as_truth(value)
    return value


def _combined(name: str, truths: list[_Truth]) -> _Truth:
    if name == "not":
        return truths[0].swapped()
    one, other = truths
    if name == "and":
        return one.with_(other)
    return one.swapped().with_(other.swapped()).swapped()


def _selected(operands: list[Any]) -> Any:
    if len(operands) != 3:
        return _Score(masked=True)
    truth = _as_truth(operands[0])
    unless, then = operands[1:]
    constants = [x for x in (unless, then) if isinstance(x, _Affine) and x.is_constant]
    if len(constants) == 2:
        return _Chosen(truth, then.offset, unless.offset)
    low, high = _as_score(unless), _as_score(then)
    visible = low.visible.both(truth.false).either(high.visible.both(truth.true))
    masked = low.masked or high.masked
    if low.visible == _NONE:
        masked = high.masked or not truth.all_true
    elif high.visible == _NONE:
        masked = low.masked or not truth.all_false
    return _Score(visible, masked)


def _compared(name: str, one: Any, other: Any) -> _Truth:
    if isinstance(one, _Chosen) and isinstance(other, _Affine) and other.is_constant:
        test = {"ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less,
                "eq": np.equal, "ne": np.not_equal}[name]  # fmt: skip
        kept = _Chosen(
            one.truth, float(test(one.if_true, other.offset)),
            float(test(one.if_false, other.offset)),
        )  # fmt: skip
        return _as_truth(kept)
    if not isinstance(one, _Affine) or not isinstance(other, _Affine):
        return _Truth()
    if one.absolute and other.is_constant and one.query == -one.key and one.query:
        return _distance(name, other.offset, one)
    if one.absolute or other.absolute:
        return _Truth()
    a, b, c = one.query - other.query, one.key - other.key, one.offset - other.offset
    if a != -b or a == 0:
        return _Truth()
    return _against_zero(name if a > 0 else _MIRRORED[name], -c / a)


_MIRRORED = {"ge": "le", "gt": "lt", "le": "ge", "lt": "gt", "eq": "eq", "ne": "ne"}


def _against_zero(name: str, bound: float) -> _Truth:
    """distance <name> bound, of whole numbers."""
    at_least, above = math.ceil(bound), math.floor(bound) + 1
    up, over = _Interval(at_least), _Interval(above)
    down, under = _Interval(most=above - 1), _Interval(most=at_least - 1)
    if name == "ge":
        return _Truth(up, under, True, True)
    if name == "gt":
        return _Truth(over, down, True, True)
    if name == "le":
        return _Truth(down, over, True, True)
    if name == "lt":
        return _Truth(under, up, True, True)
    at = _Truth(_Interval(bound, bound), _ALL, bound == at_least)
    return at if name == "eq" else at.swapped()


def _distance(name: str, limit: float, one: _Affine) -> _Truth:
    """|distance + offset| <name> limit."""
    centre, reach = -one.offset / one.query, limit / abs(one.query)
    if name == "lt":
        reach = math.ceil(reach) - 1
    if name in ("le", "lt"):
        return _Truth(_Interval(centre - reach, centre + reach), _ALL, True)
    if name in ("ge", "gt"):
        reach = math.floor(reach) if name == "gt" else math.ceil(reach) - 1
        return _Truth(_ALL, _Interval(centre - reach, centre + reach), all_false=True)
    return _Truth()


def _computed(name: str, operands: list[Any]) -> Any:
    if all(isinstance(x, _Affine) for x in operands):
        found = _affine(name, operands)
        if found is not None:
            return found
    constants = [x for x in operands if isinstance(x, _Affine) and x.is_constant]
    chosen = [x for x in operands if isinstance(x, _Chosen)]
    if len(chosen) == 1 and len(constants) == len(operands) - 1:
        one = chosen[0]
        sides = [
            _affine(name, [_Affine(0.0, 0.0, pick) if x is one else x for x in operands])
            for pick in (one.if_true, one.if_false)
        ]
        if all(isinstance(x, _Affine) for x in sides):
            return _Chosen(one.truth, sides[0].offset, sides[1].offset)
    scores = [_as_score(x) for x in operands]
    masked = any(x.masked for x in scores)
    if name == "add":
        return _Score(scores[0].visible.both(scores[1].visible), masked)
    if name == "sub":
        return _Score(scores[0].visible, masked)
    scaled = name in ("mul", "div") and len(constants) == 1
    if scaled and constants[0].offset > 0 and (name == "mul" or operands[1] is constants[0]):
        factor = constants[0].offset if name == "mul" else 1 / constants[0].offset
        return _Score(scores[0].visible.both(scores[1].visible) if factor > 1e-3 else _ALL, masked)
    return _Score(masked=True)


def _affine(name: str, operands: list[_Affine]) -> Any:
    one, *rest = operands
    if any(x.absolute for x in operands):
        return None
    if name == "neg":
        return _Affine(-one.query, -one.key, -one.offset)
    if name == "abs":
        if one.is_constant:
            return _Affine(0.0, 0.0, abs(one.offset))
        return dataclasses.replace(one, absolute=True)
    other = rest[0]
    if name in ("add", "sub"):
        sign = 1 if name == "add" else -1
        return _Affine(
            one.query + sign * other.query, one.key + sign * other.key,
            one.offset + sign * other.offset,
        )  # fmt: skip
    if name == "mul" and (one.is_constant or other.is_constant):
        factor, value = (one, other) if one.is_constant else (other, one)
        f = factor.offset
        return _Affine(value.query * f, value.key * f, value.offset * f)
    if name == "div" and other.is_constant and other.offset and one.is_constant:
        return _Affine(0.0, 0.0, one.offset / other.offset)
    if name in ("max", "min") and one.is_constant and other.is_constant:
        return _Affine(0.0, 0.0, (max if name == "max" else min)(one.offset, other.offset))
    return None
