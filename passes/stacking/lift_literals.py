"""Numbers inside rematerialised regions, made operands of the region.

A layer under `jax.checkpoint` with dropout folds a number of its own into the random key. The
number is a literal inside the region, so that two layers' regions differ; as an operand it is
what differs between equal regions.
"""

from typing import Any

from passes import ir
from passes.inline_calls import inline_calls

_KEYED_BY_LITERAL = frozenset({"random_fold_in", "random_seed"})


def lift_literals(program: ir.ClosedJaxpr) -> ir.ClosedJaxpr:
    """The same program; numbers that random keys in regions are made with are operands."""
    jaxpr, consts = ir.closed(program)
    eqns = [_lifted(eqn) if eqn.primitive.name in ir.CHECKPOINTS else eqn for eqn in jaxpr.eqns]
    return ir.ClosedJaxpr(jaxpr.replace(eqns=eqns), consts)


def _lifted(eqn: ir.JaxprEqn) -> ir.JaxprEqn:
    called = ir.callee(eqn)
    assert called is not None
    if called[1] or not _draws(called[0]):
        return eqn
    flat = inline_calls(ir.ClosedJaxpr(called[0], ()))
    if flat.consts:
        return eqn
    added: list[tuple[ir.Var, Any]] = []
    inner = []
    for one in flat.jaxpr.eqns:
        atoms: list[Any] = list(one.invars)
        if one.primitive.name in _KEYED_BY_LITERAL:
            for place, atom in enumerate(atoms):
                if ir.is_literal(atom):
                    added.append((ir.Var(atom.aval), atom))
                    atoms[place] = added[-1][0]
        inner.append(one.replace(invars=atoms))
    invars = [*flat.jaxpr.invars, *(var for var, _ in added)]
    region = flat.jaxpr.replace(invars=invars, eqns=inner)
    params = {**eqn.params, "jaxpr": region}
    return eqn.replace(invars=[*eqn.invars, *(literal for _, literal in added)], params=params)


def _draws(jaxpr: ir.Jaxpr) -> bool:
    return any(eqn.primitive.name in _KEYED_BY_LITERAL for eqn in ir.equations(jaxpr))
