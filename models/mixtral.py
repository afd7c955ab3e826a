"""Mixtral in nnx: Llama's layers with the MLP replaced by E experts, of which each token takes K.

Jiang et al., "Mixtral of Experts", 2024, arXiv:2401.04088, section 2 and table 1. Tokens go to
experts by products with one-hot tensors and experts have a capacity, as in Lepikhin et al.,
"GShard", 2020, arXiv:2006.16668, section 2.2; but places are given in the order of tokens, so that
no token changes what an earlier one gets. The release drops no token: that is a `capacity_factor`
of E / K.

      x -> router -> K experts a token -> dispatch -> SwiGLU of each expert -> combine, weighted
       \\_______________________________/

Shapes: B batch, N groups to a sequence, G tokens to a group, C tokens that an expert takes of a
group, E experts, K experts to a token, D width, F hidden width of an expert.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from models.checks import compute_dtype
from models.llama import INIT_STD, Llama, LlamaBlock, LlamaConfig
from models.spec import ModelSpec, NnxBuilder


@dataclasses.dataclass(frozen=True)
class MixtralConfig(LlamaConfig):
    """Sizes of a Mixtral; the defaults are those of 8x7B. Other fields are as in `LlamaConfig`.

    Attributes:
        d_ff: hidden width of one expert, F.
        num_experts: E.
        experts_per_token: K; at most `num_experts`.
        capacity_factor: an expert takes this many times its even share K * G / E of a group's
            tokens, and no more than G; what finds no place skips the expert.
        group_size: tokens among which places are given, G; longer sequences are a multiple of it.
            The one-hot tensors hold G * E * C, so they grow with its square.
    """

    vocab_size: int = 32000
    max_seq_len: int = 32768
    rope_theta: float = 1e6
    num_experts: int = 8
    experts_per_token: int = 2
    capacity_factor: float = 1.25
    group_size: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"MixtralConfig: experts_per_token={self.experts_per_token} is more than "
                f"num_experts={self.num_experts}: choose fewer."
            )
        if not self.capacity_factor > 0:
            raise ValueError(
                f"MixtralConfig: capacity_factor={self.capacity_factor!r} must be positive."
            )

    def capacity(self, group_tokens: int) -> int:
        """Tokens that an expert takes of a group of `group_tokens`, C."""
        share = self.experts_per_token * group_tokens / self.num_experts
        return min(group_tokens, math.ceil(self.capacity_factor * share))

    def build(self) -> NnxBuilder:
        """Returns the function from `rngs` to the nnx module."""
        return functools.partial(Mixtral, self)


def choose_experts(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` best experts of each token, and their weights: a softmax over those alone.

    By repeated argmax: a sort along the experts makes partitioners gather all other dimensions.

    Args:
        logits: float32[..., E].
        count: K.

    Returns:
        (bool[..., E], where an expert is chosen; float32[..., E], weights, zero where it is not).
    """
    chosen = jnp.zeros(logits.shape, bool)
    for _ in range(count):
        rest = jnp.where(chosen, -jnp.inf, logits)
        chosen = chosen | jax.nn.one_hot(jnp.argmax(rest, axis=-1), logits.shape[-1], dtype=bool)
    weights = jax.nn.softmax(jnp.where(chosen, logits, -jnp.inf), axis=-1)
    return chosen, weights


def places(chosen: jax.Array, capacity: int) -> jax.Array:
    """Which place of an expert's queue each token gets: first come, first served.

    Args:
        chosen: bool[B, N, G, E].
        capacity: C.

    Returns:
        bool[B, N, G, E, C]: at most one place for a token and expert, one token for a place.
    """
    taken = jnp.cumsum(chosen.astype(jnp.int32), axis=2)
    place = jnp.where(chosen, taken - 1, -1)
    # Of a place outside the queue, one_hot is zero everywhere.
    return jax.nn.one_hot(place, capacity, dtype=bool)


class ExpertMLP(nnx.Module):
    """A router and E SwiGLU networks, their kernels stacked to [E, ...]."""

    def __init__(self, config: MixtralConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        experts, width, hidden = config.num_experts, config.d_model, config.d_ff
        normal = nnx.initializers.normal(INIT_STD)
        residual = nnx.initializers.normal(INIT_STD / math.sqrt(2 * config.num_layers))

        def kernel(init: Initializer, *shape: int) -> nnx.Param[jax.Array]:
            return nnx.Param(init(rngs.params(), shape, jnp.float32))

        self.router_kernel = kernel(normal, width, experts)
        self.gate_kernel = kernel(normal, experts, width, hidden)
        self.up_kernel = kernel(normal, experts, width, hidden)
        self.down_kernel = kernel(residual, experts, hidden, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]."""
        cfg = self.config
        batch, seq_len, width = x.shape
        tokens = min(cfg.group_size, seq_len)
        if seq_len % tokens:
            raise ValueError(
                f"Mixtral: {seq_len} tokens are no multiple of group_size={tokens}: choose a "
                "length or group_size that is."
            )
        dtype = compute_dtype(cfg.dtype) or x.dtype
        x = x.astype(dtype).reshape(batch, seq_len // tokens, tokens, width)
        # Close scores decide where a token goes: half precision would toss a coin.
        logits = jnp.einsum(
            "bngd,de->bnge",
            x.astype(jnp.float32),
            self.router_kernel[...].astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        chosen, weights = choose_experts(logits, cfg.experts_per_token)
        place = places(chosen, cfg.capacity(tokens)).astype(dtype)
        combine = place * weights.astype(dtype)[..., None]

        inputs = jnp.einsum("bngec,bngd->bnecd", place, x)
        gate = jnp.einsum("bnecd,edf->bnecf", inputs, self.gate_kernel[...].astype(dtype))
        up = jnp.einsum("bnecd,edf->bnecf", inputs, self.up_kernel[...].astype(dtype))
        hidden = nnx.silu(gate) * up
        outputs = jnp.einsum("bnecf,efd->bnecd", hidden, self.down_kernel[...].astype(dtype))
        mixed = jnp.einsum("bngec,bnecd->bngd", combine, outputs)
        return mixed.reshape(batch, seq_len, width)


class MixtralBlock(LlamaBlock):
    """One pre-norm layer: attention, then the experts, each added to its input."""

    mlp_type: ClassVar[type[Any]] = ExpertMLP


class Mixtral(Llama):
    """The language model: tokens to logits of the next token."""

    block_type: ClassVar[type[LlamaBlock]] = MixtralBlock


SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="mixtral_tiny",
        family="mixtral",
        config=MixtralConfig(
            vocab_size=256,
            max_seq_len=128,
            d_model=64,
            num_layers=2,
            num_heads=8,
            num_kv_heads=4,
            d_ff=160,
            group_size=64,
        ),
        source="unpublished: Mixtral over bytes, sized for tests; all but 4 key heads divide by 8",
    ),
    ModelSpec(
        name="mixtral_8x7b",
        family="mixtral",
        config=MixtralConfig(scan_layers=True, remat="full"),
        source="arXiv:2401.04088, table 1; https://huggingface.co/mistralai/Mixtral-8x7B-v0.1",
    ),
)
