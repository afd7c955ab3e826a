"""From a loop to its `BlockProblem`: what its backward pass reads, and what could be made again.

The body is differentiated with every value named. What the derivative keeps are the needed values;
the equations of that trace are what could run again, among them those that only derivatives read
(a cosine for a sine).
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from passes import ir
from passes.equation_cost import CostModel
from passes.remat_body import NamedBody
from passes.remat_problem import BlockProblem, Step, Value
from passes.spec import Spec

_TAG = "remat:"
_RANDOM = frozenset("random_bits threefry2x32 random_gamma".split())


@dataclasses.dataclass(frozen=True)
class Loop:
    """A scan over layers, ready to be decided on.

    Attributes:
      label: `block0`, ...
      eqn: the scan; its body is flat (`remat_body.flat_body`).
      trained: for each operand of the body, whether gradients reach it.
      operand_names: for each operand of the body, a parameter's path, or empty.
    """

    label: str
    eqn: ir.JaxprEqn
    trained: tuple[bool, ...]
    operand_names: tuple[str, ...]

    @property
    def body(self) -> ir.Jaxpr:
        """The body."""
        return ir.closed(self.eqn.params["jaxpr"])[0]

    @property
    def consts(self) -> tuple[Any, ...]:
        """Values of the body's constants."""
        return ir.closed(self.eqn.params["jaxpr"])[1]

    @property
    def carries(self) -> tuple[ir.Var, ...]:
        """The body's variables for what is carried."""
        first, count = ir.scan_counts(self.eqn)
        return tuple(self.body.invars[first : first + count])


@dataclasses.dataclass(frozen=True)
class BlockTrace:
    """A loop and its problem.

    Attributes:
      loop: the loop.
      problem: what is to be decided.
      variable: for the index of each value that can be kept, the variable of the body.
    """

    loop: Loop
    problem: BlockProblem
    variable: Mapping[int, ir.Var]


def value_names(loop: Loop) -> dict[ir.Var, str]:
    """A unique name for each value of a body that could be kept, carries first.

    `block0/q_proj/kernel:dot_general`: the product with that parameter; others by their scope or
    source function and their primitive. Left out: scalars, and what depends on the loop's slices
    of floating arrays alone (parameters), which is made again from them.
    """
    body = loop.body
    own = _own_values(loop)
    names: dict[ir.Var, str] = {}
    taken: collections.Counter[str] = collections.Counter()

    def add(var: ir.Var, stem: str) -> None:
        taken[stem] += 1
        suffix = f".{taken[stem]}" if taken[stem] > 1 else ""
        names[var] = f"{loop.label}/{stem}{suffix}"

    for i, var in enumerate(loop.carries):
        if _is_array(var):
            add(var, f"carry{i}" if i else "carry")
    origin: dict[Any, str] = dict(zip(body.invars, loop.operand_names, strict=True))
    for eqn in body.eqns:
        sources = [origin.get(x, "") for x in eqn.invars if not ir.is_literal(x)]
        for var in eqn.outvars:
            if ir.is_dropped(var):
                continue
            if var in own and _is_array(var):
                add(var, _stem(eqn, sources))
            elif len(sources) == 1:
                origin[var] = sources[0]
    return names


def _own_values(loop: Loop) -> set[ir.Var]:
    """Values that depend on more than floating slices and constants made in the body."""
    num_consts, num_carry = ir.scan_counts(loop.eqn)
    held = num_consts + num_carry
    own = {
        var
        for i, var in enumerate(loop.body.invars)
        if (i < held and loop.trained[i]) or num_consts <= i < held
    }
    for eqn in loop.body.eqns:
        if eqn.primitive.name in _RANDOM or any(
            x in own for x in eqn.invars if not ir.is_literal(x)
        ):
            own.update(x for x in eqn.outvars if not ir.is_dropped(x))
    return own


def _is_array(var: Any) -> bool:
    aval = var.aval
    if not hasattr(aval, "shape") or str(aval.dtype).startswith("key<"):
        return False
    return math.prod(aval.shape) > 1


def _stem(eqn: ir.JaxprEqn, sources: Sequence[str]) -> str:
    parameter = next((name for name in sources if name), "")
    scope = str(eqn.source_info.name_stack)
    if not parameter and not scope:
        scope = _function_of(ir.source_line(eqn))
    return f"{parameter or scope or 'value'}:{eqn.primitive.name}"


def _function_of(line: str) -> str:
    """`LlamaMLP` of `llama.py:193 (LlamaMLP.__call__)`, `layer` of `... (make.<locals>.layer)`."""
    found = re.search(r"\((.+)\)$", line)
    pieces = found.group(1).split(".") if found else []
    pieces = [x for x in pieces if not x.startswith("<") and x != "__call__"]
    return pieces[-1] if pieces else ""


def trace_block(
    loop: Loop, names: Mapping[ir.Var, str], specs: Mapping[ir.Var, Spec], costs: CostModel
) -> BlockTrace:
    """The problem of one loop.

    Args:
      loop: the loop.
      names: of `value_names`.
      specs: how each variable of the body is sharded.
      costs: of equations.
    """
    numbered = {var: f"{_TAG}{i}" for i, var in enumerate(names)}
    jaxpr = ir.live(ir.closed(_residuals(loop, numbered))[0])
    tagged = {f"{_TAG}{i}": var for i, var in enumerate(names)}
    of_body = dict(zip(jaxpr.invars, loop.body.invars, strict=True))
    spec_of = dict(_known_specs(jaxpr, of_body, tagged, specs))
    carries = set(loop.carries)
    free = {x for x in jaxpr.invars if of_body[x] not in carries} | set(jaxpr.constvars)
    builder = _Builder(names, tagged, costs, spec_of)
    for var in jaxpr.invars:
        name = names.get(of_body[var], "") if var not in free else ""
        builder.value(var, name, None, var in free, of_body[var])
    for var in jaxpr.constvars:
        builder.value(var, "", None, True, None)
    derived = set(free)  # parameters and what is made of them alone
    for eqn in jaxpr.eqns:
        body_var = tagged.get(eqn.params.get("name", "")) if eqn.primitive.name == "name" else None
        if body_var in carries:
            # A named carry is the carry.
            builder.index[eqn.outvars[0]] = builder.index[eqn.invars[0]]
            continue
        builder.step(eqn, body_var, frozenset(derived))
        if all(x in derived for x in eqn.invars if not ir.is_literal(x)):
            derived.update(eqn.outvars)
    needed = dict.fromkeys(builder.index[x] for x in jaxpr.outvars if not ir.is_literal(x))
    problem = BlockProblem(
        loop.label,
        loop.eqn.params["length"],
        tuple(builder.values),
        tuple(builder.steps),
        tuple(needed),
    )
    return BlockTrace(loop, problem, builder.variable)


class _Builder:
    """Values and steps, collected."""

    def __init__(
        self,
        names: Mapping[ir.Var, str],
        tagged: Mapping[str, ir.Var],
        costs: CostModel,
        spec_of: dict[Any, Spec],
    ) -> None:
        self.names, self.tagged, self.costs, self.spec_of = names, tagged, costs, spec_of
        self.values: list[Value] = []
        self.steps: list[Step] = []
        self.index: dict[Any, int] = {}
        self.variable: dict[int, ir.Var] = {}

    def value(
        self, var: Any, name: str, maker: int | None, free: bool, body_var: ir.Var | None
    ) -> None:
        self.index[var] = len(self.values)
        if name and body_var is not None:
            self.variable[len(self.values)] = body_var
        size = 0.0
        if hasattr(var.aval, "shape"):
            size = self.costs.local_bytes(var.aval, self.spec_of.get(var, ()))
        self.values.append(Value(name, size, maker, free))

    def step(self, eqn: ir.JaxprEqn, body_var: ir.Var | None, held: frozenset[Any]) -> None:
        for var in eqn.outvars:
            if var not in self.spec_of and not ir.is_dropped(var):
                self.spec_of[var] = _inferred(eqn, var, self.spec_of)
        cost = self.costs.of(eqn, lambda x: self.spec_of.get(x, ()), held)
        reads = dict.fromkeys(self.index[x] for x in eqn.invars if not ir.is_literal(x))
        self.steps.append(Step(tuple(reads), cost.seconds, cost.flops))
        name = self.names[body_var] if body_var is not None else ""
        for var in eqn.outvars:
            if not ir.is_dropped(var):
                self.value(var, name, len(self.steps) - 1, False, body_var)


def _residuals(loop: Loop, names: Mapping[ir.Var, str]) -> ir.ClosedJaxpr:
    """The body's operands -> what its derivative keeps, every value named."""
    body = NamedBody(loop.body, loop.consts, names)
    inexact = [
        trained and bool(jnp.issubdtype(ir.spec(x).dtype, jnp.inexact))
        for trained, x in zip(loop.trained, loop.body.invars, strict=True)
    ]

    def residuals(*operands: Any) -> Any:
        def function(*floating: Any) -> list[Any]:
            values = iter(floating)
            merged = [
                next(values) if is_trained else x
                for is_trained, x in zip(inexact, operands, strict=True)
            ]
            return body(*merged)

        trained = [x for is_trained, x in zip(inexact, operands, strict=True) if is_trained]
        return jax.tree.leaves(jax.vjp(function, *trained)[1])

    return jax.make_jaxpr(residuals)(*(ir.spec(x) for x in loop.body.invars))


def _known_specs(
    jaxpr: ir.Jaxpr,
    of_body: Mapping[Any, ir.Var],
    tagged: Mapping[str, ir.Var],
    specs: Mapping[ir.Var, Spec],
) -> Mapping[Any, Spec]:
    found = {var: specs.get(body_var, ()) for var, body_var in of_body.items()}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name" and eqn.params["name"] in tagged:
            spec = specs.get(tagged[eqn.params["name"]], ())
            found[eqn.outvars[0]] = spec
            if not ir.is_literal(eqn.invars[0]):
                found[eqn.invars[0]] = spec
    return found


def _inferred(eqn: ir.JaxprEqn, var: Any, spec_of: Mapping[Any, Spec]) -> Spec:
    """The spec of a value that only derivatives make: after the operand that it is made from."""
    shape = getattr(var.aval, "shape", ())
    name = eqn.primitive.name
    operands: list[Any] = [x for x in eqn.invars if not ir.is_literal(x)]
    for x in operands:
        if not spec_of.get(x):
            continue
        spec = (*spec_of[x], *(((),) * (len(x.aval.shape) - len(spec_of[x]))))
        if x.aval.shape == shape:
            return spec
        if name == "broadcast_in_dim":
            places = dict(zip(eqn.params["broadcast_dimensions"], spec, strict=True))
            return tuple(places.get(d, ()) for d in range(len(shape)))
        if "axes" in eqn.params and len(shape) < len(spec):
            return tuple(s for d, s in enumerate(spec) if d not in eqn.params["axes"])
        if name == "transpose":
            return tuple(spec[d] for d in eqn.params["permutation"])
        sizes = {n: s for n, s in zip(x.aval.shape, spec, strict=True) if s}
        return tuple(sizes.pop(n, ()) for n in shape)
    return ()
