"""The check that follows every pass: types, single assignment, definitions before uses."""

from collections.abc import Sequence
from typing import Any

from passes import ir
from passes.errors import PassError
from passes.program import Program


def verify(program: Program) -> None:
    """Check a program.

    Raises:
      PassError: a variable is used before it is made, or made twice, or an input's or a nested
        program's type is not what it is said to be.
    """
    jaxpr, consts = ir.closed(program.jaxpr)
    if len(jaxpr.constvars) != len(consts):
        raise PassError(f"{len(jaxpr.constvars)} constants are declared and {len(consts)} given")
    for leaf, var in zip(program.inputs, jaxpr.invars, strict=True):
        aval: Any = var.aval
        if tuple(aval.shape) != leaf.shape or str(aval.dtype) != leaf.dtype:
            raise PassError(
                f"input {leaf.path!r} is {leaf.dtype}{list(leaf.shape)} by its role and "
                f"{aval.dtype}{list(aval.shape)} in the program"
            )
    _check(jaxpr, "")


def _check(jaxpr: ir.Jaxpr, where: str) -> None:
    made: set[ir.Var] = set()
    for var in (*jaxpr.constvars, *jaxpr.invars):
        if var in made:
            raise PassError(f"an input variable occurs twice{where}")
        made.add(var)
    for index, eqn in enumerate(jaxpr.eqns):
        place = f"equation {index} ({ir.described(eqn)}){where}"
        for atom in eqn.invars:
            if not ir.is_literal(atom) and atom not in made:
                raise PassError(f"{place} reads a variable that nothing before it makes")
        for var in eqn.outvars:
            if ir.is_dropped(var):
                continue
            if var in made:
                raise PassError(f"{place} makes a variable that was made before")
            made.add(var)
        _check_nested(eqn, place)
    for atom in jaxpr.outvars:
        if not ir.is_literal(atom) and atom not in made:
            raise PassError(f"a result{where} is a variable that nothing makes")


def _check_nested(eqn: ir.JaxprEqn, place: str) -> None:
    called = ir.callee(eqn)
    if called is not None:
        _same_types(called[0].invars, eqn.invars, f"operands of {place}")
        _same_types(called[0].outvars, eqn.outvars, f"results of {place}")
        _check(called[0], f" in {place}")
    elif eqn.primitive.name == "scan":
        body, _ = ir.closed(eqn.params["jaxpr"])
        _check_scan(eqn, body, place)
        _check(body, f" in {place}")


def _check_scan(eqn: ir.JaxprEqn, body: ir.Jaxpr, place: str) -> None:
    constants, carries = ir.scan_counts(eqn)
    held = constants + carries
    _same_types(body.invars[:held], eqn.invars[:held], f"operands of {place}")
    _same_types(body.outvars[:carries], eqn.outvars[:carries], f"results of {place}")
    _same_types(body.outvars[:carries], body.invars[constants:held], f"carries of {place}")
    for inner, outer in (
        *zip(body.invars[held:], eqn.invars[held:], strict=True),
        *zip(body.outvars[carries:], eqn.outvars[carries:], strict=True),
    ):
        slice_, stack = _type(inner), _type(outer)
        if ((eqn.params["length"], *slice_[0]), slice_[1]) != stack:
            raise PassError(f"{place} scans over {stack[1]}{list(stack[0])} as {slice_}")


def _same_types(inner: Sequence[Any], outer: Sequence[Any], what: str) -> None:
    if len(inner) != len(outer):
        raise PassError(f"{what}: {len(outer)} are given and {len(inner)} expected")
    for one, other in zip(inner, outer, strict=True):
        if _type(one) != _type(other):
            raise PassError(f"{what}: {_type(other)} is given and {_type(one)} expected")


def _type(atom: Any) -> tuple[tuple[int, ...], str]:
    aval = atom.aval
    return tuple(getattr(aval, "shape", ())), str(getattr(aval, "dtype", aval))
