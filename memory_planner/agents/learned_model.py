"""MuZero's network: it imagines the game instead of being told the rules.

"Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model" (Schrittwieser et al.;
2020), figure 1: a representation of what is observed, a dynamics function from a state and an
action to the next state and the reward, and a prediction of policy and value. The state keeps one
vector for each buffer, so that the model is as blind to their numbers as `network.PolicyValue`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from memory_planner.agents.network import Block, Encoder, Heads, NetworkConfig, pooled
from memory_planner.games.game import Observation


class LearnedModel(nn.Module):
    """Representation, dynamics and prediction, each a method."""

    config: NetworkConfig

    def setup(self) -> None:
        config = self.config
        self.encoder = Encoder(config)
        self.heads = Heads(config)
        self.attention = nn.Dense(1)
        self.action = nn.Dense(config.width)
        self.transition = Block(config.width, config.heads)
        self.norm = nn.LayerNorm()
        self.reward_hidden = nn.Dense(config.width)
        self.reward = nn.Dense(1, kernel_init=nn.initializers.zeros)

    def __call__(self, observation: Observation, action: jax.Array) -> tuple[jax.Array, ...]:
        """Everything once, which is what `init` needs."""
        state = self.represent(observation)
        state, reward = self.imagine(state, observation.mask, action)
        return (reward, *self.predict(state, observation.mask))

    def represent(self, observation: Observation) -> jax.Array:
        """The state that an observation stands for: f32[N, width]."""
        return self.encoder(observation)

    def predict(self, state: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits f32[A] and value f32[] of a state."""
        return self.heads(state, mask, self._decided(state, mask))

    def imagine(
        self, state: jax.Array, mask: jax.Array, action: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The state after an action (int32[]), and the reward f32[] in units of the scale."""
        choices, count = self.config.choices, state.shape[0]
        if self.config.marked_feature is None:
            taken = jax.nn.one_hot(action, count * choices).reshape(count, choices)
        else:
            taken = self._decided(state, mask)[:, None] * jax.nn.one_hot(action, choices)[None]
        after = self.norm(self.transition(state + self.action(taken), mask))
        pair = jnp.concatenate([pooled(after, mask), pooled(state, mask)])
        return after, self.reward(jax.nn.relu(self.reward_hidden(pair)))[0]

    def _decided(self, state: jax.Array, mask: jax.Array) -> jax.Array:
        """f32[N]: which buffer the model believes the decision is about; sums to 1."""
        scores = jnp.where(mask, self.attention(state)[:, 0], -1e9)
        return jax.nn.softmax(scores)
