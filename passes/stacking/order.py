"""An order of equations in which layers are contiguous, however the model was written."""

from collections.abc import Sequence
from typing import Any

from passes import ir


def dependent(jaxpr: ir.Jaxpr, sources: Sequence[ir.Var]) -> set[ir.Var]:
    """The variables that depend on some of the program's inputs, those inputs included."""
    found = set(sources)
    for eqn in jaxpr.eqns:
        if any(not ir.is_literal(x) and x in found for x in eqn.invars):
            found.update(eqn.outvars)
    return found


def layer_order(jaxpr: ir.Jaxpr, dependent_vars: set[ir.Var]) -> list[ir.JaxprEqn]:
    """The equations that depend on parameters or data, depth first from the results.

    Of an equation's operands the deepest comes first: the residual stream before what is added to
    it, and what belongs to one layer before the next layer. Equal layers come out in equal order.
    """
    maker: dict[Any, int] = {}
    for index, eqn in enumerate(jaxpr.eqns):
        if any(x in dependent_vars for x in eqn.outvars):
            maker.update((x, index) for x in eqn.outvars)
    depth = [0] * len(jaxpr.eqns)
    operands: list[list[int]] = [[] for _ in jaxpr.eqns]
    for index, eqn in enumerate(jaxpr.eqns):
        own = [maker[x] for x in eqn.invars if not ir.is_literal(x) and x in maker]
        operands[index] = sorted(dict.fromkeys(own), key=lambda i: -depth[i])
        depth[index] = 1 + max((depth[i] for i in own), default=0)
    done = [False] * len(jaxpr.eqns)
    order: list[int] = []
    for root in jaxpr.outvars:
        if ir.is_literal(root) or root not in maker:
            continue
        stack = [(maker[root], iter(operands[maker[root]]))]
        while stack:
            index, waiting = stack[-1]
            following = next((i for i in waiting if not done[i]), None)
            if done[index] or following is None:
                stack.pop()
                if not done[index]:
                    done[index] = True
                    order.append(index)
            else:
                stack.append((following, iter(operands[following])))
    return [jaxpr.eqns[i] for i in order]
