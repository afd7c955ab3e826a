"""Attention as people write it, as functions of parameters and a batch, on small placed programs.

Shapes: query [B, S, H, D]; key, value [B, T, N, D], N a divisor of H.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, Mesh

from passes.hlo.machine import Axis, Fabric, MachineModel
from passes.program import Placement, Program
from tests.passes import programs

B, S, H, D = 2, 16, 4, 4

# (query, key, value, batch) -> the result.
Writing = Callable[[Any, Any, Any, Any], Any]


def machine(devices: int, link_bytes_per_s: float = 1e11) -> MachineModel:
    """A ring of devices with round figures."""
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


def placed(program: Program, **axes: int) -> Program:
    """The program on a mesh."""
    return dataclasses.replace(program, placement=placement(**axes))


def batch(length: int = S) -> dict[str, Any]:
    """What masks are made of: segments, padding, positions of a packed batch."""
    return {
        "segments": jax.ShapeDtypeStruct((B, length), jnp.int32),
        "valid": jax.ShapeDtypeStruct((B, length), jnp.bool_),
        "positions": jax.ShapeDtypeStruct((B, length), jnp.int32),
    }


def parameters(
    heads: int = H, length: int = S, keys: int | None = None, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """Query, key and value, and what biases are made of."""
    t = keys or length
    shapes = {
        "query": (B, length, H, D),
        "key": (B, t, heads, D),
        "value": (B, t, heads, D),
        "bias": (1, H, length, t),
        "slopes": (H,),
    }
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


def program(writing: Writing, given: Any = None, masks: Any = None) -> Program:
    """A positive loss of a writing's result; without a mesh."""

    def loss(params: Any, batch: Any) -> Any:
        extra = {**batch, "bias": params["bias"], "slopes": params["slopes"]}
        query, key, value = (10 * params[name] for name in ("query", "key", "value"))
        result = writing(query, key, value, extra).astype(jnp.float32)
        weights = 1.5 + jnp.cos(jnp.arange(result.size, dtype=jnp.float32))
        return jnp.mean(jnp.exp(result / 2) * weights.reshape(result.shape))

    return programs.of_function(loss, given or parameters(), masks or batch())


def einsum(mask: Any = None, bias: Any = None, change: Any = None) -> Writing:
    """Plain einsums, the scale on the scores; `mask` and `bias` of (queries, keys, batch)."""

    def attention(q: Any, k: Any, v: Any, batch: Any) -> Any:
        scores = jnp.einsum("bshd,bthd->bhst", q, k) * q.shape[-1] ** -0.5
        scores = scores if change is None else change(scores)
        sizes = q.shape[1], k.shape[1]
        scores = scores if bias is None else scores + bias(*sizes, batch)
        if mask is not None:
            scores = jnp.where(mask(*sizes, batch), scores, jnp.finfo(jnp.float32).min)
        return jnp.einsum("bhst,bthd->bshd", jax.nn.softmax(scores, -1), v)

    return attention


def causal(queries: int, keys: int, batch: Any = None) -> Any:
    """Positions compared: [1, 1, S, T]."""
    return (jnp.arange(queries)[:, None] >= jnp.arange(keys)[None, :])[None, None]


def window(queries: int, keys: int, batch: Any) -> Any:
    """The last five keys."""
    rows = jax.lax.broadcasted_iota(jnp.int32, (queries, keys), 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (queries, keys), 1)
    return ((rows >= columns) & (rows - columns < 5))[None, None]


def near(queries: int, keys: int, batch: Any) -> Any:
    """Keys at most three away, both ways."""
    distance = jnp.arange(queries)[:, None] - jnp.arange(keys)[None, :]
    return (jnp.abs(distance) <= 3)[None, None]


def segments(queries: int, keys: int, batch: Any) -> Any:
    """Keys of the same segment, causal; some rows of a mixed batch see few."""
    ids = batch["segments"]
    return (ids[:, None, :, None] == ids[:, None, None, :]) & causal(queries, keys)


def padding(queries: int, keys: int, batch: Any) -> Any:
    """Keys that are no padding, causal: some rows see none."""
    return batch["valid"][:, None, None, :] & causal(queries, keys)


def packed(queries: int, keys: int, batch: Any) -> Any:
    """Positions that come with the batch."""
    at = batch["positions"]
    return at[:, None, :, None] >= at[:, None, None, :]


def strictly(queries: int, keys: int, batch: Any) -> Any:
    """Keys before the query: the first row sees none."""
    return jnp.tril(jnp.ones((queries, keys), bool), -1)[None, None]


def constant(queries: int, keys: int, batch: Any) -> Any:
    """A mask made by numpy."""
    return np.tril(np.ones((1, 1, queries, keys), bool))


def dense(queries: int, keys: int, batch: Any) -> Any:
    """A learned bias for each pair."""
    return batch["bias"]


def alibi(queries: int, keys: int, batch: Any) -> Any:
    """Learned slopes times distance, and minus 1e9 ahead."""
    distance = jnp.arange(queries)[:, None] - jnp.arange(keys)[None, :]
    slopes = batch["slopes"][:, None, None] * distance[None].astype(jnp.float32)
    hidden = (1.0 - causal(queries, keys).astype(jnp.float32)) * -1e9
    return -slopes[None] + hidden


def capped(scores: Any) -> Any:
    """Scores softly limited."""
    return 5.0 * jnp.tanh(scores / 5.0)


MASKS: dict[str, Writing] = {
    "none": einsum(),
    "causal": einsum(causal),
    "window": einsum(window),
    "near": einsum(near),
    "segments": einsum(segments),
    "padding": einsum(padding),
    "packed": einsum(packed),
    "strictly": einsum(strictly),
    "constant": einsum(constant),
    "dense": einsum(causal, dense),
    "alibi": einsum(bias=alibi),
    "capped": einsum(causal, change=capped),
}


def heads_first(q: Any, k: Any, v: Any, batch: Any) -> Any:
    """[B, H, S, D] by `dot_general`, the scale on the query, softmax by hand."""
    q, k, v = (jnp.transpose(x, (0, 2, 1, 3)) for x in (q * q.shape[-1] ** -0.5, k, v))
    scores = jax.lax.dot_general(q, k, (((3,), (3,)), ((0, 1), (0, 1))))
    scores = jnp.where(causal(*scores.shape[2:]), scores, -1e10)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return jax.lax.dot_general(weights, v, (((3,), (2,)), ((0, 1), (0, 1))))


def keys_first(q: Any, k: Any, v: Any, batch: Any) -> Any:
    """Scores as [B, H, T, S], the softmax over the first of the two."""
    scores = jnp.einsum("bthd,bshd->bhts", k, q) / 2
    weights = jax.nn.softmax(jnp.where(jnp.swapaxes(causal(S, S), 2, 3), scores, -jnp.inf), axis=2)
    return jnp.einsum("bthd,bhts->bshd", v, weights)


def by_logarithm(q: Any, k: Any, v: Any, batch: Any) -> Any:
    """exp of a log-softmax."""
    scores = jnp.einsum("bshd,bthd->bhst", q, k)
    return jnp.einsum("bhst,bthd->bshd", jnp.exp(jax.nn.log_softmax(scores)), v)


def by_logsumexp(q: Any, k: Any, v: Any, batch: Any) -> Any:
    """exp of scores less their log-sum-exp."""
    scores = jnp.einsum("bshd,bthd->bhst", q, k)
    normaliser = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    return jnp.einsum("bhst,bthd->bshd", jnp.exp(scores - normaliser), v)


def grouped(q: Any, k: Any, v: Any, batch: Any) -> Any:
    """Query heads that share a key head, which is never repeated."""
    q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    scores = jnp.einsum("bsngd,btnd->bngst", q, k)
    scores = jnp.where(causal(q.shape[1], k.shape[1])[None], scores, -1e30)
    result = jnp.einsum("bngst,btnd->bsngd", jax.nn.softmax(scores), v)
    return result.reshape(*result.shape[:2], -1, result.shape[-1])


def one_key_head(q: Any, k: Any, v: Any, batch: Any) -> Any:
    """All query heads share one key head."""
    scores = jnp.einsum("bshd,btd->bhst", q, k[:, :, 0])
    return jnp.einsum("bhst,btd->bshd", jax.nn.softmax(scores), v[:, :, 0])


def repeated(q: Any, k: Any, v: Any, batch: Any) -> Any:
    """Key heads repeated."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    return einsum(causal)(q, k, v, {})


def mapped(q: Any, k: Any, v: Any, batch: Any) -> Any:
    """One head of one row, by vmap."""

    def one(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.where(causal(q.shape[0], k.shape[0])[0, 0], q @ k.T, -1e30)
        return jax.nn.softmax(scores) @ v

    return jax.vmap(jax.vmap(one, in_axes=1, out_axes=1))(q, k, v)


def library(**settings: Any) -> Writing:
    """`jax.nn.dot_product_attention`."""

    def attention(q: Any, k: Any, v: Any, batch: Any) -> Any:
        made = {name: x(batch) if callable(x) else x for name, x in settings.items()}
        return jax.nn.dot_product_attention(q, k, v, **made)

    return attention


def linen_module(q: Any, k: Any, v: Any, batch: Any) -> Any:
    """`nn.MultiHeadDotProductAttention` with made-up weights."""
    x = q.reshape(*q.shape[:2], -1)
    module = nn.MultiHeadDotProductAttention(num_heads=H)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    weights = jax.tree.map(lambda s: jnp.sin(jnp.arange(s.size) * 1.7).reshape(s.shape), shapes)
    return module.apply(weights, x, mask=nn.make_causal_mask(batch["segments"]))


def nnx_module(q: Any, k: Any, v: Any, batch: Any) -> Any:
    """`nnx.MultiHeadAttention`, its weights made of a fixed key."""
    x = q.reshape(*q.shape[:2], -1)
    module = nnx.MultiHeadAttention(H, x.shape[-1], rngs=nnx.Rngs(0), decode=False)
    return module(x, mask=nnx.make_causal_mask(batch["segments"]))


WRITINGS: dict[str, tuple[Writing, int]] = {
    "heads_first": (heads_first, H),
    "keys_first": (keys_first, H),
    "by_logarithm": (by_logarithm, H),
    "by_logsumexp": (by_logsumexp, H),
    "grouped": (grouped, 2),
    "one_key_head": (one_key_head, 1),
    "repeated": (repeated, 2),
    "mapped": (mapped, H),
    "library": (library(is_causal=True), 2),
    "library_window": (library(is_causal=True, local_window_size=(4, 0)), H),
    "library_lengths": (
        library(key_value_seq_lengths=lambda b: 3 + jnp.sum(b["segments"], axis=1)),
        2,
    ),
    "library_bias": (library(bias=lambda b: b["bias"], mask=lambda b: segments(S, S, b)), H),
    "linen_module": (linen_module, H),
    "nnx_module": (nnx_module, H),
}
