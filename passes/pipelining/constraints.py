"""A program without its sharding constraints.

They name the axes over which a pipeline lays out by itself (stages, rows), on arrays of the whole
batch; inside a stage they would contradict that.
"""

from typing import Any

from passes import ir

_NAME = "sharding_constraint"


def count_constraints(program: ir.ClosedJaxpr) -> int:
    """Constraints in the program, nested ones included."""
    return sum(eqn.primitive.name == _NAME for eqn in ir.equations(ir.closed(program)[0]))


def without_constraints(program: ir.ClosedJaxpr) -> ir.ClosedJaxpr:
    """The program without them, those in loops and calls neither."""
    jaxpr, consts = ir.closed(program)
    return ir.ClosedJaxpr(_stripped(jaxpr), consts)


def _stripped(jaxpr: ir.Jaxpr) -> ir.Jaxpr:
    renamed: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom if ir.is_literal(atom) else renamed.get(atom, atom)

    eqns = []
    for eqn in jaxpr.eqns:
        operands = [read(x) for x in eqn.invars]
        if eqn.primitive.name == _NAME:
            renamed[eqn.outvars[0]] = operands[0]
            continue
        params = {name: _inside(value) for name, value in eqn.params.items()}
        eqns.append(eqn.replace(invars=operands, params=params))
    return jaxpr.replace(eqns=eqns, outvars=[read(x) for x in jaxpr.outvars])


def _inside(value: Any) -> Any:
    if isinstance(value, ir.ClosedJaxpr):
        return ir.ClosedJaxpr(_stripped(value.jaxpr), value.consts)
    if isinstance(value, ir.Jaxpr):
        return _stripped(value)
    if isinstance(value, tuple) and any(isinstance(x, (ir.ClosedJaxpr, ir.Jaxpr)) for x in value):
        return tuple(_inside(x) for x in value)
    return value
