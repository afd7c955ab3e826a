"""The one place that touches JAX's program representation.

Everything of `jax.extend` that the toolkit needs is re-exported from here under stable names, so
that a JAX release which moves something costs one edit.
"""

from collections.abc import Callable, Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

__all__ = [
    "CALLS",
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Var",
    "as_function",
    "callee",
    "closed",
    "equations",
    "is_literal",
    "scan_counts",
    "source_line",
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


def _is_library(file_name: str) -> bool:
    return any(part in file_name for part in ("/jax/", "/flax/", "/optax/", "/einops/"))


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every equation, those of called and nested programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, (Jaxpr, ClosedJaxpr)):
                    yield from equations(closed(item)[0])
