"""MuZero, the ablation of AlphaZero: the same search, in a model of the game that is learnt.

"Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model" (Schrittwieser et al.; 2020)
with the search of "Policy improvement by planning with Gumbel". The rules are asked for the legal
actions at the root only; within the tree the model has to know.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import optax

from memory_planner.agents.alphazero import LOWEST, SearchSettings
from memory_planner.agents.learned_model import LearnedModel
from memory_planner.agents.network import NetworkConfig
from memory_planner.agents.self_play import Choice, Position, Record
from memory_planner.games.game import Game, Observation


@dataclasses.dataclass(frozen=True)
class MuZero:
    """A player that searches in a learned model; a `learner.Agent`.

    Attributes:
      game: the rules, for the games that are played.
      network: sizes of the model.
      search: how hard it thinks.
      unroll: moves that the model is trained to imagine.
      value_weight: of the values' and rewards' squared errors beside the policy's cross-entropy.
    """

    game: Game
    network: NetworkConfig
    search: SearchSettings
    unroll: int = 4
    value_weight: float = 1.0

    def init(self, key: jax.Array, observation: Observation) -> Any:
        """Parameters of the model, for observations like this one, without a batch dimension."""
        return LearnedModel(self.network).init(key, observation, jnp.int32(0))

    def choose(
        self, params: Any, key: jax.Array, position: Position, temperature: jax.Array
    ) -> Choice:
        """Searches from each lane's position."""
        observation = position.observation
        states = self._apply("represent", params, observation)
        logits, value = self._apply("predict", params, states, observation.mask)
        root = mctx.RootFnOutput(
            prior_logits=jnp.where(position.legal, logits, LOWEST),
            value=value,
            embedding=(states, observation.mask),
        )
        return self.search.choice(params, key, root, self._recurrent, position, temperature)

    def samples(self, record: Record) -> Mapping[str, Any]:
        """One sample for each move that was played, with the `unroll` moves after it.

        After the end of a game the model learns that nothing is gained any more.
        """
        moves = range(self.unroll + 1)
        kept = record.playing
        scaled = (record.rewards / record.scale_ns[None]).astype(np.float32)

        def windows(array: np.ndarray, count: int) -> np.ndarray:
            """[L, B, ...] -> [samples, count, ...], zeros behind the end."""
            padded = np.concatenate([array, np.zeros_like(array[:1]).repeat(count, axis=0)])
            parts = [padded[n : n + len(array)] for n in range(count)]
            return np.stack(parts, axis=2)[kept]

        return {
            "observation": jax.tree.map(lambda a: a[kept], record.observation),
            "legal": record.legal[kept],
            "actions": windows(record.actions, self.unroll),
            "rewards": windows(scaled, self.unroll),
            "weights": windows(record.weights, len(moves)),
            "returns": windows(record.returns(), len(moves)),
            "playing": windows(kept, len(moves)),
        }

    def loss(
        self, params: Any, samples: Mapping[str, Any]
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """Mean over samples [M, ...]: the model unrolled along the actions taken.

        Appendix G of the paper: each imagined move counts 1/unroll, and half of the gradient goes
        back through the state.
        """
        observation, mask = samples["observation"], samples["observation"].mask
        state = self._apply("represent", params, observation)
        parts = {name: jnp.float32(0) for name in ("policy", "value", "reward")}
        for move in range(self.unroll + 1):
            weight = 1.0 if move == 0 else 1.0 / self.unroll
            logits, value = self._apply("predict", params, state, mask)
            if move == 0:
                logits = jnp.where(samples["legal"], logits, LOWEST)
            policy = optax.softmax_cross_entropy(logits, samples["weights"][:, move])
            parts["policy"] += weight * (policy * samples["playing"][:, move]).mean()
            parts["value"] += weight * jnp.square(value - samples["returns"][:, move]).mean()
            if move < self.unroll:
                action = samples["actions"][:, move]
                state, reward = self._apply("imagine", params, state, mask, action)
                error = jnp.square(reward - samples["rewards"][:, move]).mean()
                parts["reward"] += error / self.unroll
                state = 0.5 * state + 0.5 * jax.lax.stop_gradient(state)
        total = parts["policy"] + self.value_weight * (parts["value"] + parts["reward"])
        return total, parts

    def _apply(self, method: str, params: Any, *arguments: Any) -> Any:
        """A method of the model for a batch [B, ...] of arguments."""

        def one(*alone: Any) -> Any:
            return LearnedModel(self.network).apply(params, *alone, method=method)

        return jax.vmap(one)(*arguments)

    def _recurrent(
        self, params: Any, key: jax.Array, action: jax.Array, embedding: Any
    ) -> tuple[mctx.RecurrentFnOutput, Any]:
        """A move imagined."""
        del key
        states, mask = embedding
        states, reward = self._apply("imagine", params, states, mask, action)
        logits, value = self._apply("predict", params, states, mask)
        output = mctx.RecurrentFnOutput(
            reward=reward, discount=jnp.ones_like(reward), prior_logits=logits, value=value
        )
        return output, (states, mask)
