"""The one place that touches JAX's program representation.

Everything of `jax.extend` that the toolkit needs is re-exported from here under stable names, so
that a JAX release which moves something costs one edit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import (
    ClosedJaxpr,
    DebugInfo,
    DropVar,
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    jaxpr_as_fun,
)

__all__ = [
    "CALLS",
    "CHECKPOINTS",
    "CUSTOM_DERIVATIVES",
    "PLAIN_CALLS",
    "PRODUCTS",
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Var",
    "alone",
    "as_function",
    "callee",
    "closed",
    "described",
    "equations",
    "has_manual_axes",
    "inlined",
    "is_dropped",
    "is_literal",
    "live",
    "located",
    "part",
    "random_key",
    "read",
    "reverse_rule",
    "scan_counts",
    "source_line",
    "spec",
    "with_results",
]

# Primitives that only call, and the parameter that holds the callee. Their operands and results are
# the callee's.
CALLS: dict[str, str] = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_lin": "call_jaxpr",
    "shard_alike": "jaxpr",
}

_ALONE = DebugInfo("pass", "an equation alone", None, None)

# Calls that only call: what they contain may stand in their place.
PLAIN_CALLS = frozenset("jit pjit closed_call core_call".split())

# Calls with a derivative of their own.
CUSTOM_DERIVATIVES = frozenset(
    "custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr custom_lin".split()
)

# The names that `jax.checkpoint` has had.
CHECKPOINTS = frozenset({"checkpoint", "remat", "remat2"})

# What a device's matrix units do.
PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})


def closed(jaxpr: Any) -> tuple[Jaxpr, tuple[Any, ...]]:
    """An open jaxpr and its constants, whichever of the two forms a primitive's parameter holds."""
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.jaxpr, tuple(jaxpr.consts)
    return jaxpr, ()


def callee(eqn: JaxprEqn) -> tuple[Jaxpr, tuple[Any, ...]] | None:
    """The program that `eqn` calls one to one, or None when `eqn` is not a plain call."""
    parameter = CALLS.get(eqn.primitive.name)
    if parameter is None:
        return None
    for name in (parameter, "jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return closed(eqn.params[name])
    return None


def scan_counts(eqn: JaxprEqn) -> tuple[int, int]:
    """(number of constants, number of carries) among a scan's operands, constants first.

    Up to jax 0.11 they are parameters; later ones keep the trees of the operands instead.
    """
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    constants, carries, _ = eqn.params["ft_in"].unpack()
    return len(constants), len(carries)


def as_function(program: ClosedJaxpr) -> Callable[..., list[Any]]:
    """A traceable, differentiable function from the program's flat inputs to its flat outputs."""
    return jaxpr_as_fun(program)


def is_literal(atom: Any) -> bool:
    """Whether an equation's operand is a literal rather than a variable."""
    return isinstance(atom, Literal)


def read(env: Mapping[Any, Any], atom: Any) -> Any:
    """The value of an operand: a literal's own, or a variable's in `env`."""
    return atom.val if isinstance(atom, Literal) else env[atom]


def is_dropped(var: Any) -> bool:
    """Whether a result of an equation is thrown away."""
    return isinstance(var, DropVar)


def part(jaxpr: Jaxpr, eqns: Sequence[JaxprEqn], reads: Sequence[Var], makes: Sequence[Var]) -> Any:
    """A function from the values of `reads` to those of `makes`, by some equations of `jaxpr`.

    Source lines and name scopes of the equations are kept.
    """
    smaller = jaxpr.replace(constvars=[], invars=list(reads), outvars=list(makes), eqns=list(eqns))
    return jaxpr_as_fun(ClosedJaxpr(smaller, ()))


def located(function: Callable[..., Any], eqn: JaxprEqn) -> Callable[..., Any]:
    """`function`, of arrays, as if it stood where the user's own code made `eqn`.

    What a compiler says about the result (source lines, scopes) then points there.
    """

    def run(*args: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        eqns = [_placed(inner, eqn, keep_line=False) for inner in program.jaxpr.eqns]
        placed = ClosedJaxpr(program.jaxpr.replace(eqns=eqns), program.consts)
        flat = jaxpr_as_fun(placed)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), flat)

    return run


def inlined(jaxpr: Jaxpr, eqn: JaxprEqn) -> Jaxpr:
    """The program that `eqn` calls, to be evaluated in its place.

    Equations that a library made in a function under `jit` know no line of the user's: they take
    that of the call.
    """
    return jaxpr.replace(eqns=[_placed(inner, eqn, keep_line=True) for inner in jaxpr.eqns])


def _placed(eqn: JaxprEqn, place: JaxprEqn, keep_line: bool) -> JaxprEqn:
    info = eqn.source_info if keep_line and source_line(eqn) else place.source_info
    scope = place.source_info.name_stack + eqn.source_info.name_stack
    return eqn.replace(source_info=info.replace(name_stack=scope))


def source_line(eqn: JaxprEqn) -> str:
    """`file.py:line (function)` of the user's frame that made the equation, or an empty string."""
    try:
        traceback = eqn.source_info.traceback
        frames: Any = traceback.frames if traceback is not None else ()
    except AttributeError:
        return ""
    for frame in frames:
        if not _is_library(frame.file_name):
            return f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num} ({frame.function_name})"
    return ""


def described(eqn: JaxprEqn) -> str:
    """`primitive at file.py:line (function)`, for messages; the primitive alone if unknown."""
    line = source_line(eqn)
    return f"{eqn.primitive.name} at {line}" if line else eqn.primitive.name


def _is_library(file_name: str) -> bool:
    return any(part in file_name for part in ("/jax/", "/flax/", "/optax/", "/einops/"))


def has_manual_axes(program: ClosedJaxpr) -> bool:
    """Whether a part of the program is written for single devices of a mesh (`shard_map`)."""
    return any(eqn.primitive.name == "shard_map" for eqn in equations(closed(program)[0]))


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every equation, those of called and nested programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, (Jaxpr, ClosedJaxpr)):
                    yield from equations(closed(item)[0])


def equation_count(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Equations, those of called and nested programs included."""
    return sum(1 for _ in equations(closed(jaxpr)[0]))


def reverse_rule(eqn: JaxprEqn) -> tuple[ClosedJaxpr, ClosedJaxpr]:
    """How a custom derivative runs: (operands -> results and residuals, residuals and cotangents of
    the results -> cotangents of the operands).

    Both as JAX would trace them, the user's own rule included. Operands that have no cotangent
    (integers, keys) get one of dtype float0.
    """
    function = alone(eqn)
    specs = [spec(x) for x in eqn.invars]
    saved: list[Any] = []

    def forward(*operands: Any) -> Any:
        results, backward = jax.vjp(function, *operands)
        leaves, structure = jax.tree.flatten(backward)
        saved[:] = [structure]
        return results, leaves

    first, shapes = jax.make_jaxpr(forward, return_shape=True)(*specs)

    def backward(residuals: Any, cotangents: Any) -> Any:
        return jax.tree.unflatten(saved[0], residuals)(cotangents)

    results, residuals = shapes
    cotangents = [
        jax.ShapeDtypeStruct(x.shape, jax.numpy.zeros((), x.dtype).dtype)
        if jax.numpy.issubdtype(x.dtype, jax.numpy.inexact)
        else jax.ShapeDtypeStruct(x.shape, jax.dtypes.float0)
        for x in results
    ]
    second = jax.make_jaxpr(backward)(residuals, cotangents)
    return first, second


def alone(eqn: JaxprEqn) -> Callable[..., list[Any]]:
    """A function from the values of an equation's operands, literals too, to its results.

    A literal that is given its own value stays one.
    """

    def run(*operands: Any) -> list[Any]:
        value: dict[Any, Any] = {}
        atoms: list[Any] = []
        for x, v in zip(eqn.invars, operands, strict=True):
            atom: Any = x
            if is_literal(x) and v is not atom.val:
                atom = Var(x.aval)
                v = jax.numpy.asarray(v, spec(x).dtype)
            if not is_literal(atom):
                value[atom] = v
            atoms.append(atom)
        changed = eqn.replace(invars=atoms)
        jaxpr = Jaxpr((), list(value), list(eqn.outvars), [changed], eqn.effects, _ALONE)
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))(*value.values())

    return run


def random_key(dtype: Any, seed: int) -> Any:
    """A typed PRNG key of a dtype such as `key<fry>`.

    Raises:
      ValueError: it is the dtype of none of JAX's implementations.
    """
    for name in ("threefry2x32", "rbg", "unsafe_rbg"):
        if str(jax.eval_shape(lambda name=name: jax.random.key(0, impl=name)).dtype) == str(dtype):
            return jax.random.key(seed, impl=name)
    raise ValueError(f"no PRNG implementation of JAX has keys of dtype {dtype}")


def spec(atom: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a variable or literal."""
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def live(jaxpr: Jaxpr) -> Jaxpr:
    """The program without the equations that no result needs."""
    needed = {x for x in jaxpr.outvars if not is_literal(x)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(x in needed for x in eqn.outvars):
            kept.append(eqn)
            needed.update(x for x in eqn.invars if not is_literal(x))
    return jaxpr.replace(eqns=kept[::-1])


def with_results(jaxpr: Jaxpr, results: Sequence[Any]) -> Jaxpr:
    """A program of the same inputs that makes other variables, and nothing they don't need."""
    return live(jaxpr.replace(outvars=list(results)))
