"""A multi-layer perceptron in linen: the smallest model that is worth sharding."""

import dataclasses
from typing import ClassVar

import jax
from flax import linen as nn

from models.checks import check_fields, compute_dtype
from models.spec import BatchSpec, ModelSpec, labelled_batch


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Sizes of a perceptron.

    Attributes:
        in_features: width of an example.
        hidden: widths of the hidden layers, in order.
        num_classes: width of the output.
        dtype: of the computation; None: of the parameters (made in float32) and inputs.
    """

    in_features: int = 64
    hidden: tuple[int, ...] = (256, 256)
    num_classes: int = 16
    dtype: str | None = None

    input_key: ClassVar[str] = "x"

    def __post_init__(self) -> None:
        # A list, from a flag or from JSON, would make the configuration unhashable.
        if isinstance(self.hidden, list):
            object.__setattr__(self, "hidden", tuple(self.hidden))
        check_fields(self)

    def build(self) -> "MLP":
        """Returns the linen module."""
        return MLP(self)

    def example_batch(self, batch_size: int, seq_len: int | None = None) -> BatchSpec:
        """Returns `{"x": float32[B, in_features], "label": int32[B]}`; `seq_len` is refused."""
        return labelled_batch("x", batch_size, (self.in_features,), seq_len)


class MLP(nn.Module):
    """Dense layers with ReLU between them."""

    config: MLPConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps examples, [B, in_features], to logits, [B, num_classes]."""
        dtype = compute_dtype(self.config.dtype)
        he_normal = nn.initializers.he_normal()
        for i, width in enumerate(self.config.hidden):
            x = nn.Dense(width, kernel_init=he_normal, dtype=dtype, name=f"hidden_{i}")(x)
            x = nn.relu(x)
        return nn.Dense(self.config.num_classes, dtype=dtype, name="head")(x)


SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="mlp",
        family="mlp",
        config=MLPConfig(),
        source="unpublished: sized for tests, every width a multiple of 8",
    ),
)
