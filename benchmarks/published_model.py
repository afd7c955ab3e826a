"""The decoder of MaxText's published throughput runs, as a sharded training step.

One file of plain JAX with the choices of those runs: layers scanned and rematerialised, parameters
in float32 and computation in bfloat16, rotary attention by the splash kernel that ships with JAX
("SplashAttention" under jax.experimental.pallas.ops.tpu), SwiGLU, lookups as one-hot products,
Adam. Weights are sharded over `fsdp` along the embedding and over `tensor` along heads, hidden
units and vocabulary; activations over `fsdp` along the batch, and over `tensor` along whatever
they have of those, the embedding included.

Shapes: B batch, S positions, D embedding, H heads, K width of a head, F hidden units, V words,
L layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BLOCK = 512  # rows of queries and keys that the kernel works on at a time, forward and backward


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """Sizes of a run.

    Attributes:
      embed: D.
      heads: H, as many key-value heads.
      mlp: F.
      layers: L.
      remat: `full` saves each layer's input only; `minimal` also the results of its products with
        weights.
      seq_len: S.
      vocab: V.
      head_dim: K.
    """

    embed: int
    heads: int
    mlp: int
    layers: int
    remat: str
    seq_len: int = 2048
    vocab: int = 32000
    head_dim: int = 128

    @property
    def num_params(self) -> int:
        """Trained scalars."""
        attention = 4 * self.embed * self.heads * self.head_dim
        layer = attention + 3 * self.embed * self.mlp + 2 * self.embed
        return self.layers * layer + 2 * self.vocab * self.embed + self.embed

    def flops_per_token(self) -> float:
        """Model FLOPs: 6 a parameter, and 12 L S H K for attention, its mask not counted."""
        attention = 12 * self.layers * self.seq_len * self.heads * self.head_dim
        return 6.0 * self.num_params + attention


# For each parameter: its shape by the model's letters, and the mesh axis of each dimension.
_LAYOUT: dict[str, tuple[str, tuple[str | None, ...]]] = {
    "q": ("LDHK", (None, "fsdp", "tensor", None)),
    "k": ("LDHK", (None, "fsdp", "tensor", None)),
    "v": ("LDHK", (None, "fsdp", "tensor", None)),
    "o": ("LHKD", (None, "tensor", None, "fsdp")),
    "gate": ("LDF", (None, "fsdp", "tensor")),
    "up": ("LDF", (None, "fsdp", "tensor")),
    "down": ("LFD", (None, "tensor", "fsdp")),
    "attention_norm": ("LD", (None, "tensor")),
    "mlp_norm": ("LD", (None, "tensor")),
    "embedding": ("VD", ("tensor", "fsdp")),
    "final_norm": ("D", ("tensor",)),
    "head": ("DV", ("fsdp", "tensor")),
}
_STACKED = tuple(name for name, (letters, _) in _LAYOUT.items() if letters[0] == "L")

Params = dict[str, Any]


def param_specs(model: PublishedModel, mesh: Mesh) -> Params:
    """Every parameter as a float32 `ShapeDtypeStruct` with its sharding."""
    sizes = {
        "L": model.layers, "D": model.embed, "H": model.heads, "K": model.head_dim,
        "F": model.mlp, "V": model.vocab,
    }  # fmt: skip
    return {
        name: jax.ShapeDtypeStruct(
            tuple(sizes[letter] for letter in letters),
            jnp.float32,
            sharding=NamedSharding(mesh, P(*axes)),
        )
        for name, (letters, axes) in _LAYOUT.items()
    }


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
    return (wide * inverse).astype(x.dtype) * scale.astype(x.dtype)


def _rotary(x: jax.Array) -> jax.Array:
    """Turn [B, S, H, K] by its positions (arXiv:2104.09864)."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10_000.0 ** (-jnp.arange(half) / half)[None]
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _make_attention(model: PublishedModel, mesh: Mesh) -> Callable[..., jax.Array]:
    """Causal attention on [B, S, H, K], heads over `tensor` and the batch over `fsdp`."""
    heads = model.heads // mesh.shape["tensor"]
    block = min(BLOCK, model.seq_len)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block,
        block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    causal = splash.CausalMask((model.seq_len, model.seq_len))
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([causal] * heads), block_sizes=sizes
    )
    spec = P("fsdp", "tensor", None, None)

    def local(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jax.vmap(kernel)(query, key, value)

    sharded = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        scaled = query * model.head_dim**-0.5
        by_head = [jnp.swapaxes(x, 1, 2) for x in (scaled, key, value)]
        return jnp.swapaxes(sharded(*by_head), 1, 2)

    return attention


def _make_layer(model: PublishedModel, mesh: Mesh) -> Callable[[jax.Array, Params], jax.Array]:
    attention = _make_attention(model, mesh)

    def lay(x: jax.Array, *axes: str | None) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))

    def layer(x: jax.Array, weights: Params) -> jax.Array:
        w = {name: value.astype(jnp.bfloat16) for name, value in weights.items()}
        x = lay(x, "fsdp", None, "tensor")
        normed = lay(_norm(x, weights["attention_norm"]), "fsdp", None, "tensor")
        query, key, value = (
            lay(jnp.einsum("bsd,dhk->bshk", normed, w[name]), "fsdp", None, "tensor", None)
            for name in ("q", "k", "v")
        )
        heads = attention(_rotary(query), _rotary(key), value)
        x = x + lay(jnp.einsum("bshk,hkd->bsd", heads, w["o"]), "fsdp", None, "tensor")
        normed = lay(_norm(x, weights["mlp_norm"]), "fsdp", None, "tensor")
        gate = jnp.einsum("bsd,df->bsf", normed, w["gate"])
        up = jnp.einsum("bsd,df->bsf", normed, w["up"])
        hidden = lay(jax.nn.silu(gate) * up, "fsdp", None, "tensor")
        return lay(x + jnp.einsum("bsf,fd->bsd", hidden, w["down"]), "fsdp", None, "tensor")

    return layer


_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def make_loss(model: PublishedModel, mesh: Mesh) -> Callable[[Params, jax.Array], jax.Array]:
    """(parameters, tokens int32[B, S]) -> mean cross-entropy of the next token."""
    layer = jax.checkpoint(
        _make_layer(model, mesh), policy=_POLICIES[model.remat], prevent_cse=False
    )

    def loss(params: Params, tokens: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(tokens, model.vocab, dtype=jnp.bfloat16)
        x = jnp.einsum("bsv,vd->bsd", one_hot, params["embedding"].astype(jnp.bfloat16))
        stacked = {name: params[name] for name in _STACKED}
        x, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), x, stacked)
        x = _norm(x, params["final_norm"])
        logits = jnp.einsum("bsd,dv->bsv", x, params["head"].astype(jnp.bfloat16))
        spec = NamedSharding(mesh, P("fsdp", None, "tensor"))
        logits = jax.lax.with_sharding_constraint(logits, spec).astype(jnp.float32)
        targets = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), model.vocab, dtype=jnp.float32)
        picked = jnp.sum(logits * targets, axis=-1)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)

    return loss


@dataclasses.dataclass(frozen=True)
class PublishedStep:
    """A training step ready to be compiled.

    Attributes:
      function: (parameters, optimizer state, tokens) -> (parameters, optimizer state, loss).
      specs: its arguments as `ShapeDtypeStruct` with shardings.
      out_shardings: of its results.
    """

    function: Callable[..., Any]
    specs: tuple[Any, ...]
    out_shardings: Any


def make_step(model: PublishedModel, mesh: Mesh, batch_size: int) -> PublishedStep:
    """The step of a run on a mesh with axes `fsdp` and `tensor`."""
    optimizer = optax.adamw(3e-4, b1=0.9, b2=0.95, weight_decay=0.1)
    loss = make_loss(model, mesh)
    params = param_specs(model, mesh)
    shardings = {name: spec.sharding for name, spec in params.items()}
    state = jax.eval_shape(optimizer.init, params)
    state_shardings = jax.tree_util.tree_map_with_path(
        lambda path, leaf: shardings[path[-1].key] if leaf.ndim else NamedSharding(mesh, P()),
        state,
    )
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, state_shardings
    )
    tokens = jax.ShapeDtypeStruct(
        (batch_size, model.seq_len), jnp.int32, sharding=NamedSharding(mesh, P("fsdp"))
    )

    def step(params: Params, state: Any, tokens: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, tokens)
        gradients = jax.lax.with_sharding_constraint(gradients, shardings)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    return PublishedStep(step, (params, state, tokens), (shardings, state_shardings, None))
