"""The pre-norm transformer block of linen, shared by GPT-2 and ViT.

    x ---> LayerNorm -> attention -> dropout -> (+) ---> LayerNorm -> MLP -> dropout -> (+) --->
      \\________________________________________/   \\_____________________________________/

Shapes: B batch, S and T positions (of queries and keys), D width, H heads, K width of one head,
F hidden width of the MLP.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from models.spec import Remat

Activation = Callable[[jax.Array], jax.Array]


def causal_mask(seq_len: int) -> jax.Array:
    """Returns bool[1, 1, S, S], true where a query (third axis) may see a key (fourth axis)."""
    positions = jnp.arange(seq_len)
    return positions[None, None, :, None] >= positions[None, None, None, :]


class SelfAttention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017, arXiv:1706.03762), with biases.

    Kernels of query, key and value are [D, H, K]; the one of the output is [H, K, D].
    """

    num_heads: int
    dropout_rate: float
    kernel_init: Initializer
    out_kernel_init: Initializer
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]; `mask` is bool, broadcastable to [B, H, S, T]."""
        width = x.shape[-1]
        head_dim = width // self.num_heads
        project = functools.partial(
            nn.DenseGeneral,
            features=(self.num_heads, head_dim),
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )
        query = project(name="query")(x)
        key = project(name="key")(x)
        value = project(name="value")(x)

        # A softmax in half precision loses the small weights of long rows.
        scores = jnp.einsum("bshk,bthk->bhst", query, key, preferred_element_type=jnp.float32)
        scores = scores * head_dim**-0.5
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        weights = nn.Dropout(self.dropout_rate)(weights, deterministic=deterministic)
        heads = jnp.einsum("bhst,bthk->bshk", weights, value)
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=self.out_kernel_init,
            dtype=self.dtype,
            name="out",
        )(heads)


class FeedForward(nn.Module):
    """Two dense layers, D -> F -> D, with an activation between them."""

    hidden: int
    activation: Activation
    kernel_init: Initializer
    out_kernel_init: Initializer
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]."""
        width = x.shape[-1]
        x = nn.Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype, name="up")(x)
        x = self.activation(x)
        return nn.Dense(width, kernel_init=self.out_kernel_init, dtype=self.dtype, name="down")(x)


class PreNormBlock(nn.Module):
    """One layer of the transformer: the picture at the head of this file.

    `out_kernel_init` initialises the two kernels that write to the residual stream.
    """

    num_heads: int
    hidden: int
    activation: Activation
    dropout_rate: float
    norm_epsilon: float
    kernel_init: Initializer
    out_kernel_init: Initializer
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]; `mask` is bool, broadcastable to [B, H, S, T]."""
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=deterministic)

        attended = SelfAttention(
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            kernel_init=self.kernel_init,
            out_kernel_init=self.out_kernel_init,
            dtype=self.dtype,
            name="attn",
        )(norm(name="ln_1")(x), mask, deterministic=deterministic)
        x = x + dropout()(attended)

        transformed = FeedForward(
            hidden=self.hidden,
            activation=self.activation,
            kernel_init=self.kernel_init,
            out_kernel_init=self.out_kernel_init,
            dtype=self.dtype,
            name="mlp",
        )(norm(name="ln_2")(x))
        return x + dropout()(transformed)


def run_blocks(
    make_block: Callable[..., PreNormBlock],
    x: jax.Array,
    mask: jax.Array | None = None,
    *,
    num_layers: int,
    prefix: str,
    scan_layers: bool,
    remat: Remat,
    deterministic: bool,
) -> jax.Array:
    """Maps [B, S, D] to [B, S, D] by `num_layers` blocks; called from a compact method.

    Args:
        make_block: makes a block of a given `name`.
        x: [B, S, D].
        mask: bool, broadcastable to [B, H, S, T].
        num_layers: L.
        prefix: blocks are called `<prefix>_0` and so on.
        scan_layers: one block called `prefix`, its parameters stacked to [L, ...], and a loop.
        remat: "full" where the backward pass computes each block again from its input.
        deterministic: no dropout.
    """

    def run(block: PreNormBlock, x: jax.Array) -> jax.Array:
        return block(x, mask, deterministic=deterministic)

    def scanned(block: PreNormBlock, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return run_again(block, x), None

    # A loop's backward pass is a loop of its own: no common subexpression can undo the remat.
    run_again = nn.remat(run, prevent_cse=not scan_layers) if remat == "full" else run
    if not scan_layers:
        for layer in range(num_layers):
            x = run_again(make_block(name=f"{prefix}_{layer}"), x)
        return x
    loop = nn.scan(
        scanned,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=num_layers,
    )
    x, _ = loop(make_block(name=prefix), x, None)
    return x
