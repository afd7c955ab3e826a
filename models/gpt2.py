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
from models.spec import BatchSpec, ModelSpec, Remat, text_batch
from models.transformer import PreNormBlock, causal_mask, run_blocks

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
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table and width of the logits, V."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    def build(self) -> "GPT2":
        """Returns the linen module."""
        return GPT2(self)

    def example_batch(self, batch_size: int, seq_len: int | None = None) -> BatchSpec:
        """Returns `{"tokens": int32[B, S]}`; S is `max_seq_len` where not given."""
        return text_batch(batch_size, seq_len, self.max_seq_len)


class GPT2(nn.Module):
    """The language model: tokens to logits of the next token."""

    config: GPT2Config

    @nn.compact
    def __call__(self, tokens: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps tokens, int32[B, S], to logits, [B, S, V], in the compute dtype.

        Dropout is on where not `deterministic`, and then draws from the stream "dropout".
        """
        cfg = self.config
        seq_len = tokens.shape[1]
        # A lookup past the table would give NaN without a word.
        if seq_len > cfg.max_seq_len:
            raise ValueError(
                f"GPT2: {seq_len} tokens, but max_seq_len={cfg.max_seq_len} positions were "
                f"learned: shorten the sequence, or build with max_seq_len={seq_len}."
            )
        dtype = compute_dtype(cfg.dtype)
        normal = nn.initializers.normal(INIT_STD)
        # 2L branches add to the residual stream: this keeps its variance independent of depth.
        scaled_normal = nn.initializers.normal(INIT_STD / math.sqrt(2 * cfg.num_layers))
        embed = functools.partial(
            nn.Embed, features=cfg.d_model, embedding_init=normal, dtype=dtype
        )

        wte = embed(cfg.padded_vocab_size, name="wte")
        wpe = embed(cfg.max_seq_len, name="wpe")
        x = wte(tokens) + wpe(jnp.arange(seq_len)[None])
        x = nn.Dropout(cfg.dropout_rate)(x, deterministic=deterministic)
        mask = causal_mask(seq_len)
        make_block = functools.partial(
            PreNormBlock,
            num_heads=cfg.num_heads,
            hidden=cfg.mlp_ratio * cfg.d_model,
            activation=functools.partial(nn.gelu, approximate=True),
            dropout_rate=cfg.dropout_rate,
            norm_epsilon=1e-5,
            kernel_init=normal,
            out_kernel_init=scaled_normal,
            dtype=dtype,
        )
        x = run_blocks(
            make_block,
            x,
            mask,
            num_layers=cfg.num_layers,
            prefix="h",
            scan_layers=cfg.scan_layers,
            remat=cfg.remat,
            deterministic=deterministic,
        )
        x = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name="ln_f")(x)
        return wte.attend(x)


def _published(name: str, card: str, d_model: int, num_layers: int, num_heads: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        family="gpt2",
        config=GPT2Config(d_model=d_model, num_layers=num_layers, num_heads=num_heads),
        source=f"Radford et al. 2019; https://huggingface.co/openai-community/{card}",
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
)
