"""The nested programs of a program, and where the values that enter them come from.

A mask is often made once and enters a loop or a checkpoint as an operand. To be made again, block
by block, it is followed outwards: `Scope.resolve` leads from a variable of a nested program to the
variable outside that it always equals.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from passes import ir
from passes.inline_calls import inline_calls


@dataclasses.dataclass(eq=False)
class Scope:
    """A program, its plain calls inlined, and its place in the one around it.

    Attributes:
      jaxpr: the equations.
      constants: values of its constants.
      defines: for each variable the equation that makes it.
      parent: the program around it.
      outer: for variables that enter it unchanged, the same value's variable or literal outside.
      inner: programs nested in it: bodies of loops and of checkpoints, by the equation.
      read_inside: variables that programs nested in it read besides its operands.
    """

    jaxpr: ir.Jaxpr
    constants: dict[ir.Var, Any]
    parent: "Scope | None" = None
    outer: dict[ir.Var, Any] = dataclasses.field(default_factory=dict)
    defines: dict[ir.Var, ir.JaxprEqn] = dataclasses.field(default_factory=dict)
    inner: dict[int, "Scope"] = dataclasses.field(default_factory=dict)
    read_inside: set[ir.Var] = dataclasses.field(default_factory=set)

    def resolve(self, atom: Any) -> "tuple[Any, Scope]":
        """The outermost variable or literal that `atom` always equals, and its scope."""
        scope = self
        while not ir.is_literal(atom) and atom in scope.outer:
            assert scope.parent is not None
            atom, scope = scope.outer[atom], scope.parent
        return atom, scope

    def maker(self, atom: Any) -> "tuple[ir.JaxprEqn | None, Scope]":
        """The equation that makes an atom, here or outside; None where it is an input."""
        atom, scope = self.resolve(atom)
        return (None if ir.is_literal(atom) else scope.defines.get(atom)), scope

    def nested(self) -> "Iterator[Scope]":
        """This scope and all within it."""
        yield self
        for scope in self.inner.values():
            yield from scope.nested()


def scopes(program: ir.ClosedJaxpr) -> Scope:
    """The scopes of a program, outermost first."""
    return _scope(*ir.closed(program), None, {})


def called(eqn: ir.JaxprEqn, scope: Scope) -> Scope:
    """The scope of a program that an equation calls, such as a custom derivative's."""
    found = ir.callee(eqn)
    assert found is not None
    return _scope(*found, scope, dict(zip(found[0].invars, eqn.invars, strict=True)))


def _scope(
    jaxpr: ir.Jaxpr, consts: Sequence[Any], parent: Scope | None, outer: dict[ir.Var, Any]
) -> Scope:
    flat, values = ir.closed(inline_calls(ir.ClosedJaxpr(jaxpr, tuple(consts))))
    scope = Scope(flat, dict(zip(flat.constvars, values, strict=True)), parent, outer)
    for eqn in flat.eqns:
        scope.defines.update((x, eqn) for x in eqn.outvars if not ir.is_dropped(x))
        name = eqn.primitive.name
        if name == "scan":
            body, body_consts = ir.closed(eqn.params["jaxpr"])
            inner = _scope(body, body_consts, scope, _unchanged(eqn, body))
            scope.inner[id(eqn)] = inner
        elif name in ir.CHECKPOINTS:
            scope.inner[id(eqn)] = called(eqn, scope)
    return scope


def _unchanged(eqn: ir.JaxprEqn, body: ir.Jaxpr) -> dict[ir.Var, Any]:
    """Operands of a loop that every iteration sees: its constants, and carries it hands on."""
    constants, carries = ir.scan_counts(eqn)
    same = dict(zip(body.invars[:constants], eqn.invars[:constants], strict=True))
    for place in range(carries):
        var = body.invars[constants + place]
        if body.outvars[place] is var:
            same[var] = eqn.invars[constants + place]
    return same
