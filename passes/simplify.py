"""simplify: less program for the compiler to read, the same values to the bit.

    small calls      jit of a few equations   ->  the equations
    constants        mul 2.0 3.0              ->  6.0
    repeats          a = f x; b = f x         ->  a
    dead code        a result nobody reads    ->  gone

Rewrites the program and the bodies of its calls, loops and branches, which keep their operands and
results. Custom derivatives are left as they are: what `grad` runs of them is not their jaxpr.
(Aho, Lam, Sethi, Ullman, "Compilers", section 8.5 on the equations of a block.)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from passes import ir
from passes.program import Program

_NESTED = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    **{name: (parameter,) for name, parameter in ir.CALLS.items() if "custom" not in name},
}

# A barrier is there to keep apart what looks equal.
_NEVER_MERGED = frozenset({"optimization_barrier"})

# Made of nothing or of one number: cheaper to say than to store.
_NEVER_FOLDED = frozenset({"iota", "broadcast_in_dim", "optimization_barrier"})


@dataclasses.dataclass(frozen=True)
class Simplify:
    """Drop dead code, share repeated equations, fold constants, inline small calls.

    Two equations are a repeat if primitive, parameters and operands are equal; programs and
    functions among the parameters must be the same object, so custom derivatives that differ in
    their backward alone stay apart. Equations with effects are neither dropped nor shared, nor are
    barriers shared. Random bits are a function of their key.

    Attributes:
      max_folded_elements: constants are folded where the result is no larger. Within loops and
        calls only scalars are.
      max_inlined_equations: calls of `jit` with no more equations are inlined.
    """

    max_folded_elements: int = 256
    max_inlined_equations: int = 4
    name: str = dataclasses.field(default="simplify", init=False, repr=False)

    def apply(self, program: Program) -> Program:
        """The simplified program, with a note; the same object where nothing is to be done."""
        jaxpr, consts = ir.closed(program.jaxpr)
        work = _Work(self)
        known = {
            var: np.asarray(value)
            for var, value in zip(jaxpr.constvars, consts, strict=True)
            if _is_plain(var) and var.aval.size <= self.max_folded_elements  # type: ignore[attr-defined]
        }
        simpler, folded = work.simplified(jaxpr, known, arrays=True)
        if not work.counts:
            return program
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update((var, jnp.asarray(value)) for var, value in folded.items())
        used = _used(simpler)
        kept = [var for var in values if var in used]
        simpler = simpler.replace(constvars=kept)
        closed = ir.ClosedJaxpr(simpler, tuple(values[var] for var in kept))
        parts = (f"{count} {what}" for what, count in sorted(work.counts.items()))
        return dataclasses.replace(program, jaxpr=closed).noting(
            f"equations, loops' and calls' own included: {', '.join(parts)}"
        )


class _Work:
    """One application: what was done so far, and bodies that are shared between equations."""

    def __init__(self, settings: Simplify) -> None:
        self.settings = settings
        self.counts: dict[str, int] = {}
        self._bodies: dict[int, tuple[Any, Any]] = {}  # the first keeps the object, and so its id

    def count(self, what: str, number: int = 1) -> None:
        if number:
            self.counts[what] = self.counts.get(what, 0) + number

    def simplified(
        self, jaxpr: ir.Jaxpr, known: dict[ir.Var, np.ndarray], arrays: bool
    ) -> tuple[ir.Jaxpr, dict[ir.Var, np.ndarray]]:
        """The simpler program, and values of variables that became constants of it.

        Args:
          jaxpr: a program; its inputs and results stay.
          known: values of its constants, as far as they are small.
          arrays: whether it may have new constants that are not scalars.
        """
        block = _Block(self, jaxpr, dict(known), arrays)
        for eqn in jaxpr.eqns:
            block.append(eqn)
        results = [block.read(x) for x in jaxpr.outvars]
        simpler = jaxpr.replace(eqns=block.eqns, outvars=results)
        alive = ir.live(simpler)
        self.count("dead", len(simpler.eqns) - len(alive.eqns))
        return alive, block.folded

    def body(self, value: Any) -> Any:
        """A parameter that is a program, simplified; one object for one object."""
        found = self._bodies.get(id(value))
        if found is None:
            jaxpr, consts = ir.closed(value)
            before = sum(self.counts.values())
            simpler: Any = self.simplified(jaxpr, {}, arrays=False)[0]
            if sum(self.counts.values()) == before:
                simpler = value
            elif isinstance(value, ir.ClosedJaxpr):
                simpler = ir.ClosedJaxpr(simpler, consts)
            found = self._bodies[id(value)] = (value, simpler)
        return found[1]


class _Block:
    """A list of equations in the making."""

    def __init__(
        self, work: _Work, jaxpr: ir.Jaxpr, known: dict[ir.Var, np.ndarray], arrays: bool
    ) -> None:
        self.work = work
        self.jaxpr = jaxpr
        self.known = known
        self.arrays = arrays
        self.eqns: list[ir.JaxprEqn] = []
        self.folded: dict[ir.Var, np.ndarray] = {}
        self._env: dict[ir.Var, Any] = {}
        self._seen: dict[Any, ir.JaxprEqn] = {}
        self._constants: dict[Any, ir.Var] = {}

    def read(self, atom: Any) -> Any:
        """What a variable of the old program is now."""
        return atom if ir.is_literal(atom) else self._env.get(atom, atom)

    def append(self, eqn: ir.JaxprEqn) -> None:
        eqn = eqn.replace(invars=[self.read(x) for x in eqn.invars])
        eqn = self._with_bodies(eqn)
        if self._inline(eqn) or self._fold(eqn) or self._merge(eqn):
            return
        self.eqns.append(eqn)

    def _with_bodies(self, eqn: ir.JaxprEqn) -> ir.JaxprEqn:
        changed = {}
        for name in _NESTED.get(eqn.primitive.name, ()):
            value = eqn.params.get(name)
            if isinstance(value, tuple):
                simpler: Any = tuple(self.work.body(item) for item in value)
                same = all(one is other for one, other in zip(simpler, value, strict=True))
            elif isinstance(value, (ir.Jaxpr, ir.ClosedJaxpr)):
                simpler = self.work.body(value)
                same = simpler is value
            else:
                continue
            if not same:
                changed[name] = simpler
        return eqn.replace(params={**eqn.params, **changed}) if changed else eqn

    def _inline(self, eqn: ir.JaxprEqn) -> bool:
        called = ir.callee(eqn) if eqn.primitive.name in ir.PLAIN_CALLS else None
        if called is None or called[1] or not self._may_inline(eqn, called[0]):
            return False
        self.work.count("calls inlined")
        jaxpr = ir.inlined(called[0], eqn)
        env: dict[Any, Any] = dict(zip(jaxpr.invars, eqn.invars, strict=True))
        for inner in jaxpr.eqns:
            operands = [x if ir.is_literal(x) else env[x] for x in inner.invars]
            # The callee is shared between calls: its variables are made anew for each.
            results = [x if ir.is_dropped(x) else ir.Var(x.aval) for x in inner.outvars]
            env.update(zip(inner.outvars, results, strict=True))
            self.append(inner.replace(invars=operands, outvars=results))
        for outer, result in zip(eqn.outvars, jaxpr.outvars, strict=True):
            self._env[outer] = self.read(result if ir.is_literal(result) else env[result])
        return True

    def _may_inline(self, eqn: ir.JaxprEqn, jaxpr: ir.Jaxpr) -> bool:
        asked = (*eqn.params.get("in_shardings", ()), *eqn.params.get("out_shardings", ()))
        return (
            len(jaxpr.eqns) <= self.work.settings.max_inlined_equations
            and not eqn.effects
            and not any(isinstance(x, jax.sharding.Sharding) for x in asked)
            and not any(eqn.params.get("donated_invars", ()))
            and not eqn.params.get("compiler_options_kvs", ())
        )

    def _fold(self, eqn: ir.JaxprEqn) -> bool:
        reads: list[Any] = list(dict.fromkeys(x for x in eqn.invars if not ir.is_literal(x)))
        if any(x not in self.known for x in reads) or not self._may_fold(eqn):
            return False
        with jax.ensure_compile_time_eval():
            evaluate = ir.part(self.jaxpr, [eqn], reads, eqn.outvars)
            results = evaluate(*(self.known[x] for x in reads))
        self.work.count("folded")
        for var, result in zip(eqn.outvars, results, strict=True):
            if not ir.is_dropped(var):
                self._env[var] = self._constant(var, np.asarray(result))
        return True

    def _may_fold(self, eqn: ir.JaxprEqn) -> bool:
        name = eqn.primitive.name
        limit = self.work.settings.max_folded_elements if self.arrays else 1
        return (
            bool(eqn.invars)
            and not eqn.effects
            and name not in _NEVER_FOLDED
            and name not in _NESTED
            and "custom" not in name
            and not name.startswith(("random", "threefry"))
            and all(_is_plain(x) for x in (*eqn.invars, *eqn.outvars))
            and all(x.aval.size <= limit and (self.arrays or not x.aval.shape) for x in eqn.outvars)  # type: ignore[attr-defined]
        )

    def _constant(self, var: ir.Var, value: np.ndarray) -> Any:
        """A literal, or a new constant of the program; one for equal values."""
        if not value.shape:
            return ir.Literal(value[()], var.aval)
        key = (var.aval, value.tobytes())
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = ir.Var(var.aval)
            self.known[found] = self.folded[found] = value
        return found

    def _merge(self, eqn: ir.JaxprEqn) -> bool:
        if eqn.effects or eqn.primitive.name in _NEVER_MERGED:
            return False
        key = _key(eqn)
        first = self._seen.setdefault(key, eqn)
        if first is eqn:
            return False
        pairs = list(zip(eqn.outvars, first.outvars, strict=True))
        if any(ir.is_dropped(two) and not ir.is_dropped(one) for one, two in pairs):
            self._seen[key] = eqn
            return False
        self.work.count("repeated")
        self._env.update((one, two) for one, two in pairs if not ir.is_dropped(one))
        return True


def _is_plain(atom: Any) -> bool:
    """Whether it is an array of numbers (and not of keys, nor a token)."""
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.extended)


def _used(jaxpr: ir.Jaxpr) -> set[Any]:
    atoms: list[Any] = [x for eqn in jaxpr.eqns for x in eqn.invars]
    return {x for x in (*atoms, *jaxpr.outvars) if not ir.is_literal(x)}


def _key(eqn: ir.JaxprEqn) -> Any:
    """Equal for equations that make the same."""
    atoms: list[Any] = eqn.invars
    operands = tuple(
        (x.aval, np.asarray(x.val).tobytes()) if ir.is_literal(x) else x for x in atoms
    )
    custom = "custom" in eqn.primitive.name
    params = tuple(
        (name, id(value) if custom else _parameter_key(value))
        for name, value in sorted(eqn.params.items())
    )
    results = tuple(x.aval for x in eqn.outvars)
    return eqn.primitive, operands, params, results, eqn.ctx


def _parameter_key(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_parameter_key, value))
    if isinstance(value, float):  # 0.0 == -0.0
        return float, repr(value)
    try:
        hash(value)
    except TypeError:
        return "object", id(value)
    return type(value), value
