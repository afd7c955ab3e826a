"""What a registered model is: a frozen configuration that builds a module and describes its batch.

A batch is a flat dictionary. Its entry `config.input_key` is the model's input and has the name of
the argument of `__call__` that takes it; `label` or `targets`, where present, is what the loss
reads; any other entry is an input, too, under its argument's name. Decoders predict their own
input, shifted, and carry no label.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from models.checks import Dataclass

BatchSpec = dict[str, jax.ShapeDtypeStruct]

Remat = Literal["none", "full"]

# Entries of a batch that the loss reads and the model does not.
TARGETS = ("label", "targets")


class NnxBuilder(Protocol):
    """A function that builds an nnx module from its random streams."""

    def __call__(self, rngs: nnx.Rngs) -> nnx.Module: ...


class ModelConfig(Dataclass, Protocol):
    """What the frozen, hashable configuration dataclass of every family offers.

    Attributes:
        input_key: the entry of the batch that the model takes.
    """

    input_key: ClassVar[str]

    def __hash__(self) -> int: ...

    def build(self) -> nn.Module | NnxBuilder:
        """Returns a linen module, or a function from `nnx.Rngs` to an nnx module."""

    def example_batch(self, batch_size: int, seq_len: int | None = None) -> BatchSpec:
        """Returns the shapes and types of one batch."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A model of the registry.

    Attributes:
        name: the registered name, kept when fields are overridden.
        family: the file of this package that defines the architecture.
        config: the frozen configuration.
        source: where the configuration's figures were published.
    """

    name: str
    family: str
    config: ModelConfig
    source: str

    def build(self) -> nn.Module | NnxBuilder:
        """Returns a linen module, or a function `rngs -> nnx.Module`; allocates nothing."""
        return self.config.build()

    def example_batch(self, batch_size: int, seq_len: int | None = None) -> BatchSpec:
        """Returns the shapes and types of one batch.

        Args:
            batch_size: examples in the batch, over all devices.
            seq_len: tokens per example; None is the longest that the model takes. Models without
                a sequence refuse a value.
        """
        return self.config.example_batch(batch_size, seq_len)

    @property
    def can_decode(self) -> bool:
        """Whether the module has `prefill`, `decode` and `init_cache` (docs/inference.md)."""
        return hasattr(self.config, "cache_spec")

    def cache_spec(self, batch_size: int, capacity: int) -> Any:
        """Returns the shapes and types of the cache that the module's `decode` reads and returns.

        Args:
            batch_size: sequences, over all devices.
            capacity: positions that fit in.

        Raises:
            ValueError: the model cannot decode, or the configuration refuses the sizes.
        """
        if not self.can_decode:
            raise ValueError(
                f"{self.name} is of the family {self.family!r}, which has no cache: choose a model "
                "with `can_decode`, or add `cache_spec` to its configuration."
            )
        config: Any = self.config
        return config.cache_spec(batch_size, capacity)

    @property
    def num_params(self) -> int:
        """Number of trained scalars, from abstract evaluation: no array is made."""
        return _count_params(self.config)


class _HostCountedStream(nnx.RngStream):
    """The keys of `nnx.RngStream`, counted by a Python integer.

    The original's counter is an array, and each of its updates under a trace walks all equations
    traced so far (https://github.com/jax-ml/jax/pull/40041): 7 s for the 80 layers of Llama-3-70B,
    against 0.7 s.
    """

    def __init__(self, seed: int, *, tag: str) -> None:
        super().__init__(seed, tag=tag)
        self.num_drawn = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.num_drawn)
        self.num_drawn += 1
        return key


class _HostCountedRngs(nnx.Rngs):
    """`nnx.Rngs` of one such stream."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.default = _HostCountedStream(seed, tag="default")


@functools.cache
def _count_params(config: ModelConfig) -> int:
    model = config.build()

    def init() -> object:
        if isinstance(model, nn.Module):
            # Only shapes matter: one example is as good as a full batch.
            batch = config.example_batch(1)
            inputs: dict[str, Any] = {
                name: jnp.zeros(leaf.shape, leaf.dtype)
                for name, leaf in batch.items()
                if name not in TARGETS
            }
            return model.init(jax.random.key(0), **inputs)["params"]
        return nnx.state(model(_HostCountedRngs(0)), nnx.Param)

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(init)))


def text_batch(batch_size: int, seq_len: int | None, max_seq_len: int) -> BatchSpec:
    """Returns `{"tokens": int32[B, S]}`, S being `max_seq_len` where none is asked for."""
    length = max_seq_len if seq_len is None else seq_len
    if not 0 < length <= max_seq_len:
        raise ValueError(
            f"seq_len={length} is outside 1..max_seq_len={max_seq_len}: ask for fewer tokens, or "
            f"build the model with max_seq_len={length}."
        )
    return {"tokens": _spec((batch_size, length), jnp.int32)}


def text_pair_batch(batch_size: int, seq_len: int | None, max_seq_len: int) -> BatchSpec:
    """Returns `{"tokens": int32[B, S], "decoder_tokens": int32[B, T], "targets": int32[B, T]}`.

    S is `max_seq_len` where none is asked for, and T a quarter of it; the target of position i is
    what the decoder should predict there.
    """
    batch = text_batch(batch_size, seq_len, max_seq_len)
    length = max(1, batch["tokens"].shape[1] // 4)
    output = _spec((batch_size, length), jnp.int32)
    return {**batch, "decoder_tokens": output, "targets": output}


def labelled_batch(
    input_key: str, batch_size: int, example_shape: tuple[int, ...], seq_len: int | None
) -> BatchSpec:
    """Returns `{input_key: float32[B, *example_shape], "label": int32[B]}`."""
    if seq_len is not None:
        raise ValueError(
            f"seq_len={seq_len} was given for a model of {input_key!r}, which has no sequence: "
            "leave seq_len out."
        )
    return {
        input_key: _spec((batch_size, *example_shape), jnp.float32),
        "label": _spec((batch_size,), jnp.int32),
    }


def _spec(shape: tuple[int, ...], dtype: type[jnp.generic]) -> jax.ShapeDtypeStruct:
    if shape[0] < 1:
        raise ValueError(f"batch_size={shape[0]} must be at least 1.")
    return jax.ShapeDtypeStruct(shape, dtype)
