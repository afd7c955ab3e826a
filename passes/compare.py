"""Whether two programs compute the same of the same random data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from passes import ir
from passes.accumulate import whole_function
from passes.errors import PassError
from passes.program import Leaf, Program, Role


def random_inputs(program: Program, seed: int = 0) -> dict[str, Any]:
    """Random arrays for the user's own inputs, by `role/path`; a stack is drawn part by part.

    Floating inputs are normal, of parameters with a standard deviation of 0.1; integers of the
    batch are 0 or 1 (they may be indices of anything), other integers zero.
    """
    drawn: dict[str, Any] = {}
    for leaf in program.whole_inputs:
        shape = leaf.shape[1:] if leaf.parts else leaf.shape
        for key in _keys(leaf):
            drawn[key] = _draw(leaf, shape, np.random.default_rng([seed, *key.encode()]))
    return drawn


def _keys(leaf: Leaf) -> list[str]:
    """`role/path` of the user's own arrays that an input is, or is the stack of."""
    return [f"{leaf.role.value}/{path}" for path in leaf.parts or (leaf.path,)]


def _draw(leaf: Leaf, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    if leaf.dtype.startswith("key<"):
        return ir.random_key(leaf.dtype, int(rng.integers(1 << 30)))
    dtype = jnp.dtype(leaf.dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        scale = 0.1 if leaf.role is Role.PARAMETER else 1.0
        return jnp.asarray(scale * rng.normal(size=shape), dtype)
    if leaf.role is Role.BATCH:
        return jnp.asarray(rng.integers(0, 2, shape), dtype)
    return jnp.zeros(shape, dtype)


def _arguments(program: Program, drawn: dict[str, Any]) -> list[Any]:
    found = []
    for leaf in program.whole_inputs:
        parts = [drawn[key] for key in _keys(leaf)]
        found.append(jnp.stack(parts) if leaf.parts else parts[0])
    return found


def compare(before: Program, after: Program, tolerance: float) -> None:
    """Evaluate both on the same random data.

    Raises:
      PassError: an output differs by more than `tolerance` of its greatest value, or the programs
        have other inputs or outputs.
    """
    drawn = random_inputs(before)
    missing = {key for leaf in after.whole_inputs for key in _keys(leaf)} ^ set(drawn)
    if missing:
        raise PassError(f"input {min(missing)!r} is in one of the programs only")
    if before.outputs != after.outputs:
        raise PassError(f"outputs {before.outputs} became {after.outputs}")
    results = [jax.jit(whole_function(p))(*_arguments(p, drawn)) for p in (before, after)]
    for name, one, other in zip(before.outputs, *results, strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        difference = float(np.max(np.abs(one - other), initial=0.0))
        scale = float(np.max(np.abs(one), initial=0.0))
        if not difference <= tolerance * max(scale, 1e-30):
            raise PassError(
                f"output {name!r} differs by {difference:.3g} on random data, and its greatest "
                f"value is {scale:.3g}"
            )
