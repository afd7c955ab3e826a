"""Attention as people write it, each a function of query, key and value.

Shapes: query [B, S, H, D]; key, value [B, T, N, D], N a divisor of H.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from passes.hlo.machine import Axis, Fabric, MachineModel
from passes.program import Leaf, Placement, Program, Role

B, S, H, D = 2, 16, 4, 4

Writing = Callable[..., Any]


def machine(devices: int, link_bytes_per_s: float = 1e11) -> MachineModel:
    """A ring of devices, fast enough that small things take measurable time."""
    axis = Axis("x", devices, Fabric.TORUS, True, link_bytes_per_s, 1e-6)
    return MachineModel(
        "ring", "tpu", 1e9, (("bf16", 4e14), ("f32", 1e14)), 1e12, 1 << 34, 1e12, 1 << 27, 1e10,
        (axis,), tuple((i,) for i in range(devices)),
    )  # fmt: skip


def placement(**axes: int) -> Placement:
    """A mesh of this process's devices."""
    count = int(np.prod(list(axes.values())))
    devices = np.array(jax.devices()[:count]).reshape(tuple(axes.values()))
    mesh = Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    return Placement(mesh, machine(count), lambda program: {})


def program(function: Writing, *arguments: Any, **axes: int) -> Program:
    """The sum of a function's sines, as a placed program; arguments are its parameters."""

    def loss(*given: Any) -> Any:
        return jnp.sum(jnp.sin(function(*given).astype(jnp.float32)))

    traced = jax.make_jaxpr(loss)(*arguments)
    leaves = tuple(
        Leaf(f"x{i}", Role.PARAMETER, x.shape, str(x.dtype)) for i, x in enumerate(arguments)
    )
    return dataclasses.replace(
        Program("attention", traced, leaves, ("loss",)), placement=placement(**axes)
    )


def operands(heads: int = H, length: int = S, keys: int | None = None) -> tuple[Any, Any, Any]:
    """Random query, key and value."""
    numbers = jax.random.split(jax.random.key(0), 3)
    shapes = ((B, length, H, D), (B, keys or length, heads, D), (B, keys or length, heads, D))
    q, k, v = (jax.random.normal(n, s) for n, s in zip(numbers, shapes, strict=True))
    return q, k, v


def einsum(mask: Any = None, bias: Any = None) -> Writing:
    """Plain einsums, the scale on the scores, float32 softmax."""

    def attention(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bshd,bthd->bhst", q, k) * q.shape[-1] ** -0.5
        scores = scores if bias is None else scores + bias
        if mask is not None:
            scores = jnp.where(mask(q.shape[1], k.shape[1]), scores, jnp.finfo(jnp.float32).min)
        return jnp.einsum("bhst,bthd->bshd", jax.nn.softmax(scores, -1), v)

    return attention


def causal(queries: int, keys: int) -> Any:
    """Positions compared."""
    return (jnp.arange(queries)[:, None] >= jnp.arange(keys)[None, :])[None, None]
