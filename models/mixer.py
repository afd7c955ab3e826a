"""MLP-Mixer in linen: patches by a convolution, then layers that mix patches, and then channels.

Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", 2021, arXiv:2105.01601,
section 2 and table 1.

    x -> LayerNorm -> transpose -> MLP over patches -> transpose -> (+) -> LayerNorm -> MLP -> (+)
     \\______________________________________________________________/ \\______________________/

Shapes: B batch, S patches, D width.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from models.checks import check_divides, check_fields, compute_dtype
from models.linen_layers import make_blocks, run_blocks
from models.spec import BatchSpec, ModelSpec, Remat, labelled_batch
from models.transformer import FeedForward


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """Sizes of an MLP-Mixer; the defaults are those of Mixer-B/16.

    Attributes:
        image_size: height and width of an image.
        channels: of an image.
        patch_size: height and width of a patch; divides `image_size`.
        d_model: width of the residual stream, D; the paper's C.
        num_layers: number of blocks.
        hidden_tokens: hidden width of the MLP over patches; the paper's D_S.
        hidden_channels: hidden width of the MLP over channels; the paper's D_C.
        num_classes: width of the output.
        scan_layers: one set of stacked parameters, [layers, ...], and a loop over it: the time to
            compile does not grow with depth.
        remat: what the backward pass computes again: "none", or "full", each block from its input.
        dtype: of the computation; None: of the parameters (made in float32) and inputs.
    """

    image_size: int = 224
    channels: int = 3
    patch_size: int = 16
    d_model: int = 768
    num_layers: int = 12
    hidden_tokens: int = 384
    hidden_channels: int = 3072
    num_classes: int = 1000
    scan_layers: bool = False
    remat: Remat = "none"
    dtype: str | None = None

    input_key: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        check_fields(self)
        check_divides(self, "image_size", "patch_size")

    @property
    def num_patches(self) -> int:
        """Length of the sequence, S."""
        return (self.image_size // self.patch_size) ** 2

    def build(self) -> "Mixer":
        """Returns the linen module."""
        return Mixer(self)

    def example_batch(self, batch_size: int, seq_len: int | None = None) -> BatchSpec:
        """Returns `{"image": float32[B, H, W, C], "label": int32[B]}`; `seq_len` is refused."""
        shape = (self.image_size, self.image_size, self.channels)
        return labelled_batch("image", batch_size, shape, seq_len)


class MixerBlock(nn.Module):
    """One layer: the picture at the head of this file."""

    config: MixerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]."""
        cfg = self.config
        dtype = compute_dtype(cfg.dtype)
        lecun = nn.initializers.lecun_normal()
        mlp = functools.partial(
            FeedForward,
            activation=functools.partial(nn.gelu, approximate=True),
            kernel_init=lecun,
            out_kernel_init=lecun,
            dtype=dtype,
        )
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=dtype)

        by_channel = jnp.swapaxes(norm(name="ln_1")(x), 1, 2)
        mixed = mlp(cfg.hidden_tokens, name="token_mixing")(by_channel)
        x = x + jnp.swapaxes(mixed, 1, 2)
        return x + mlp(cfg.hidden_channels, name="channel_mixing")(norm(name="ln_2")(x))


class Mixer(nn.Module):
    """The classifier: images to logits."""

    config: MixerConfig

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Maps images, [B, H, W, C], to logits, [B, num_classes]."""
        cfg = self.config
        dtype = compute_dtype(cfg.dtype)
        patch = (cfg.patch_size, cfg.patch_size)
        stem = nn.Conv(
            cfg.d_model, patch, strides=patch, padding="VALID", dtype=dtype, name="patches"
        )
        x = stem(image).reshape(image.shape[0], cfg.num_patches, cfg.d_model)

        def step(block: MixerBlock, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x), None

        blocks = make_blocks(
            functools.partial(MixerBlock, cfg),
            "block",
            num_layers=cfg.num_layers,
            scan_layers=cfg.scan_layers,
        )
        x, _ = run_blocks(blocks, step, x, num_layers=cfg.num_layers, remat=cfg.remat)
        x = nn.LayerNorm(epsilon=1e-6, dtype=dtype, name="norm")(x).mean(axis=1)
        # Not the paper's zeros: with those no gradient reaches the body in the first step.
        head_init = nn.initializers.normal(0.02)
        return nn.Dense(cfg.num_classes, kernel_init=head_init, dtype=dtype, name="head")(x)


SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="mixer_tiny",
        family="mixer",
        config=MixerConfig(
            image_size=32,
            patch_size=4,
            d_model=64,
            num_layers=2,
            hidden_tokens=32,
            hidden_channels=256,
            num_classes=16,
        ),
        source="unpublished: sized for tests, every dimension but the channels a multiple of 8",
    ),
    ModelSpec(
        name="mixer_b16",
        family="mixer",
        config=MixerConfig(scan_layers=True, remat="full"),
        source="arXiv:2105.01601, table 1 (B/16)",
    ),
    ModelSpec(
        name="mixer_l16",
        family="mixer",
        config=MixerConfig(
            d_model=1024,
            num_layers=24,
            hidden_tokens=512,
            hidden_channels=4096,
            scan_layers=True,
            remat="full",
        ),
        source="arXiv:2105.01601, table 1 (L/16)",
    ),
)
