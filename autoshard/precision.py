"""Mixed-precision policy: what is stored, what is computed in."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from autoshard.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Precision:
    """Dtypes of a training step; None leaves the model's own.

    Attributes:
      params: dtype in which parameters and optimizer state are stored.
      compute: dtype to which parameters and floating inputs are cast before the model runs. The
        loss is always computed in float32.
    """

    params: str | None = None
    compute: str | None = None

    @classmethod
    def of(cls, value: "Precision | str | Any | None") -> "Precision":
        """A policy from a policy, None, or the name of a compute dtype (stored in float32).

        Raises:
          ModelError: the name is not a floating dtype.
        """
        if value is None:
            return cls()
        if isinstance(value, Precision):
            return value
        try:
            dtype = jnp.dtype(value)
        except TypeError:
            dtype = None
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ModelError(
                f"dtype={value!r} is not a floating dtype: use 'float32', 'bfloat16' or "
                "Precision(params=..., compute=...)"
            )
        return cls(params="float32", compute=dtype.name)


def cast_floating(tree: Any, dtype: str | None) -> Any:
    """Cast the floating arrays of a tree; others, and everything if `dtype` is None, stay."""
    if dtype is None:
        return tree

    def cast(x: Any) -> Any:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)
