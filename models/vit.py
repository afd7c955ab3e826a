"""Vision Transformer in linen: patches by a convolution, learned positions, pre-norm blocks.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, arXiv:2010.11929. Pooling is the mean by
default (Beyer et al., 2022, arXiv:2205.01580, find it no worse): the class token of the first paper
makes the sequence one longer than the patches, a length that hardly ever divides by a mesh axis.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from models.checks import check_divides, check_fields, compute_dtype
from models.linen_layers import make_blocks, run_blocks
from models.spec import BatchSpec, ModelSpec, Remat, labelled_batch
from models.transformer import PreNormBlock

Pooling = Literal["mean", "class_token"]


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a Vision Transformer; the defaults are those of ViT-L/16, with mean pooling.

    Attributes:
        image_size: height and width of an image.
        channels: of an image.
        patch_size: height and width of a patch; divides `image_size`.
        d_model: width of the residual stream, D.
        num_layers: number of blocks.
        num_heads: attention heads; divides `d_model`.
        d_ff: hidden width of the MLP.
        num_classes: width of the output.
        pooling: how the sequence becomes one vector.
        dropout_rate: of embeddings, attention weights and residual branches.
        scan_layers: one set of stacked parameters, [layers, ...], and a loop over it: the time to
            compile does not grow with depth.
        remat: what the backward pass computes again: "none", or "full", each block from its input.
        dtype: of the computation; None: of the parameters (made in float32) and inputs.
    """

    image_size: int = 224
    channels: int = 3
    patch_size: int = 16
    d_model: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    d_ff: int = 4096
    num_classes: int = 1000
    pooling: Pooling = "mean"
    dropout_rate: float = 0.0
    scan_layers: bool = False
    remat: Remat = "none"
    dtype: str | None = None

    input_key: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        check_fields(self)
        check_divides(self, "image_size", "patch_size")
        check_divides(self, "d_model", "num_heads")

    @property
    def num_patches(self) -> int:
        """Length of the sequence, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    def build(self) -> "ViT":
        """Returns the linen module."""
        return ViT(self)

    def example_batch(self, batch_size: int, seq_len: int | None = None) -> BatchSpec:
        """Returns `{"image": float32[B, H, W, C], "label": int32[B]}`; `seq_len` is refused."""
        shape = (self.image_size, self.image_size, self.channels)
        return labelled_batch("image", batch_size, shape, seq_len)


class ViT(nn.Module):
    """The classifier: images to logits."""

    config: ViTConfig

    @nn.compact
    def __call__(self, image: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps images, [B, H, W, C], to logits, [B, num_classes].

        Dropout is on where not `deterministic`, and then draws from the stream "dropout".
        """
        cfg = self.config
        dtype = compute_dtype(cfg.dtype)
        xavier = nn.initializers.xavier_uniform()

        x = nn.Conv(
            cfg.d_model,
            (cfg.patch_size, cfg.patch_size),
            strides=(cfg.patch_size, cfg.patch_size),
            padding="VALID",
            dtype=dtype,
            name="patches",
        )(image)
        x = x.reshape(x.shape[0], cfg.num_patches, cfg.d_model)
        if cfg.pooling == "class_token":
            token = self.param("class_token", nn.initializers.zeros, (1, 1, cfg.d_model))
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, cfg.d_model))
            x = jnp.concatenate((token, x), axis=1)
        positions = self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = x + positions.astype(x.dtype)
        x = nn.Dropout(cfg.dropout_rate)(x, deterministic=deterministic)

        make_block = functools.partial(
            PreNormBlock,
            d_model=cfg.d_model,
            num_heads=cfg.num_heads,
            hidden=cfg.d_ff,
            activation=functools.partial(nn.gelu, approximate=False),
            dropout_rate=cfg.dropout_rate,
            norm_epsilon=1e-6,
            kernel_init=xavier,
            out_kernel_init=xavier,
            dtype=dtype,
        )
        blocks = make_blocks(
            make_block, "block", num_layers=cfg.num_layers, scan_layers=cfg.scan_layers
        )

        def step(block: PreNormBlock, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x, deterministic=deterministic), None

        x, _ = run_blocks(blocks, step, x, num_layers=cfg.num_layers, remat=cfg.remat)
        x = nn.LayerNorm(epsilon=1e-6, dtype=dtype, name="norm")(x)
        x = x[:, 0] if cfg.pooling == "class_token" else x.mean(axis=1)
        # Not the paper's zeros: with those no gradient reaches the body in the first step.
        head_init = nn.initializers.normal(0.02)
        return nn.Dense(cfg.num_classes, kernel_init=head_init, dtype=dtype, name="head")(x)


SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="vit_tiny",
        family="vit",
        config=ViTConfig(
            image_size=32,
            patch_size=4,
            d_model=64,
            num_layers=2,
            num_heads=8,
            d_ff=256,
            num_classes=16,
        ),
        source="unpublished: sized for tests, every dimension but the channels a multiple of 8",
    ),
    ModelSpec(
        name="vit_l16",
        family="vit",
        config=ViTConfig(),
        source="arXiv:2010.11929, table 1 (ViT-Large) with 16x16 patches; mean pooling instead of "
        "the class token",
    ),
)
