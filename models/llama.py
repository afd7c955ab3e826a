"""Llama 3 in nnx: rotary positions, grouped-query attention, RMSNorm, SwiGLU, no biases.

Llama Team, "The Llama 3 Herd of Models", 2024, arXiv:2407.21783, table 3, and the `config.json` of
the model cards.

Shapes: B batch, S and T positions (of queries and keys), D width, H query heads, N key and value
heads, G = H / N query heads to a key head, K width of one head, F hidden width, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from models.checks import check_divides, check_fields, compute_dtype
from models.kv_cache import (
    Cache,
    LayerCache,
    cache_spec,
    cached_attention,
    empty,
    write,
)
from models.spec import BatchSpec, ModelSpec, NnxBuilder, Remat, text_batch

INIT_STD = 0.02


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama 3; the defaults are those of the 8B release.

    Attributes:
        vocab_size: number of distinct tokens, V.
        max_seq_len: the context of the release. Rotary positions need no table, so it only bounds
            and fills in the length of `example_batch`.
        d_model: width of the residual stream, D.
        num_layers: number of blocks.
        num_heads: query heads, H; divides `d_model`.
        num_kv_heads: key and value heads, N; divides `num_heads`.
        d_ff: hidden width of the MLP, F.
        rope_theta: base of the rotary frequencies.
        norm_epsilon: of every RMSNorm.
        scan_layers: one set of stacked parameters, [layers, ...], and a loop over it: the time to
            compile does not grow with depth.
        remat: what the backward pass computes again: "none", or "full", each block from its input.
        dtype: of the computation; None: of the parameters (made in float32) and inputs.
    """

    vocab_size: int = 128256
    max_seq_len: int = 8192
    d_model: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 8
    d_ff: int = 14336
    rope_theta: float = 500000.0
    norm_epsilon: float = 1e-5
    scan_layers: bool = False
    remat: Remat = "none"
    dtype: str | None = None

    input_key: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        check_fields(self)
        check_divides(self, "d_model", "num_heads")
        check_divides(self, "num_heads", "num_kv_heads")
        if self.head_dim % 2:
            raise ValueError(
                f"LlamaConfig: d_model / num_heads = {self.head_dim} is odd, but rotary embedding "
                "turns pairs of features: choose another num_heads."
            )

    @property
    def head_dim(self) -> int:
        """Width of one head, K."""
        return self.d_model // self.num_heads

    def build(self) -> NnxBuilder:
        """Returns the function from `rngs` to the nnx module."""
        return functools.partial(Llama, self)

    def example_batch(self, batch_size: int, seq_len: int | None = None) -> BatchSpec:
        """Returns `{"tokens": int32[B, S]}`; S is `max_seq_len` where not given."""
        return text_batch(batch_size, seq_len, self.max_seq_len)

    def cache_spec(self, batch_size: int, capacity: int) -> Cache:
        """Returns the shapes of the cache of `Llama.decode`, as in `models.kv_cache.cache_spec`."""
        return cache_spec(self, batch_size, capacity, self.num_kv_heads)


def rotary_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines, both float32[S, K/2], of every position's angles.

    Su et al., 2021, arXiv:2104.09864: pair i of a head turns by position * theta^(-2i/K).

    Args:
        positions: int32[S].
        head_dim: K.
        theta: base of the frequencies.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions.astype(jnp.float32)[:, None] * (theta**-exponents)[None, :]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the heads x, [B, S, H, K], by the angles of their positions, [S, K/2] each.

    Feature i is paired with feature i + K/2, as in the published weights' Hugging Face layout.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.astype(x.dtype)


def grouped_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Causal attention in which G query heads share a key head, which is never repeated.

    Ainslie et al., 2023, arXiv:2305.13245.

    Args:
        query: [B, S, N, G, K].
        key: [B, S, N, K].
        value: [B, S, N, K].

    Returns:
        [B, S, N, G, K].
    """
    # A softmax in half precision loses the small weights of long rows.
    scores = jnp.einsum("bsngk,btnk->bngst", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    positions = jnp.arange(query.shape[1])
    visible = positions[None, None, None, :, None] >= positions[None, None, None, None, :]
    scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bngst,btnk->bsngk", weights, value)


def _linear(
    config: LlamaConfig, fan_in: int, fan_out: int, rngs: nnx.Rngs, init: Initializer | None = None
) -> nnx.Linear:
    return nnx.Linear(
        fan_in,
        fan_out,
        use_bias=False,
        kernel_init=init or nnx.initializers.normal(INIT_STD),
        dtype=compute_dtype(config.dtype),
        rngs=rngs,
    )


def _residual_init(config: LlamaConfig) -> Initializer:
    # 2L branches add to the residual stream: this keeps its variance independent of depth.
    return nnx.initializers.normal(INIT_STD / math.sqrt(2 * config.num_layers))


def _norm(config: LlamaConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        config.d_model, epsilon=config.norm_epsilon, dtype=compute_dtype(config.dtype), rngs=rngs
    )


class LlamaAttention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        width, kv_width = config.d_model, config.num_kv_heads * config.head_dim
        self.q_proj = _linear(config, width, width, rngs)
        self.k_proj = _linear(config, width, kv_width, rngs)
        self.v_proj = _linear(config, width, kv_width, rngs)
        self.o_proj = _linear(config, width, width, rngs, _residual_init(config))

    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], given the rotary tables, [S, K/2] each."""
        query, key, value = self._project(x, cos, sin)
        return self._output(grouped_attention(query, key, value))

    def prefill(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, LayerCache]:
        """As `__call__`, and the keys and values of all positions."""
        query, key, value = self._project(x, cos, sin)
        attended = self._output(grouped_attention(query, key, value))
        return attended, {"key": key, "value": value}

    def decode(
        self, x: jax.Array, past: LayerCache, position: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        """Maps the token at `position`, [B, 1, D], to [B, 1, D] and its own key and value."""
        query, key, value = self._project(x, cos, sin)
        new = {"key": key, "value": value}
        return self._output(cached_attention(query[:, 0], new, past, position)[:, None]), new

    def _project(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the query, [B, S, N, G, K], the key and the value, both [B, S, N, K]."""
        cfg = self.config
        batch, seq_len, _ = x.shape
        query = self.q_proj(x).reshape(batch, seq_len, cfg.num_heads, cfg.head_dim)
        key = self.k_proj(x).reshape(batch, seq_len, cfg.num_kv_heads, cfg.head_dim)
        value = self.v_proj(x).reshape(batch, seq_len, cfg.num_kv_heads, cfg.head_dim)
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        query = query.reshape(batch, seq_len, cfg.num_kv_heads, -1, cfg.head_dim)
        return query, key, value

    def _output(self, heads: jax.Array) -> jax.Array:
        """Maps [B, S, N, G, K] to [B, S, D]."""
        return self.o_proj(heads.reshape(*heads.shape[:2], self.config.d_model))


class LlamaMLP(nnx.Module):
    """SwiGLU (Shazeer, 2020, arXiv:2002.05202): D -> 2 x F -> D."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.gate_proj = _linear(config, config.d_model, config.d_ff, rngs)
        self.up_proj = _linear(config, config.d_model, config.d_ff, rngs)
        self.down_proj = _linear(config, config.d_ff, config.d_model, rngs, _residual_init(config))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]."""
        return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaBlock(nnx.Module):
    """One pre-norm layer: attention, then the MLP, each added to its input."""

    mlp_type: ClassVar[type[Any]] = LlamaMLP

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.attn_norm = _norm(config, rngs)
        self.attn = LlamaAttention(config, rngs)
        self.mlp_norm = _norm(config, rngs)
        self.mlp: Any = self.mlp_type(config, rngs)

    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], given the rotary tables, [S, K/2] each."""
        x = x + self.attn(self.attn_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))

    def prefill(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, LayerCache]:
        """As `__call__`, and the keys and values of all positions."""
        attended, new = self.attn.prefill(self.attn_norm(x), cos, sin)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), new

    def decode(
        self, x: jax.Array, past: LayerCache, position: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        """Maps the token at `position`, [B, 1, D], to [B, 1, D] and its own key and value."""
        attended, new = self.attn.decode(self.attn_norm(x), past, position, cos, sin)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), new


def _listed(
    block_type: type[LlamaBlock], config: LlamaConfig, rngs: nnx.Rngs
) -> nnx.List[LlamaBlock]:
    return nnx.List([block_type(config, rngs) for _ in range(config.num_layers)])


def _stacked(block_type: type[LlamaBlock], config: LlamaConfig, rngs: nnx.Rngs) -> LlamaBlock:
    """All blocks as one, each of its parameters with a leading dimension of layers."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: nnx.Rngs) -> LlamaBlock:
        return block_type(config, rngs)

    block: LlamaBlock = make(rngs)
    return block


def _run_block(x: jax.Array, block: LlamaBlock, cos: jax.Array, sin: jax.Array) -> jax.Array:
    return block(x, cos, sin)


def _block_runner(config: LlamaConfig) -> Callable[..., jax.Array]:
    if config.remat == "none":
        return _run_block
    # A loop's backward pass is a loop of its own: no common subexpression can undo the remat.
    # Blocks change no variable (graph=False), so parameters are not handed back as results.
    runner: Callable[..., jax.Array] = nnx.remat(
        _run_block, prevent_cse=not config.scan_layers, graph=False
    )
    return runner


def _run_cached(
    layers: LlamaBlock | nnx.List[LlamaBlock],
    step: Callable[..., tuple[jax.Array, LayerCache]],
    x: jax.Array,
    cache: Cache | None,
    *shared: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Runs all layers by `step`: (x, layer, its cache, *shared) -> (x, new keys and values).

    Without a cache, that of each layer is None.
    """
    if isinstance(layers, LlamaBlock):
        axes = (nnx.Carry, 0, 0, *(None for _ in shared))
        loop = nnx.scan(step, in_axes=axes, out_axes=(nnx.Carry, 0), graph=False)
        result: tuple[jax.Array, Cache] = loop(x, layers, cache, *shared)
        return result
    gave = []
    parts = (None,) * len(layers) if cache is None else cache
    for layer, past in zip(layers, parts, strict=True):
        x, new = step(x, layer, past, *shared)
        gave.append(new)
    return x, tuple(gave)


class Llama(nnx.Module):
    """The language model: tokens to logits of the next token."""

    block_type: ClassVar[type[LlamaBlock]] = LlamaBlock

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed = nnx.Embed(
            config.vocab_size,
            config.d_model,
            embedding_init=nnx.initializers.normal(INIT_STD),
            dtype=compute_dtype(config.dtype),
            rngs=rngs,
        )
        # Left out, nnx.Embed fixes the dtype that the table was made in, whatever it is cast to.
        self.embed.dtype = compute_dtype(config.dtype)
        make = _stacked if config.scan_layers else _listed
        self.layers: Any = make(self.block_type, config, rngs)
        self.norm = _norm(config, rngs)
        self.lm_head = _linear(config, config.d_model, config.vocab_size, rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens, int32[B, S], to logits, [B, S, V], in the compute dtype."""
        cfg = self.config
        cos, sin = self._rotary(jnp.arange(tokens.shape[1]))
        run = _block_runner(cfg)
        x = self.embed(tokens)
        if isinstance(self.layers, LlamaBlock):
            axes = (nnx.Carry, 0, None, None)
            x = nnx.scan(run, in_axes=axes, out_axes=nnx.Carry, graph=False)(
                x, self.layers, cos, sin
            )
        else:
            for layer in self.layers:
                x = run(x, layer, cos, sin)
        return self.lm_head(self.norm(x))

    def prefill(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads a prompt: tokens, int32[B, S], into the first S places of the cache.

        Returns:
            (logits of the last position, [B, V]; the cache).
        """

        def step(
            x: jax.Array, block: LlamaBlock, _: None, cos: jax.Array, sin: jax.Array
        ) -> tuple[jax.Array, LayerCache]:
            return block.prefill(x, cos, sin)

        cos, sin = self._rotary(jnp.arange(tokens.shape[1]))
        x, new = _run_cached(self.layers, step, self.embed(tokens), None, cos, sin)
        logits = self.lm_head(self.norm(x[:, -1:]))
        return logits[:, 0], write(cache, new, 0)

    def decode(
        self, token: jax.Array, position: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Reads one more token a sequence, int32[B], at `position`, int32[], and caches it there.

        Returns:
            (logits of the token after it, [B, V]; the cache).
        """

        def step(
            x: jax.Array, block: LlamaBlock, past: LayerCache, *shared: jax.Array
        ) -> tuple[jax.Array, LayerCache]:
            return block.decode(x, past, *shared)

        cos, sin = self._rotary(jnp.reshape(position, (1,)))
        x = self.embed(token[:, None])
        x, new = _run_cached(self.layers, step, x, cache, position, cos, sin)
        return self.lm_head(self.norm(x))[:, 0], write(cache, new, position)

    def init_cache(self, batch_size: int, capacity: int) -> Cache:
        """Returns an empty cache of `capacity` positions; reads no parameters."""
        return empty(self.config.cache_spec(batch_size, capacity))

    def _rotary(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return rotary_tables(positions, self.config.head_dim, self.config.rope_theta)


SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="llama3_tiny",
        family="llama",
        config=LlamaConfig(
            vocab_size=256,
            max_seq_len=128,
            d_model=64,
            num_layers=2,
            num_heads=8,
            num_kv_heads=4,
            d_ff=160,
        ),
        source="unpublished: Llama 3 over bytes, sized for tests; all but 4 key heads divide by 8",
    ),
    ModelSpec(
        name="llama3_8b",
        family="llama",
        config=LlamaConfig(scan_layers=True, remat="full"),
        source="arXiv:2407.21783, table 3; https://huggingface.co/meta-llama/Meta-Llama-3-8B",
    ),
    ModelSpec(
        name="llama3_70b",
        family="llama",
        config=LlamaConfig(
            d_model=8192, num_layers=80, num_heads=64, d_ff=28672, scan_layers=True, remat="full"
        ),
        source="arXiv:2407.21783, table 3; https://huggingface.co/meta-llama/Meta-Llama-3-70B",
    ),
    ModelSpec(
        name="maxtext_32b",
        family="llama",
        config=LlamaConfig(
            vocab_size=32000,
            max_seq_len=2048,
            d_model=8192,
            num_layers=32,
            num_heads=64,
            num_kv_heads=64,
            d_ff=28672,
            rope_theta=1e4,
            norm_epsilon=1e-6,
            scan_layers=True,
            remat="full",
        ),
        source="the 32B of MaxText's v5e and v5p configurations, 2024, "
        "https://github.com/AI-Hypercomputer/maxtext; benchmarks/published_throughput.csv",
    ),
)
