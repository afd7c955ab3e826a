"""T5 1.1 in linen: encoder and decoder, relative position biases, gated GELU, no other biases.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
2019, arXiv:1910.10683, section 2.1; Shazeer, "GLU Variants Improve Transformer", 2020,
arXiv:2002.05202; sizes of version 1.1 as in the `config.json` of its model cards. Version 1.1 was
trained without dropout, and so is this.

    tokens ---------> embed -> L x (self-attention, MLP) -> norm ---------+
                                                                          v
    decoder_tokens -> embed -> L x (causal self-attention, attention over that, MLP) -> norm -> head

Shapes: B batch, S positions of the input, T of the output (as queries and keys, Q and M), D width,
H heads, K width of one head, F hidden width, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from models.checks import check_fields, compute_dtype
from models.spec import BatchSpec, ModelSpec, Remat, text_pair_batch


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 1.1; the defaults are those of the large release.

    Attributes:
        vocab_size: rows of the embedding and width of the logits, V.
        max_seq_len: positions of the input that `example_batch` fills in; positions are relative.
        d_model: width of the residual streams, D.
        num_layers: blocks of the encoder, and of the decoder.
        num_heads: attention heads, H; their width need not make up `d_model`.
        head_dim: width of one head, K.
        d_ff: hidden width of the MLP, F.
        relative_buckets: distances that the position biases tell apart; even.
        relative_max_distance: from here on all distances are one.
        norm_epsilon: of every RMSNorm.
        scan_layers: one set of stacked parameters, [layers, ...], and a loop over it, for each of
            encoder and decoder.
        remat: what the backward pass computes again: "none", or "full", each block from its input.
        dtype: of the computation; None: of the parameters (made in float32) and inputs.
    """

    vocab_size: int = 32128
    max_seq_len: int = 512
    d_model: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    head_dim: int = 64
    d_ff: int = 2816
    relative_buckets: int = 32
    relative_max_distance: int = 128
    norm_epsilon: float = 1e-6
    scan_layers: bool = False
    remat: Remat = "none"
    dtype: str | None = None

    input_key: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.relative_buckets % 4 or self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"T5Config: relative_buckets={self.relative_buckets} must be a multiple of 4, and "
                f"relative_max_distance={self.relative_max_distance} more than half of it."
            )

    def build(self) -> "T5":
        """Returns the linen module."""
        return T5(self)

    def example_batch(self, batch_size: int, seq_len: int | None = None) -> BatchSpec:
        """Returns `tokens`, int32[B, S], `decoder_tokens` and `targets`, both int32[B, S / 4]."""
        return text_pair_batch(batch_size, seq_len, self.max_seq_len)


def relative_buckets(
    distance: jax.Array, num_buckets: int, max_distance: int, *, both_ways: bool
) -> jax.Array:
    """The bucket of each distance: one each for short ones, then ever wider, logarithmic ones.

    Raffel et al., 2019, section 2.1, and the appendix of its code release.

    Args:
        distance: int32[...], position of the key less that of the query.
        num_buckets: how many there are.
        max_distance: from here on all distances share the last one.
        both_ways: half of the buckets are for keys ahead; otherwise those count as distance 0.
    """
    bucket = jnp.zeros_like(distance)
    if both_ways:
        num_buckets //= 2
        bucket = bucket + num_buckets * (distance > 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    share = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    wide = exact + (share * (num_buckets - exact)).astype(jnp.int32)
    return bucket + jnp.where(distance < exact, distance, jnp.minimum(wide, num_buckets - 1))


class PositionBias(nn.Module):
    """A learned addition to the attention scores, by distance; one for all layers of a stack."""

    config: T5Config
    both_ways: bool

    @nn.compact
    def __call__(self, seq_len: int) -> jax.Array:
        """Returns float32[1, H, Q, M] for `seq_len` queries and keys; causal if not both ways."""
        cfg = self.config
        table = self.param(
            "embedding",
            nn.initializers.normal(cfg.d_model**-0.5),
            (cfg.relative_buckets, cfg.num_heads),
        )
        at = jnp.arange(seq_len)
        distance = at[None, :] - at[:, None]
        buckets = relative_buckets(
            distance, cfg.relative_buckets, cfg.relative_max_distance, both_ways=self.both_ways
        )
        bias = jnp.transpose(table[buckets].astype(jnp.float32), (2, 0, 1))[None]
        if self.both_ways:
            return bias
        return jnp.where((distance <= 0)[None, None], bias, jnp.finfo(jnp.float32).min)


class Attention(nn.Module):
    """Multi-head attention without biases or a scale, which the initialisation makes up for."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Maps queries [B, Q, D] over `memory`, [B, M, D], to [B, Q, D].

        `bias` is added to the scores and broadcasts to [B, H, Q, M].
        """
        cfg = self.config
        dtype = compute_dtype(cfg.dtype)
        width, inner = cfg.d_model, cfg.num_heads * cfg.head_dim
        project = functools.partial(
            nn.DenseGeneral, (cfg.num_heads, cfg.head_dim), use_bias=False, dtype=dtype
        )
        normal = nn.initializers.normal
        query = project(kernel_init=normal((width * cfg.head_dim) ** -0.5), name="query")(x)
        key = project(kernel_init=normal(width**-0.5), name="key")(memory)
        value = project(kernel_init=normal(width**-0.5), name="value")(memory)
        # A softmax in half precision loses the small weights of long rows.
        scores = jnp.einsum("bqhk,bmhk->bhqm", query, key, preferred_element_type=jnp.float32)
        if bias is not None:
            scores = scores + bias
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        heads = jnp.einsum("bhqm,bmhk->bqhk", weights, value)
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            use_bias=False,
            kernel_init=normal(inner**-0.5),
            dtype=dtype,
            name="out",
        )(heads)


class GatedMLP(nn.Module):
    """GELU-gated: D -> 2 x F -> D."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]."""
        cfg = self.config
        dense = functools.partial(nn.Dense, use_bias=False, dtype=compute_dtype(cfg.dtype))
        up_init = nn.initializers.normal(cfg.d_model**-0.5)
        gate = dense(cfg.d_ff, kernel_init=up_init, name="gate")(x)
        up = dense(cfg.d_ff, kernel_init=up_init, name="up")(x)
        down_init = nn.initializers.normal(cfg.d_ff**-0.5)
        return dense(cfg.d_model, kernel_init=down_init, name="down")(nn.gelu(gate) * up)


def _norm(config: T5Config, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=config.norm_epsilon, dtype=compute_dtype(config.dtype), name=name)


class EncoderBlock(nn.Module):
    """One pre-norm layer: self-attention, then the MLP, each added to its input."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]; `bias` is [1, H, S, S]."""
        cfg = self.config
        normed = _norm(cfg, "norm_1")(x)
        x = x + Attention(cfg, name="attn")(normed, normed, bias)
        return x + GatedMLP(cfg, name="mlp")(_norm(cfg, "norm_2")(x))


class DecoderBlock(nn.Module):
    """One pre-norm layer: self-attention, cross-attention, MLP, each added to its input."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, memory: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; `bias` is [1, H, T, T], `memory` [B, S, D]."""
        cfg = self.config
        normed = _norm(cfg, "norm_1")(x)
        x = x + Attention(cfg, name="attn")(normed, normed, bias)
        x = x + Attention(cfg, name="cross")(_norm(cfg, "norm_2")(x), memory, None)
        return x + GatedMLP(cfg, name="mlp")(_norm(cfg, "norm_3")(x))


def _run_stack(
    config: T5Config, make_block: Callable[..., Any], prefix: str, x: jax.Array, *shared: jax.Array
) -> jax.Array:
    """Maps [B, S, D] to [B, S, D] by all blocks of a stack; called from a compact method.

    Blocks are called `<prefix>_0` and so on, or `prefix` where they are one stack; each also gets
    the `shared` arrays.
    """

    def run(block: Any, x: jax.Array, *shared: jax.Array) -> Any:
        return block(x, *shared)

    # A loop's backward pass is a loop of its own: no common subexpression can undo the remat.
    again = nn.remat(run, prevent_cse=not config.scan_layers) if config.remat == "full" else run

    def scanned(block: Any, x: jax.Array, *shared: jax.Array) -> tuple[jax.Array, None]:
        return again(block, x, *shared), None

    if not config.scan_layers:
        for layer in range(config.num_layers):
            x = again(make_block(config, name=f"{prefix}_{layer}"), x, *shared)
        return x
    loop = nn.scan(
        scanned,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=config.num_layers,
    )
    x, _ = loop(make_block(config, name=prefix), x, *shared)
    return x


class T5(nn.Module):
    """The text-to-text model: an input and the output so far, to logits of the next token."""

    config: T5Config

    @nn.compact
    def __call__(self, tokens: jax.Array, decoder_tokens: jax.Array) -> jax.Array:
        """Maps int32[B, S] and int32[B, T] to logits, [B, T, V], in the compute dtype.

        `decoder_tokens` is the output shifted right by one: position i sees it up to i, and the
        whole input.
        """
        cfg = self.config
        dtype: DTypeLike | None = compute_dtype(cfg.dtype)
        embed = nn.Embed(
            cfg.vocab_size,
            cfg.d_model,
            embedding_init=nn.initializers.normal(1.0),
            dtype=dtype,
            name="embed",
        )
        bias = PositionBias(cfg, both_ways=True, name="encoder_bias")(tokens.shape[1])
        memory = _run_stack(cfg, EncoderBlock, "encoder", embed(tokens), bias)
        memory = _norm(cfg, "encoder_norm")(memory)

        bias = PositionBias(cfg, both_ways=False, name="decoder_bias")(decoder_tokens.shape[1])
        x = _run_stack(cfg, DecoderBlock, "decoder", embed(decoder_tokens), bias, memory)
        return nn.Dense(
            cfg.vocab_size,
            use_bias=False,
            kernel_init=nn.initializers.normal(cfg.d_model**-0.5),
            dtype=dtype,
            name="lm_head",
        )(_norm(cfg, "decoder_norm")(x))


SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="t5_tiny",
        family="t5",
        config=T5Config(
            vocab_size=256,
            max_seq_len=64,
            d_model=64,
            num_layers=2,
            num_heads=8,
            head_dim=8,
            d_ff=160,
            relative_buckets=8,
            relative_max_distance=16,
        ),
        source="unpublished: T5 1.1 over bytes, sized for tests; every dimension divides by 8",
    ),
    ModelSpec(
        name="t5_v1_1_large",
        family="t5",
        config=T5Config(scan_layers=True, remat="full"),
        source="arXiv:1910.10683; https://huggingface.co/google/t5-v1_1-large",
    ),
)
