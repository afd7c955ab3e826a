"""The players' network: from an observation to preferences among actions, and to a value.

Buffers are a set: each is looked at alone and beside what attention gathers from all, so that
renumbering them renumbers the answers, and the same weights serve any number of them. Padding is
masked out.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from memory_planner.games.game import Observation

# The feature that marks the buffer which the mapping game asks about (`games.features`).
MAPPING_MARK = 18


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a network, and the kind of its policy.

    Attributes:
      width: of a buffer's representation.
      layers: blocks.
      heads: of attention in a block.
      choices: actions for each buffer; or in all, where `marked_feature` is given.
      marked_feature: which of a buffer's features is 1 on the buffer that the next decision is
        about, 0 on the others. None if the decision is, which buffer comes next: then action
        `buffer * choices + choice` is one buffer's.
    """

    width: int = 48
    layers: int = 3
    heads: int = 4
    choices: int = 3
    marked_feature: int | None = None


class Block(nn.Module):
    """Each buffer reads what a few heads of attention gather from all; added to its input.

    The queries are learnt and the same for every buffer, as in the pooling by attention of "Set
    Transformer" (Lee et al.; 2019), section 3.2: the cost is linear in the buffers.
    """

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Args: x f32[N, width]; mask bool[N], false on padding. Returns f32[N, width]."""
        normed = nn.LayerNorm(name="norm")(x)
        scores = jnp.where(mask[:, None], nn.Dense(self.heads, name="scores")(normed), -1e9)
        gathered = jax.nn.softmax(scores, axis=0).T @ normed
        context = nn.Dense(2 * self.width, name="gathered")(gathered.reshape(-1))
        hidden = nn.Dense(2 * self.width, name="hidden", use_bias=False)(normed)
        return x + nn.Dense(self.width, name="out")(jax.nn.relu(hidden + context[None]))


def pooled(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean and maximum over the buffers: f32[N, W], bool[N] -> f32[2 * W]; zeros if none."""
    kept = jnp.where(mask[:, None], x, 0.0)
    mean = kept.sum(0) / jnp.maximum(mask.sum(), 1)
    largest = jnp.where(mask[:, None], x, -1e9).max(0)
    return jnp.concatenate([mean, jnp.where(mask.any(), largest, 0.0)])


def expanded(buffers: jax.Array, mask: jax.Array) -> jax.Array:
    """Features [N, F] also relative to their largest, and as logarithms: [N, 3 * F].

    With many buffers each one's share of the gain is small; beside the largest it is not.
    Differences of logarithms are ratios, such as a gain for its size.
    """
    size = jnp.abs(jnp.where(mask[:, None], buffers, 0.0))
    relative = buffers / jnp.maximum(size.max(0, keepdims=True), 1e-6)
    logarithm = jnp.sign(buffers) * jnp.log1p(1e3 * size) / 7
    return jnp.concatenate([buffers, relative, logarithm], axis=1)


class Encoder(nn.Module):
    """An observation as one vector for each buffer."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, observation: Observation) -> jax.Array:
        """Returns f32[N, width]."""
        config = self.config
        rows = expanded(observation.buffers, observation.mask)
        x = nn.Dense(config.width, name="buffers")(rows)
        x = x + nn.Dense(config.width, name="summary")(observation.summary)[None]
        x = jax.nn.relu(x)
        for number in range(config.layers):
            x = Block(config.width, config.heads, name=f"block_{number}")(x, observation.mask)
        return nn.LayerNorm(name="norm")(x)


class Heads(nn.Module):
    """Preferences and value from the buffers' vectors."""

    config: NetworkConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, marked: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Reads the vectors.

        Args:
          x: f32[N, width].
          mask: bool[N].
          marked: f32[N], 1 on the decision's buffer; not looked at without `marked_feature`.

        Returns:
          Logits f32[A], not yet masked by legality, and the value f32[], in units of the scale of
          returns that the network is trained with.
        """
        config = self.config
        everything = pooled(x, mask)
        value_hidden = nn.Dense(config.width, name="value_hidden")(everything)
        value = nn.Dense(1, name="value", kernel_init=nn.initializers.zeros)(
            jax.nn.relu(value_hidden)
        )[0]
        own = x if config.marked_feature is None else marked @ x
        hidden = nn.Dense(config.width, name="policy_hidden")(own)
        context = nn.Dense(config.width, name="policy_context", use_bias=False)(everything)
        hidden = jax.nn.relu(hidden + jnp.broadcast_to(context, hidden.shape))
        logits = nn.Dense(config.choices, name="policy", kernel_init=nn.initializers.zeros)(hidden)
        return logits.reshape(-1), value


def marked_buffer(config: NetworkConfig, observation: Observation) -> jax.Array:
    """f32[N]: 1 on the buffer that the decision is about; zeros if the decision names it."""
    if config.marked_feature is None:
        return jnp.zeros(observation.buffers.shape[0])
    return observation.buffers[:, config.marked_feature]


class PolicyValue(nn.Module):
    """The network of a player that knows the rules."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, observation: Observation) -> tuple[jax.Array, jax.Array]:
        """Logits f32[A] and value f32[] of one observation; batches go through `jax.vmap`."""
        x = Encoder(self.config, name="encoder")(observation)
        marked = marked_buffer(self.config, observation)
        return Heads(self.config, name="heads")(x, observation.mask, marked)
