"""The body of a loop as a flat program, and the same with names on some of its values.

`jax.checkpoint` saves a value by name. Some derivatives read the result of their own equation
(`exp`, `tanh`, `logistic`): named after the equation, the saved copy would not be the one that they
read, and the equation would run again. Such an equation gets the name inside its derivative rule.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from passes import ir


def flat_body(eqn: ir.JaxprEqn) -> ir.JaxprEqn:
    """A scan whose body has no plain calls and no checkpoint regions of its own."""
    jaxpr, consts = ir.closed(eqn.params["jaxpr"])

    def run(*operands: Any) -> list[Any]:
        return _flat(jaxpr, consts, operands)

    made = jax.make_jaxpr(run)(*(ir.spec(x) for x in jaxpr.invars))
    inner, constants = ir.closed(made)
    live = ir.ClosedJaxpr(ir.live(inner), constants)
    return eqn.replace(params={**eqn.params, "jaxpr": live})


def _flat(jaxpr: ir.Jaxpr, consts: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, operands, strict=True))
    for eqn in jaxpr.eqns:
        values = [ir.read(env, x) for x in eqn.invars]
        called = ir.callee(eqn)
        inline = ir.PLAIN_CALLS | ir.CHECKPOINTS
        if called is not None and eqn.primitive.name in inline:
            results = _flat(ir.inlined(called[0], eqn), called[1], values)
        else:
            results = ir.alone(eqn)(*values)
        env.update(zip(eqn.outvars, results, strict=True))
    return [ir.read(env, x) for x in jaxpr.outvars]


@dataclasses.dataclass(frozen=True, eq=False)
class NamedBody:
    """A function from a flat body's operands to its results, some values named on the way.

    Attributes:
      jaxpr: the flat body.
      consts: values of its constants.
      names: a name for each of some variables, made by its equations or given to it.
      rules: whether names go inside derivative rules where those read the value.
    """

    jaxpr: ir.Jaxpr
    consts: tuple[Any, ...]
    names: Mapping[ir.Var, str]
    rules: bool = True

    def __call__(self, *operands: Any) -> list[Any]:
        """The results."""
        env: dict[Any, Any] = dict(zip(self.jaxpr.constvars, self.consts, strict=True))
        for var, value in zip(self.jaxpr.invars, operands, strict=True):
            env[var] = self._named(var, value)
        for eqn in self.jaxpr.eqns:
            values = [ir.read(env, x) for x in eqn.invars]
            if self._inside(eqn):
                results: Sequence[Any] = [_named_inside(eqn, self.names[eqn.outvars[0]], values)]
            else:
                made = ir.alone(eqn)(*values)
                results = [self._named(v, x) for v, x in zip(eqn.outvars, made, strict=True)]
            env.update(zip(eqn.outvars, results, strict=True))
        return [ir.read(env, x) for x in self.jaxpr.outvars]

    def _named(self, var: ir.Var, value: Any) -> Any:
        name = self.names.get(var)
        return value if name is None else checkpoint_name(value, name)

    def _inside(self, eqn: ir.JaxprEqn) -> bool:
        named = self.rules and len(eqn.outvars) == 1 and eqn.outvars[0] in self.names
        return named and reads_own_result(eqn)


# Equations whose derivatives are written in terms of operands only, or that have none: most of a
# body, so that they need not be traced to find that out.
_OPERANDS_ONLY = frozenset(
    "dot_general add sub mul neg transpose reshape broadcast_in_dim convert_element_type "
    "select_n reduce_sum squeeze slice concatenate name sharding_constraint iota eq lt gt le ge "
    "custom_vjp_call scan while cond shard_map pallas_call random_bits copy stop_gradient".split()
)


def reads_own_result(eqn: ir.JaxprEqn) -> bool:
    """Whether the derivative of an equation reads the equation's own result."""
    if eqn.primitive.name in _OPERANDS_ONLY or not differentiable(eqn.outvars[0]):
        return False
    if not any(differentiable(x) for x in eqn.invars):
        return False
    rule, results = _derivative(eqn, [ir.spec(x) for x in eqn.invars])
    return any(x in results for inner in rule.eqns for x in inner.invars if not ir.is_literal(x))


def differentiable(atom: Any) -> bool:
    """Whether a variable or literal is floating."""
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact))


def _derivative(eqn: ir.JaxprEqn, operands: Sequence[Any]) -> tuple[ir.Jaxpr, list[Any]]:
    """(operands, tangents of floating operands -> result, its tangent), and the result in it."""
    closed = jax.make_jaxpr(pushforward(eqn))(operands, floating_of(eqn, operands))
    jaxpr = ir.closed(closed)[0]
    return jaxpr, [x for x in jaxpr.outvars[:1] if not ir.is_literal(x)]


def floating_of(eqn: ir.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Those of an equation's operands, or of their tangents, that have a tangent."""
    pairs = zip(eqn.invars, operands, strict=True)
    return [value for x, value in pairs if differentiable(x)]


def pushforward(eqn: ir.JaxprEqn) -> Any:
    """(operands, tangents of floating operands) -> (result, its tangent), of one equation."""

    def both(operands: Sequence[Any], tangents: Sequence[Any]) -> Any:
        def function(*floating: Any) -> Any:
            values = iter(floating)
            merged = [
                next(values) if differentiable(x) else operand
                for x, operand in zip(eqn.invars, operands, strict=True)
            ]
            return ir.alone(eqn)(*merged)[0]

        return jax.jvp(function, floating_of(eqn, operands), list(tangents))

    return both


def _named_inside(eqn: ir.JaxprEqn, name: str, operands: Sequence[Any]) -> Any:
    """The result of an equation, named so that its derivative reads the named copy."""

    @jax.custom_jvp
    def function(*values: Any) -> Any:
        return checkpoint_name(ir.alone(eqn)(*values)[0], name)

    @function.defjvp
    def rule(values: Any, tangents: Any) -> Any:
        moved = floating_of(eqn, tangents)
        closed = jax.make_jaxpr(pushforward(eqn))(values, moved)
        jaxpr, consts = ir.closed(closed)
        results: list[Any] = [x for x in jaxpr.outvars[:1] if not ir.is_literal(x)]
        leaves = [*values, *moved]
        named = NamedBody(jaxpr, consts, dict.fromkeys(results, name), rules=False)
        result, tangent = named(*leaves)
        return result, tangent

    return function(*operands)
