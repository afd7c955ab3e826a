"""Keys of equations: equal where two do the same, whatever their variables and literals are.

Parts of the key that need care, each because of a program that was rolled wrongly without:

- custom derivatives: two with one forward and different backwards are different. The key holds the
  backward that JAX traces.
- literal operands are wild cards (the number of a layer in `fold_in`); those inside a called
  program are not.
- `checkpoint_name("mlp_3")`: digits in the name do not count.
"""

import functools
import re
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from passes import ir

# Where an equation came from, or how a compiler should treat it; not what it computes.
_IGNORED = frozenset("name ctx_mesh inline keep_unused donated_invars debug_info".split())


class Keys:
    """Numbers for the keys of a program's equations; equal numbers are equal keys."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._texts: dict[
            int, tuple[Any, str]
        ] = {}  # the object is kept so that its id stays its own

    def number(self, eqn: ir.JaxprEqn) -> int:
        """The number of an equation's key."""
        return self._numbers.setdefault(self._key(eqn), len(self._numbers))

    def _key(self, eqn: ir.JaxprEqn) -> Hashable:
        name = eqn.primitive.name
        operands = tuple((str(x.aval), ir.is_literal(x)) for x in eqn.invars)
        results = tuple(str(x.aval) for x in eqn.outvars)
        if name in ir.CUSTOM_DERIVATIVES:
            # Custom derivatives inside show in the traced backward.
            rule = tuple(str(x.jaxpr) for x in ir.reverse_rule(eqn))
            return name, operands, results, rule
        if name == "name":
            return name, operands, re.sub(r"\d+", "*", str(eqn.params["name"]))
        params = tuple(
            (key, self._param(value))
            for key, value in sorted(eqn.params.items())
            if key not in _IGNORED
        )
        return name, operands, results, params

    def _param(self, value: Any) -> Hashable:
        if isinstance(value, (ir.Jaxpr, ir.ClosedJaxpr)):
            return self._jaxpr(value)
        if isinstance(value, (tuple, list)):
            return tuple(self._param(x) for x in value)
        if isinstance(value, dict):
            return tuple((key, self._param(x)) for key, x in sorted(value.items()))
        if isinstance(value, functools.partial):
            arguments = (*value.args, *sorted(value.keywords.items()))
            return "partial", self._param(value.func), tuple(self._param(x) for x in arguments)
        if isinstance(value, np.ndarray):
            return value.shape, str(value.dtype), value.tobytes()
        try:
            hash(value)
        except TypeError:
            return repr(value)
        return value  # functions by identity: checkpoint policies, kernels

    def _jaxpr(self, value: Any) -> Hashable:
        jaxpr, consts = ir.closed(value)
        known = self._texts.get(id(jaxpr))
        if known is None:
            known = jaxpr, f"{jaxpr}{self._custom_inside(jaxpr)}"
            self._texts[id(jaxpr)] = known
        return known[1], tuple(_constant(x) for x in consts)

    def _custom_inside(self, jaxpr: ir.Jaxpr) -> str:
        rules: Iterable[ir.JaxprEqn] = (
            eqn for eqn in ir.equations(jaxpr) if eqn.primitive.name in ir.CUSTOM_DERIVATIVES
        )
        return " ".join(str(self._key(eqn)) for eqn in rules)


def _constant(value: Any) -> Hashable:
    size = getattr(value, "size", 1)
    if size > 4096:
        return id(value)
    array = np.asarray(value) if not hasattr(value, "aval") or size <= 4096 else value
    return array.shape, str(array.dtype), array.tobytes()
