"""The program with its attention replaced, wherever it is: in loops, in checkpoints, in calls.

The program is evaluated under a tracer, equation by equation; what makes a replaced attention's
weights is left out. A loop or a checkpoint that holds attention is built anew around what its body
becomes, and what the body needs from outside (positions of a packed batch, of which a mask was
made) enters it as a closure.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from passes import ir
from passes.attention.arrays import Arrays, sorted_arrays
from passes.attention.pattern import Attention
from passes.attention.scopes import Scope

# From an attention's arrays to its result.
Replacement = Callable[[Arrays], Any]


def rewritten(
    root: Scope, replacements: Mapping[int, tuple[Attention, Replacement]]
) -> Callable[..., list[Any]]:
    """A function from the program's inputs to its outputs.

    Args:
      root: the program.
      replacements: by the identity of the equation that makes an attention's result.
    """
    for attention, _ in replacements.values():
        for var, scope in zip(attention.operands, attention.scopes, strict=True):
            scope.read_inside.add(var)
        for leaf in attention.steps.leaves:
            leaf.scope.read_inside.add(leaf.var)

    def function(*inputs: Any) -> list[Any]:
        return _Evaluation(replacements).run(root, inputs)

    return function


class _Evaluation:
    def __init__(self, replacements: Mapping[int, tuple[Attention, Replacement]]) -> None:
        self.replacements = replacements
        self.values: dict[int, dict[Any, Any]] = {}

    def run(self, scope: Scope, operands: Sequence[Any]) -> list[Any]:
        """Results of a scope; operands that it does not need may be None."""
        env: dict[Any, Any] = {
            **scope.constants,
            **dict(zip(scope.jaxpr.invars, operands, strict=True)),
        }
        self.values[id(scope)] = env
        waiting: list[ir.JaxprEqn] = []
        for eqn in self.live(scope):
            special = id(eqn) in self.replacements or self.holds(scope.inner.get(id(eqn)))
            if not special:
                waiting.append(eqn)
                continue
            _run(scope.jaxpr, waiting, env)
            waiting = []
            if id(eqn) in self.replacements:
                results: Sequence[Any] = [self.attention(eqn)]
            else:
                results = self.nested(eqn, scope, env)
            env.update(zip(eqn.outvars, results, strict=True))
        _run(scope.jaxpr, waiting, env)
        return [ir.read(env, x) for x in scope.jaxpr.outvars]

    def holds(self, scope: Scope | None) -> bool:
        """Whether any attention within a scope is replaced."""
        return scope is not None and any(
            id(eqn) in self.replacements for inner in scope.nested() for eqn in inner.jaxpr.eqns
        )

    def needed(self, scope: Scope) -> tuple[set[Any], list[ir.JaxprEqn]]:
        """Variables that a scope needs, and the equations that make them."""
        needed = {x for x in scope.jaxpr.outvars if not ir.is_literal(x)} | scope.read_inside
        kept = []
        for eqn in reversed(scope.jaxpr.eqns):
            if not eqn.effects and not any(x in needed for x in eqn.outvars):
                continue
            kept.append(eqn)
            if id(eqn) not in self.replacements:
                needed.update(x for x in self.operands(eqn, scope) if not ir.is_literal(x))
        return needed, kept[::-1]

    def operands(self, eqn: ir.JaxprEqn, scope: Scope) -> list[Any]:
        """Operands of an equation that it will read."""
        inner = scope.inner.get(id(eqn))
        if inner is None or not self.holds(inner):
            return list(eqn.invars)
        return [x for x, is_read in zip(eqn.invars, self.reads(eqn, inner), strict=True) if is_read]

    def reads(self, eqn: ir.JaxprEqn, inner: Scope) -> list[bool]:
        """For each operand of a loop or checkpoint whether its body needs it."""
        needed, _ = self.needed(inner)
        found = [x in needed for x in inner.jaxpr.invars]
        if eqn.primitive.name == "scan":
            constants, _ = ir.scan_counts(eqn)
            return [x or i >= constants for i, x in enumerate(found)]
        return found

    def live(self, scope: Scope) -> list[ir.JaxprEqn]:
        """The equations to evaluate."""
        return self.needed(scope)[1]

    def attention(self, eqn: ir.JaxprEqn) -> Any:
        """The result of a replaced attention."""
        found, replacement = self.replacements[id(eqn)]
        operands = [
            self.values[id(scope)][var]
            for var, scope in zip(found.operands, found.scopes, strict=True)
        ]
        arrays = sorted_arrays(found, operands, lambda leaf: self.values[id(leaf.scope)][leaf.var])
        return ir.located(replacement, eqn)(arrays)

    def nested(self, eqn: ir.JaxprEqn, scope: Scope, env: Mapping[Any, Any]) -> Sequence[Any]:
        """The results of a loop or checkpoint with attention in it."""
        inner = scope.inner[id(eqn)]
        is_read = self.reads(eqn, inner)
        values = [
            ir.read(env, x) if read else None for x, read in zip(eqn.invars, is_read, strict=True)
        ]
        if eqn.primitive.name == "scan":
            return self.scan(eqn, inner, values)
        return self.checkpoint(eqn, inner, values, is_read)

    def checkpoint(
        self, eqn: ir.JaxprEqn, inner: Scope, values: list[Any], is_read: list[bool]
    ) -> list[Any]:
        """A checkpoint region, with the same policy."""

        def region(*given: Any) -> list[Any]:
            rest = iter(given)
            return self.run(inner, [next(rest) if read else None for read in is_read])

        barrier = eqn.params["prevent_cse"]
        if isinstance(barrier, tuple):
            barrier = tuple(b for b, read in zip(barrier, is_read, strict=True) if read)
        again = jax.checkpoint(region, policy=eqn.params["policy"], prevent_cse=barrier)
        with jax.named_scope(str(eqn.source_info.name_stack)):
            results: list[Any] = again(*(x for x, r in zip(values, is_read, strict=True) if r))
        return results

    def scan(self, eqn: ir.JaxprEqn, inner: Scope, values: list[Any]) -> list[Any]:
        """A loop; what is the same in every iteration is a closure."""
        constants, carries = ir.scan_counts(eqn)
        first = constants + carries

        def once(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            results = self.run(inner, [*values[:constants], *carry, *slices])
            return results[:carries], results[carries:]

        settings = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
        with jax.named_scope(str(eqn.source_info.name_stack)):
            carry, rest = jax.lax.scan(once, values[constants:first], values[first:], **settings)
        return [*carry, *rest]


def _run(jaxpr: ir.Jaxpr, eqns: Sequence[ir.JaxprEqn], env: dict[Any, Any]) -> None:
    """Evaluate equations as they are, and add their results to `env`."""
    if not eqns:
        return
    makes = [x for eqn in eqns for x in eqn.outvars if not ir.is_dropped(x)]
    made = set(makes)
    atoms: list[Any] = [x for eqn in eqns for x in eqn.invars]
    reads = list(dict.fromkeys(x for x in atoms if not ir.is_literal(x) and x not in made))
    results = ir.part(jaxpr, eqns, reads, makes)(*(env[x] for x in reads))
    env.update(zip(makes, results, strict=True))
