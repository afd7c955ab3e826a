"""GPT-2 in linen: learned positions, pre-norm blocks, biases everywhere, a tied output embedding.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; widths and depths of
the four releases as in the `config.json` of their model cards.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from models.checks import check_divides, check_fields, compute_dtype
from models.kv_cache import Cache, LayerCache, cache_spec, empty, write
from models.linen_layers import make_blocks, run_blocks
from models.spec import BatchSpec, ModelSpec, Remat, text_batch
from models.transformer import PreNormBlock, causal_mask

INIT_STD = 0.02


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Sizes of a GPT-2; the defaults are those of the smallest release.

    Attributes:
        vocab_size: number of distinct tokens.
        max_seq_len: number of learned positions.
        d_model: width of the residual stream, D.
        num_layers: number of blocks.
        num_heads: attention heads, H; divides `d_model`.
        mlp_ratio: hidden width of the MLP over `d_model`.
        dropout_rate: of embeddings, attention weights and residual branches.
        pad_vocab_to: the embedding table, and so the logits, are widened to a multiple of this,
            that the vocabulary may be cut evenly (50257 is 29 * 1733).
        scan_layers: one set of stacked parameters, [layers, ...], and a loop over it: the time to
            compile does not grow with depth.
        remat: what the backward pass computes again: "none", or "full", each block from its input.
        dtype: of the computation; None: of the parameters (made in float32) and inputs.
    """

    vocab_size: int = 50257
    max_seq_len: int = 1024
    d_model: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    dropout_rate: float = 0.1
    pad_vocab_to: int = 1
    scan_layers: bool = False
    remat: Remat = "none"
    dtype: str | None = None

    input_key: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        check_fields(self)
        check_divides(self, "d_model", "num_heads")

    @property
    def head_dim(self) -> int:
        """Width of one head, K."""
        return self.d_model // self.num_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table and width of the logits, V."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    def build(self) -> "GPT2":
        """Returns the linen module."""
        return GPT2(self)

    def example_batch(self, batch_size: int, seq_len: int | None = None) -> BatchSpec:
        """Returns `{"tokens": int32[B, S]}`; S is `max_seq_len` where not given."""
        return text_batch(batch_size, seq_len, self.max_seq_len)

    def cache_spec(self, batch_size: int, capacity: int) -> Cache:
        """Returns the shapes of the cache of `GPT2.decode`, as in `models.kv_cache.cache_spec`."""
        return cache_spec(self, batch_size, capacity, self.num_heads)


class GPT2(nn.Module):
    """The language model: tokens to logits of the next token."""

    config: GPT2Config

    def setup(self) -> None:
        cfg = self.config
        dtype = compute_dtype(cfg.dtype)
        normal = nn.initializers.normal(INIT_STD)
        # 2L branches add to the residual stream: this keeps its variance independent of depth.
        scaled_normal = nn.initializers.normal(INIT_STD / math.sqrt(2 * cfg.num_layers))
        embed = functools.partial(
            nn.Embed, features=cfg.d_model, embedding_init=normal, dtype=dtype
        )
        make_block = functools.partial(
            PreNormBlock,
            d_model=cfg.d_model,
            num_heads=cfg.num_heads,
            hidden=cfg.mlp_ratio * cfg.d_model,
            activation=functools.partial(nn.gelu, approximate=True),
            dropout_rate=cfg.dropout_rate,
            norm_epsilon=1e-5,
            kernel_init=normal,
            out_kernel_init=scaled_normal,
            dtype=dtype,
        )
        self.wte = embed(cfg.padded_vocab_size)
        self.wpe = embed(cfg.max_seq_len)
        self.dropout = nn.Dropout(cfg.dropout_rate)
        self.h = make_blocks(
            make_block, "h", num_layers=cfg.num_layers, scan_layers=cfg.scan_layers
        )
        self.ln_f = nn.LayerNorm(epsilon=1e-5, dtype=dtype)

    def __call__(self, tokens: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps tokens, int32[B, S], to logits, [B, S, V], in the compute dtype.

        Dropout is on where not `deterministic`, and then draws from the stream "dropout".
        """
        cfg = self.config
        x = self.dropout(self._embed(tokens), deterministic=deterministic)
        mask = causal_mask(tokens.shape[1])

        def step(block: PreNormBlock, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x, mask, deterministic=deterministic), None

        x, _ = run_blocks(self.h, step, x, num_layers=cfg.num_layers, remat=cfg.remat)
        return self._logits(x)

    def prefill(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads a prompt: tokens, int32[B, S], into the first S places of the cache.

        Returns:
            (logits of the last position, [B, V]; the cache).
        """
        mask = causal_mask(tokens.shape[1])

        def step(block: PreNormBlock, x: jax.Array, _: None) -> tuple[jax.Array, LayerCache]:
            return block.prefill(x, mask)

        x = self._embed(tokens)
        x, new = run_blocks(self.h, step, x, num_layers=self.config.num_layers)
        return self._logits(x[:, -1:])[:, 0], write(cache, new, 0)

    def decode(
        self, token: jax.Array, position: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Reads one more token a sequence, int32[B], at `position`, int32[], and caches it there.

        Returns:
            (logits of the token after it, [B, V]; the cache).
        """

        def step(
            block: PreNormBlock, x: jax.Array, past: LayerCache
        ) -> tuple[jax.Array, LayerCache]:
            return block.decode(x, past, position)

        x = self.wte(token[:, None]) + self.wpe(jnp.reshape(position, (1, 1)))
        x, new = run_blocks(self.h, step, x, cache, num_layers=self.config.num_layers)
        return self._logits(x)[:, 0], write(cache, new, position)

    @nn.nowrap
    def init_cache(self, batch_size: int, capacity: int) -> Cache:
        """Returns an empty cache of `capacity` positions; needs no parameters."""
        return empty(self.config.cache_spec(batch_size, capacity))

    @nn.nowrap
    def _embed(self, tokens: jax.Array) -> jax.Array:
        seq_len, positions = tokens.shape[1], self.config.max_seq_len
        # A lookup past the table would give NaN without a word.
        if seq_len > positions:
            raise ValueError(
                f"GPT2: {seq_len} tokens, but max_seq_len={positions} positions were "
                f"learned: shorten the sequence, or build with max_seq_len={seq_len}."
            )
        embedded: jax.Array = self.wte(tokens) + self.wpe(jnp.arange(seq_len)[None])
        return embedded

    @nn.nowrap
    def _logits(self, x: jax.Array) -> jax.Array:
        logits: jax.Array = self.wte.attend(self.ln_f(x))
        return logits


def _published(name: str, card: str, d_model: int, num_layers: int, num_heads: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        family="gpt2",
        config=GPT2Config(d_model=d_model, num_layers=num_layers, num_heads=num_heads),
        source=f"Radford et al. 2019; https://huggingface.co/openai-community/{card}",
    )


# Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
# Megatron-LM", 2021, section 5 and the last row of table 1.
_TRILLION = GPT2Config(
    vocab_size=51200,
    max_seq_len=2048,
    d_model=25600,
    num_layers=128,
    num_heads=160,
    scan_layers=True,
    remat="full",
)

SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="gpt2_tiny",
        family="gpt2",
        config=GPT2Config(
            vocab_size=256,
            max_seq_len=128,
            d_model=128,
            num_layers=4,
            num_heads=8,
            dropout_rate=0.0,
        ),
        source="unpublished: GPT-2 over bytes, sized for a laptop, every dimension a multiple of 8",
    ),
    _published("gpt2_small", "gpt2", d_model=768, num_layers=12, num_heads=12),
    _published("gpt2_medium", "gpt2-medium", d_model=1024, num_layers=24, num_heads=16),
    _published("gpt2_large", "gpt2-large", d_model=1280, num_layers=36, num_heads=20),
    _published("gpt2_xl", "gpt2-xl", d_model=1600, num_layers=48, num_heads=25),
    ModelSpec(
        name="dense_1t",
        family="gpt2",
        config=_TRILLION,
        source="arXiv:2104.04473, table 1, the last row: 1008.0 billion parameters",
    ),
)
