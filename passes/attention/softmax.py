"""A softmax in a program, as the libraries write it: exp(x - max x) / sum, in any type."""

import dataclasses
from typing import Any

from passes import ir
from passes.attention.scopes import Scope, called

_SAME_VALUES = frozenset(("convert_element_type", "copy", "name", "stop_gradient"))
# The library takes the absolute value of a sum of exponentials, which is positive.
_SAME_ROWS = _SAME_VALUES | {"broadcast_in_dim", "reshape", "squeeze", "abs"}


@dataclasses.dataclass(frozen=True, eq=False)
class Softmax:
    """Weights over one dimension.

    Attributes:
      scores: what it is of.
      scope: where `scores` is a variable.
      dim: the dimension of `scores` over which the weights add up to one.
    """

    scores: ir.Var
    scope: Scope
    dim: int


def softmax_of(atom: Any, scope: Scope) -> Softmax | None:
    """The softmax whose result `atom` is, or None."""
    eqn, scope = scope.maker(atom)
    if eqn is None:
        return None
    name = eqn.primitive.name
    if name == "custom_jvp_call":
        inner = called(eqn, scope)
        result, _ = scope.resolve(atom)
        return softmax_of(inner.jaxpr.outvars[eqn.outvars.index(result)], inner)
    if name == "div":
        return _quotient(eqn, scope)
    return _of_logarithm(eqn, scope) if name == "exp" else None


def _quotient(eqn: ir.JaxprEqn, scope: Scope) -> Softmax | None:
    numerator, place = _through(eqn.invars[0], scope, _SAME_VALUES)
    total, _ = _made_by(eqn.invars[1], scope, "reduce_sum")
    exponential, _ = place.maker(numerator)
    if total is None or exponential is None or exponential.primitive.name != "exp":
        return None
    if not _same(total.invars[0], scope, numerator, place) or len(total.params["axes"]) != 1:
        return None
    dim = int(total.params["axes"][0])
    return _found(_less_shift(exponential.invars[0], place, dim), place, dim)


def _of_logarithm(eqn: ir.JaxprEqn, scope: Scope) -> Softmax | None:
    """exp(x - log(sum(exp(x)))), where a maximum may be taken off and put back."""
    exponent, place = scope.maker(eqn.invars[0])
    if exponent is None or exponent.primitive.name != "sub":
        return None
    scores, normaliser = exponent.invars
    logarithm, where = _made_by(normaliser, place, "log")
    shifted = False
    if logarithm is None:
        both, where = _made_by(normaliser, place, "add")
        found = [_made_by(x, where, "log") for x in (both.invars if both else ())]
        logarithm, where = next(((e, s) for e, s in found if e is not None), (None, where))
        shifted = True
    if logarithm is None:
        return None
    total, where = _made_by(logarithm.invars[0], where, "reduce_sum")
    if total is None or len(total.params["axes"]) != 1:
        return None
    inner, where = _made_by(total.invars[0], where, "exp")
    if inner is None:
        return None
    dim = int(total.params["axes"][0])
    summed = _less_shift(inner.invars[0], where, dim) if shifted else inner.invars[0]
    if not _same(summed, where, scores, place):
        return None
    return _found(_less_shift(scores, place, dim), place, dim)


def _found(scores: Any, scope: Scope, dim: int) -> Softmax | None:
    scores, scope = scope.resolve(scores)
    if ir.is_literal(scores):
        return None
    return Softmax(scores, scope, dim)


def _less_shift(atom: Any, scope: Scope, dim: int) -> Any:
    """x of x - c, where c is the same for the whole row: the softmax is that of x."""
    eqn, place = scope.maker(atom)
    if eqn is None or eqn.primitive.name != "sub":
        return atom
    shift = eqn.invars[1]
    maker, _ = place.maker(shift)
    shape = _shape(shift)
    if not shape or shape[dim] == 1:
        return eqn.invars[0]
    if maker is None or maker.primitive.name != "broadcast_in_dim":
        return atom
    to = [int(d) for d in maker.params["broadcast_dimensions"]]
    inner = _shape(maker.invars[0])
    return eqn.invars[0] if dim not in to or inner[to.index(dim)] == 1 else atom


def _through(atom: Any, scope: Scope, names: frozenset[str]) -> tuple[Any, Scope]:
    """The atom before casts, views, and a maximum with a literal (the reduction's identity)."""
    while True:
        atom, scope = scope.resolve(atom)
        eqn, scope = scope.maker(atom)
        if eqn is None:
            return atom, scope
        if eqn.primitive.name in names:
            atom = eqn.invars[0]
        elif eqn.primitive.name == "max" and ir.is_literal(eqn.invars[0]):
            atom = eqn.invars[1]
        else:
            return atom, scope


def _made_by(atom: Any, scope: Scope, name: str) -> tuple[ir.JaxprEqn | None, Scope]:
    """The equation called `name` that makes the atom but for casts and views, or None."""
    atom, scope = _through(atom, scope, _SAME_ROWS)
    eqn, scope = scope.maker(atom)
    return (eqn if eqn is not None and eqn.primitive.name == name else None), scope


def _same(one: Any, scope: Scope, other: Any, place: Scope) -> bool:
    """Whether two atoms have the same values, but for their types."""
    return _through(one, scope, _SAME_VALUES)[0] is _through(other, place, _SAME_VALUES)[0]


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)
