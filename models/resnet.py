"""Residual networks with batch normalisation in linen: the image model without attention.

He et al., "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385. As in torchvision
("v1.5"), a bottleneck strides in its 3x3 convolution.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from models.checks import check_fields, compute_dtype
from models.spec import BatchSpec, ModelSpec, labelled_batch

Block = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "small_image"]

BOTTLENECK_EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a residual network; the defaults are those of ResNet-50.

    Attributes:
        image_size: height and width of an image.
        channels: of an image.
        stage_sizes: blocks in every stage; a stage halves the image and doubles the width.
        width: channels of the first stage, before a bottleneck's expansion by 4.
        block: two 3x3 convolutions ("basic") or 1x1, 3x3, 1x1 ("bottleneck").
        stem: a 7x7 convolution and a pooling, 4 times smaller together ("imagenet"), or a 3x3
            convolution that keeps the size ("small_image").
        num_classes: width of the output.
        dtype: of the computation; None: of the parameters (made in float32) and inputs.
    """

    image_size: int = 224
    channels: int = 3
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    block: Block = "bottleneck"
    stem: Stem = "imagenet"
    num_classes: int = 1000
    dtype: str | None = None

    input_key: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        # A list, from a flag or from JSON, would make the configuration unhashable.
        if isinstance(self.stage_sizes, list):
            object.__setattr__(self, "stage_sizes", tuple(self.stage_sizes))
        check_fields(self)

    def build(self) -> "ResNet":
        """Returns the linen module."""
        return ResNet(self)

    def example_batch(self, batch_size: int, seq_len: int | None = None) -> BatchSpec:
        """Returns `{"image": float32[B, H, W, C], "label": int32[B]}`; `seq_len` is refused."""
        shape = (self.image_size, self.image_size, self.channels)
        return labelled_batch("image", batch_size, shape, seq_len)


class ConvNorm(nn.Module):
    """A square convolution without bias, then batch normalisation."""

    features: int
    kernel_size: int
    stride: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, features]."""
        # Symmetric, as published; "SAME" would shift strided convolutions by a pixel.
        padding = self.kernel_size // 2
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=padding,
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=self.dtype,
            name="conv",
        )(x)
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, dtype=self.dtype, name="norm"
        )(x)


class ResidualBlock(nn.Module):
    """Two or three convolutions beside a shortcut, projected where the shape changes."""

    width: int
    stride: int
    block: Block
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, width or 4 * width]."""
        conv = functools.partial(ConvNorm, dtype=self.dtype)
        layers: tuple[tuple[int, int, int], ...]
        if self.block == "basic":
            layers = ((self.width, 3, self.stride), (self.width, 3, 1))
        else:
            expanded = BOTTLENECK_EXPANSION * self.width
            layers = ((self.width, 1, 1), (self.width, 3, self.stride), (expanded, 1, 1))

        branch = x
        for i, (features, kernel_size, stride) in enumerate(layers):
            branch = conv(features, kernel_size, stride, name=f"conv_{i}")(branch, train=train)
            if i + 1 < len(layers):
                branch = nn.relu(branch)
        if branch.shape != x.shape:
            x = conv(branch.shape[-1], 1, self.stride, name="shortcut")(x, train=train)
        return nn.relu(x + branch)


class ResNet(nn.Module):
    """The classifier: images to logits."""

    config: ResNetConfig

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images, [B, H, W, C], to logits, [B, num_classes].

        With `train`, normalises by the statistics of the batch and moves the running ones, in the
        collection "batch_stats", which must then be mutable.
        """
        cfg = self.config
        dtype = compute_dtype(cfg.dtype)
        if cfg.stem == "imagenet":
            x = nn.relu(ConvNorm(cfg.width, 7, 2, dtype, name="stem")(image, train=train))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        else:
            x = nn.relu(ConvNorm(cfg.width, 3, 1, dtype, name="stem")(image, train=train))
        for stage, num_blocks in enumerate(cfg.stage_sizes):
            for i in range(num_blocks):
                x = ResidualBlock(
                    width=cfg.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    block=cfg.block,
                    dtype=dtype,
                    name=f"stage_{stage}_block_{i}",
                )(x, train=train)
        x = x.mean(axis=(1, 2))
        return nn.Dense(cfg.num_classes, dtype=dtype, name="head")(x)


SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="resnet_tiny",
        family="resnet",
        config=ResNetConfig(
            image_size=32,
            stage_sizes=(1, 1, 1),
            width=16,
            block="basic",
            stem="small_image",
            num_classes=16,
        ),
        source="unpublished: sized for tests, every width but the image's channels a multiple of 8",
    ),
    ModelSpec(
        name="resnet50",
        family="resnet",
        config=ResNetConfig(),
        source="arXiv:1512.03385, table 1, 50-layer; https://pytorch.org/vision/stable/models/"
        "generated/torchvision.models.resnet50.html",
    ),
)
