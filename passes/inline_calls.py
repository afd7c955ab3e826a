"""One flat list of equations: plain calls (`jit`) replaced by what they call."""

from collections.abc import Sequence
from typing import Any

from passes import ir


def inline_calls(program: ir.ClosedJaxpr, calls: frozenset[str] = ir.PLAIN_CALLS) -> ir.ClosedJaxpr:
    """The program with its plain calls inlined, at the top level.

    Each call site gets variables of its own, although JAX shares the callee between them. Custom
    derivatives, checkpoints and loops stay what they are.

    Args:
      program: the program.
      calls: the primitives that are inlined.
    """
    jaxpr, consts = ir.closed(program)
    flat = _Flat(calls)
    env: dict[Any, Any] = {}
    constvars = [
        flat.constant(var, const) for var, const in zip(jaxpr.constvars, consts, strict=True)
    ]
    env.update(zip(jaxpr.constvars, constvars, strict=True))
    env.update((var, var) for var in jaxpr.invars)
    flat.append(jaxpr.eqns, env, fresh=False)
    results = [env.get(x, x) if not ir.is_literal(x) else x for x in jaxpr.outvars]
    inner = jaxpr.replace(constvars=list(flat.constants), eqns=flat.eqns, outvars=results)
    return ir.ClosedJaxpr(inner, tuple(flat.constants.values()))


class _Flat:
    def __init__(self, calls: frozenset[str]) -> None:
        self.calls = calls
        self.eqns: list[ir.JaxprEqn] = []
        self.constants: dict[ir.Var, Any] = {}

    def constant(self, var: ir.Var, value: Any) -> ir.Var:
        own = ir.Var(var.aval)
        self.constants[own] = value
        return own

    def append(self, eqns: Sequence[ir.JaxprEqn], env: dict[Any, Any], fresh: bool) -> None:
        """Append equations, their operands looked up in `env`, which gets their results."""
        for eqn in eqns:
            operands = [x if ir.is_literal(x) else env[x] for x in eqn.invars]
            called = ir.callee(eqn)
            if called is not None and eqn.primitive.name in self.calls:
                jaxpr = ir.inlined(called[0], eqn)
                inner: dict[Any, Any] = dict(zip(jaxpr.invars, operands, strict=True))
                for var, value in zip(jaxpr.constvars, called[1], strict=True):
                    inner[var] = self.constant(var, value)
                self.append(jaxpr.eqns, inner, fresh=True)
                results = [x if ir.is_literal(x) else inner[x] for x in jaxpr.outvars]
                env.update(zip(eqn.outvars, results, strict=True))
                continue
            outvars = [x if ir.is_dropped(x) or not fresh else ir.Var(x.aval) for x in eqn.outvars]
            env.update(zip(eqn.outvars, outvars, strict=True))
            self.eqns.append(eqn.replace(invars=operands, outvars=outvars))
