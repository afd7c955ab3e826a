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

from models.kv_cache import LayerCache, cached_attention

Activation = Callable[[jax.Array], jax.Array]


def causal_mask(seq_len: int) -> jax.Array:
    """Returns bool[1, 1, S, S], true where a query (third axis) may see a key (fourth axis)."""
    positions = jnp.arange(seq_len)
    return positions[None, None, :, None] >= positions[None, None, None, :]


class SelfAttention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017, arXiv:1706.03762), with biases.

    Kernels of query, key and value are [D, H, K]; the one of the output is [H, K, D].
    """

    d_model: int
    num_heads: int
    dropout_rate: float
    kernel_init: Initializer
    out_kernel_init: Initializer
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        project = functools.partial(
            nn.DenseGeneral,
            features=(self.num_heads, self.d_model // self.num_heads),
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )
        self.query, self.key, self.value = project(), project(), project()
        self.dropout = nn.Dropout(self.dropout_rate)
        self.out = nn.DenseGeneral(
            self.d_model, axis=(-2, -1), kernel_init=self.out_kernel_init, dtype=self.dtype
        )

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]; `mask` is bool, broadcastable to [B, H, S, T]."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        return self._attend(query, key, value, mask, deterministic)

    def prefill(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, LayerCache]:
        """As `__call__`, and the keys and values of all positions."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        attended = self._attend(query, key, value, mask, deterministic=True)
        return attended, {"key": key, "value": value}

    def decode(
        self, x: jax.Array, past: LayerCache, position: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        """Maps the token at `position`, [B, 1, D], to [B, 1, D] and its own key and value."""
        query, new = self.query(x), {"key": self.key(x), "value": self.value(x)}
        heads = cached_attention(query[:, 0, :, None], new, past, position)
        return self.out(jnp.swapaxes(heads, 1, 2)), new

    @nn.nowrap
    def _attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None,
        deterministic: bool,
    ) -> jax.Array:
        # A softmax in half precision loses the small weights of long rows.
        scores = jnp.einsum("bshk,bthk->bhst", query, key, preferred_element_type=jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        weights = self.dropout(weights, deterministic=deterministic)
        output: jax.Array = self.out(jnp.einsum("bhst,bthk->bshk", weights, value))
        return output


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

    d_model: int
    num_heads: int
    hidden: int
    activation: Activation
    dropout_rate: float
    norm_epsilon: float
    kernel_init: Initializer
    out_kernel_init: Initializer
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        self.ln_1 = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype)
        self.attn = SelfAttention(
            d_model=self.d_model,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            kernel_init=self.kernel_init,
            out_kernel_init=self.out_kernel_init,
            dtype=self.dtype,
        )
        self.ln_2 = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype)
        self.mlp = FeedForward(
            hidden=self.hidden,
            activation=self.activation,
            kernel_init=self.kernel_init,
            out_kernel_init=self.out_kernel_init,
            dtype=self.dtype,
        )
        self.dropout = nn.Dropout(self.dropout_rate)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]; `mask` is bool, broadcastable to [B, H, S, T]."""
        attended = self.attn(self.ln_1(x), mask, deterministic=deterministic)
        return self._add(x, attended, deterministic)

    def prefill(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, LayerCache]:
        """As `__call__`, and the keys and values of all positions."""
        attended, new = self.attn.prefill(self.ln_1(x), mask)
        return self._add(x, attended, deterministic=True), new

    def decode(
        self, x: jax.Array, past: LayerCache, position: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        """Maps the token at `position`, [B, 1, D], to [B, 1, D] and its own key and value."""
        attended, new = self.attn.decode(self.ln_1(x), past, position)
        return self._add(x, attended, deterministic=True), new

    @nn.nowrap
    def _add(self, x: jax.Array, attended: jax.Array, deterministic: bool) -> jax.Array:
        x = x + self.dropout(attended, deterministic=deterministic)
        return x + self.dropout(self.mlp(self.ln_2(x)), deterministic=deterministic)
