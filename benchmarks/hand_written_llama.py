"""The small Llama-style decoder with its shardings written down: fully sharded times tensor.

What an expert writes with plain `jax.jit`, as MaxText lays its decoders out
(https://github.com/AI-Hypercomputer/maxtext): parameters are stored over `fsdp` along the width and
over `tensor` along heads, hidden units and words; each weight is cast to bfloat16 and gathered over
`fsdp` where it is used; the batch is over `fsdp`, and every projection's result is constrained:
rows over `fsdp`, heads, hidden units or words over `tensor`. A layer's activations and gathered
weights are made again in the backward pass, unless that is switched off.

Shapes: B batch, S positions, D width, H heads, K width of one head, F hidden units, V words.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from autoshard.losses import next_token_loss
from models.llama import LlamaConfig, apply_rotary, grouped_attention, rotary_tables

STORED: Mapping[str, P] = {
    "embed": P("tensor", "fsdp"),
    "norm": P(None),
    "head": P("fsdp", "tensor"),
    "attn_norm": P(None),
    "mlp_norm": P(None),
    "q": P("fsdp", "tensor"),
    "k": P("fsdp", "tensor"),
    "v": P("fsdp", "tensor"),
    "o": P("tensor", "fsdp"),
    "gate": P("fsdp", "tensor"),
    "up": P("fsdp", "tensor"),
    "down": P("tensor", "fsdp"),
}


@dataclasses.dataclass(frozen=True)
class HandWritten:
    """The decoder on a mesh.

    Attributes:
      config: sizes; heads of keys and values are those of queries.
      mesh: with axes `fsdp` and `tensor`.
      remat: whether a layer's activations are made again in the backward pass; its gathered weights
        are saved else, too.
      split_heads: whether attention's kernels have dimensions for heads, [D, H, K], as MaxText's;
        else they are those of `models.llama`, [D, H * K]. The compiler lays the heads out better.
    """

    config: LlamaConfig
    mesh: Mesh
    remat: bool = True
    split_heads: bool = False

    def parameters(self) -> dict[str, Any]:
        """Abstract float32 parameters, sharded as they are stored."""
        cfg = self.config
        width, hidden, words = cfg.d_model, cfg.d_ff, cfg.vocab_size
        heads = (cfg.num_heads, cfg.head_dim) if self.split_heads else (width,)
        kernel = (width, *heads)
        layer = {
            "attn_norm": (width,), "mlp_norm": (width,),
            "q": kernel, "k": kernel, "v": kernel, "o": (*heads, width),
            "gate": (width, hidden), "up": (width, hidden), "down": (hidden, width),
        }  # fmt: skip
        around = {"embed": (words, width), "norm": (width,), "head": (width, words)}
        found: dict[str, Any] = {name: self._stored(name, s) for name, s in around.items()}
        layers = range(cfg.num_layers)
        found["layers"] = [{n: self._stored(n, s) for n, s in layer.items()} for _ in layers]
        return found

    def loss(self, params: Mapping[str, Any], tokens: jax.Array) -> jax.Array:
        """Mean next-token loss of int32[B, S]."""
        cfg = self.config
        tables = rotary_tables(jnp.arange(tokens.shape[1]), cfg.head_dim, cfg.rope_theta)
        table = self._gathered(params["embed"], "tensor", None)
        x = self._laid(jnp.take(table, tokens, axis=0), "fsdp", None, None)
        run = jax.checkpoint(self._layer) if self.remat else self._layer
        for layer in params["layers"]:
            x = run(x, layer, *tables)
        x = self._normed(x, params["norm"])
        head = self._gathered(params["head"], None, "tensor")
        logits = self._laid(jnp.einsum("bsd,dv->bsv", x, head), "fsdp", None, "tensor")
        return next_token_loss(logits.astype(jnp.float32), tokens)

    def _layer(self, x: jax.Array, p: Mapping[str, Any], cos: jax.Array, sin: jax.Array) -> Any:
        rows = ("fsdp", None, None)
        y = self._normed(x, p["attn_norm"])
        query, key, value = (self._projected(y, p[name]) for name in "qkv")
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        heads = grouped_attention(query[:, :, :, None], key, value)[:, :, :, 0]
        heads = self._laid(heads, "fsdp", None, "tensor", None)
        x = x + self._laid(self._joined(heads, p["o"]), *rows)
        y = self._normed(x, p["mlp_norm"])
        gate, up = (
            self._laid(
                jnp.einsum("bsd,df->bsf", y, self._gathered(p[name], None, "tensor")),
                "fsdp", None, "tensor",
            )
            for name in ("gate", "up")
        )  # fmt: skip
        hidden = jax.nn.silu(gate) * up
        down = self._gathered(p["down"], "tensor", None)
        return x + self._laid(jnp.einsum("bsf,fd->bsd", hidden, down), *rows)

    def _projected(self, y: jax.Array, weight: jax.Array) -> jax.Array:
        """[B, S, D] to [B, S, H, K]."""
        if self.split_heads:
            kernel = self._gathered(weight, None, "tensor", None)
            return self._laid(
                jnp.einsum("bsd,dhk->bshk", y, kernel), "fsdp", None, "tensor", None
            )  # fmt: skip
        flat = jnp.einsum("bsd,de->bse", y, self._gathered(weight, None, "tensor"))
        flat = self._laid(flat, "fsdp", None, "tensor")
        return flat.reshape(*y.shape[:2], self.config.num_heads, self.config.head_dim)

    def _joined(self, heads: jax.Array, weight: jax.Array) -> jax.Array:
        """[B, S, H, K] to [B, S, D]."""
        if self.split_heads:
            return jnp.einsum("bshk,hkd->bsd", heads, self._gathered(weight, "tensor", None, None))
        flat = heads.reshape(*heads.shape[:2], -1)
        return jnp.einsum("bse,ed->bsd", flat, self._gathered(weight, "tensor", None))

    def _normed(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        square = jnp.mean(jnp.square(y), -1, keepdims=True)
        y = y * jax.lax.rsqrt(square + self.config.norm_epsilon)
        return self._laid((y * scale[None, None]).astype(x.dtype), "fsdp", None, None)

    def _gathered(self, weight: jax.Array, *spec: str | None) -> jax.Array:
        return self._laid(weight.astype(jnp.bfloat16), *spec)

    def _laid(self, x: jax.Array, *spec: str | None) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*spec)))

    def _stored(self, name: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        spec = STORED[name]
        if len(shape) == 3:  # of heads, the first of their two dimensions
            at = 1 + spec.index("tensor")
            spec = P(*spec[:at], None, *spec[at:])
        sharding = NamedSharding(self.mesh, spec)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def lowered_step(written: HandWritten, tokens_shape: tuple[int, int]) -> jax.stages.Lowered:
    """A step of Adam, its state donated, lowered for the devices of the mesh.

    Args:
      written: the decoder.
      tokens_shape: [B, S].
    """
    optimizer = optax.adam(3e-4)
    params = written.parameters()
    replicated = NamedSharding(written.mesh, P())

    def beside(moments: Any) -> Any:
        """State that mirrors the parameters, laid out as they are."""
        return jax.tree.map(
            lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
            moments, params,
        )  # fmt: skip

    moments, *rest = jax.eval_shape(optimizer.init, params)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    mu, nu = beside(moments.mu), beside(moments.nu)
    state = (moments._replace(count=count, mu=mu, nu=nu), *rest)
    rows = NamedSharding(written.mesh, P("fsdp"))
    tokens = jax.ShapeDtypeStruct(tokens_shape, jnp.int32, sharding=rows)

    def step(params: Any, state: Any, tokens: Any) -> Any:
        value, gradients = jax.value_and_grad(written.loss)(params, tokens)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    places = jax.tree.map(lambda x: x.sharding, (params, state))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(*places, None))
    return jitted.lower(params, state, tokens)
