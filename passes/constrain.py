"""The plan's layout as sharding constraints, where a partitioner would otherwise have to guess.

A partitioner propagates layouts along equations, forwards and backwards, and needs no help in
between. What it cannot derive, it guesses:

    loop carries    their layout must be known before the body that makes the next one is seen
    lookups         a gather's result may follow its table or its indices

Constraints anywhere else change nothing, or forbid what would have been better (`points="all"` is
there to measure that).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
from jax.sharding import NamedSharding

from passes import ir
from passes.errors import PassError
from passes.inline_calls import inline_calls
from passes.program import Placement, Program
from passes.spec import Spec, partition_spec

_LOOKUPS = frozenset({"gather", "dynamic_slice"})


@dataclasses.dataclass(frozen=True)
class Constrain:
    """Adds the plan's sharding constraints.

    Attributes:
      points: `guesses`: carries and lookups; `all`: every sharded value of two or more
        dimensions.
    """

    points: Literal["guesses", "all"] = "guesses"
    name: str = dataclasses.field(default="constrain", init=False, repr=False)
    after_planning: ClassVar[bool] = True

    def apply(self, program: Program) -> Program:
        """The program with constraints.

        Raises:
          PassError: the program is not planned, or its gradient is no longer that of its equations.
        """
        if program.placement is None:
            raise PassError("there is no plan yet: constraints say what a plan decided")
        if program.gradient is not None:
            raise PassError("the gradient is computed by a pass before it: put constrain first")
        flat = dataclasses.replace(program, jaxpr=inline_calls(program.jaxpr))
        adder = _Adder(program.placement, program.placement.specs(flat), self.points == "all")
        jaxpr, consts = ir.closed(flat.jaxpr)

        def function(*inputs: Any) -> list[Any]:
            return adder.run(jaxpr, consts, inputs)

        specs = [ir.spec(x) for x in jaxpr.invars]
        made = jax.make_jaxpr(function)(*specs)
        return dataclasses.replace(flat, jaxpr=made).noting(
            f"{adder.added} constraints: {', '.join(f'{n} {k}' for k, n in adder.kinds.items())}"
            if adder.added
            else "no value that a partitioner would have to guess is sharded"
        )


class _Adder:
    def __init__(self, placement: Placement, specs: Mapping[ir.Var, Spec], everywhere: bool):
        self.placement = placement
        self.specs = specs
        self.everywhere = everywhere
        self.kinds: dict[str, int] = {}

    @property
    def added(self) -> int:
        return sum(self.kinds.values())

    def run(self, jaxpr: ir.Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The results of a program, constrained on the way."""
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            operands = [ir.read(env, x) for x in eqn.invars]
            name = eqn.primitive.name
            if name == "scan":
                results: Sequence[Any] = self._scan(eqn, operands)
            elif name in ir.CHECKPOINTS:
                results = self._checkpoint(eqn, operands)
            else:
                results = ir.alone(eqn)(*operands)
                kind = "lookups" if name in _LOOKUPS else "others" if self.everywhere else ""
                if kind:
                    pairs = zip(eqn.outvars, results, strict=True)
                    results = [self._constrained(v, x, kind) for v, x in pairs]
            env.update(zip(eqn.outvars, results, strict=True))
        return [ir.read(env, x) for x in jaxpr.outvars]

    def _constrained(self, var: Any, x: Any, kind: str) -> Any:
        spec = None if ir.is_dropped(var) or ir.is_literal(var) else self.specs.get(var)
        if spec is None or len(spec) < 2 or not any(spec):
            return x
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        sharding = NamedSharding(self.placement.mesh, partition_spec(spec))
        return jax.lax.with_sharding_constraint(x, sharding)

    def _scan(self, eqn: ir.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        body, consts = ir.closed(eqn.params["jaxpr"])
        num_consts, num_carry = ir.scan_counts(eqn)
        held = num_consts + num_carry
        inner = body.invars[num_consts:held]
        counted = dict(self.kinds)  # a body may be traced more than once

        def once(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            self.kinds = dict(counted)
            pairs = zip(inner, carry, strict=True)
            carry = [self._constrained(var, x, "carries") for var, x in pairs]
            results = self.run(body, consts, [*operands[:num_consts], *carry, *slices])
            return results[:num_carry], results[num_carry:]

        settings = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
        carry, ys = jax.lax.scan(
            once, list(operands[num_consts:held]), list(operands[held:]), **settings
        )
        return [*carry, *ys]

    def _checkpoint(self, eqn: ir.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        called = ir.callee(eqn)
        assert called is not None
        jaxpr, consts = called
        counted = dict(self.kinds)

        def region(*arrays: Any) -> list[Any]:
            self.kinds = dict(counted)
            return self.run(jaxpr, consts, arrays)

        settings = {name: eqn.params[name] for name in ("policy", "prevent_cse")}
        return list(jax.checkpoint(region, **settings)(*operands))
