"""Gumbel AlphaZero: tree search in the true game, with a network's advice, that the network learns.

"Policy improvement by planning with Gumbel" (Danihelka, Guez, Schrittwieser, Silver; 2022): at the
root, actions are drawn without replacement by Gumbel-top-k and halved sequentially; the policy
learns the softmax of its logits plus the search's completed values (section 4), which improves it
even with a few simulations. `mctx` has the tree; its recurrent function here is the game itself.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import mctx
import optax

from memory_planner.agents.network import NetworkConfig, PolicyValue
from memory_planner.agents.self_play import Choice, Position, Record
from memory_planner.games.game import Game, Observation

LOWEST = -1e9


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How hard a move is thought about.

    Attributes:
      simulations: game steps of the search for a move.
      considered: actions that the root tries at most.
    """

    simulations: int = 16
    considered: int = 8

    def choice(
        self,
        params: Any,
        key: jax.Array,
        root: mctx.RootFnOutput,
        recurrent: mctx.RecurrentFn,
        position: Position,
        temperature: jax.Array,
    ) -> Choice:
        """Searches from a root for each lane; `temperature` is [lanes], of the Gumbel noise."""
        output = mctx.gumbel_muzero_policy(
            params,
            key,
            root,
            recurrent,
            num_simulations=self.simulations,
            invalid_actions=~position.legal,
            max_num_considered_actions=self.considered,
            gumbel_scale=temperature[:, None],
        )
        found = output.search_tree.summary().value
        return Choice(output.action.astype(jnp.int32), output.action_weights, found)


@dataclasses.dataclass(frozen=True)
class AlphaZero:
    """A player that searches in the true game; a `learner.Agent`.

    Attributes:
      game: the rules.
      network: its sizes.
      search: how hard it thinks.
      value_weight: of the value's squared error beside the policy's cross-entropy.
    """

    game: Game
    network: NetworkConfig
    search: SearchSettings
    value_weight: float = 1.0

    def init(self, key: jax.Array, observation: Observation) -> Any:
        """Parameters of the network, for observations like this one, without a batch dimension."""
        return PolicyValue(self.network).init(key, observation)

    def choose(
        self, params: Any, key: jax.Array, position: Position, temperature: jax.Array
    ) -> Choice:
        """Searches from each lane's position."""
        logits, value = self._advise(params, position.observation, position.legal)
        root = mctx.RootFnOutput(
            prior_logits=logits, value=value, embedding=(position.states, position.done)
        )
        known = (params, position.problems, position.scale_ns)
        return self.search.choice(known, key, root, self._recurrent, position, temperature)

    def samples(self, record: Record) -> Mapping[str, Any]:
        """One sample for each move that was played."""
        kept = record.playing
        return {
            "observation": jax.tree.map(lambda a: a[kept], record.observation),
            "legal": record.legal[kept],
            "weights": record.weights[kept],
            "return": record.returns()[kept],
        }

    def loss(
        self, params: Any, samples: Mapping[str, Any]
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """Means over samples [M, ...]: the policy's cross-entropy, the value's squared error."""
        logits, value = self._advise(params, samples["observation"], samples["legal"])
        policy = optax.softmax_cross_entropy(logits, samples["weights"]).mean()
        error = jnp.square(value - samples["return"]).mean()
        return policy + self.value_weight * error, {"policy": policy, "value": error}

    def _advise(
        self, params: Any, observation: Observation, legal: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Logits f32[B, A], illegal actions masked, and values f32[B]."""
        apply = jax.vmap(PolicyValue(self.network).apply, in_axes=(None, 0))
        logits, value = cast(tuple[jax.Array, jax.Array], apply(params, observation))
        return jnp.where(legal, logits, LOWEST), value

    def _recurrent(
        self, params: Any, key: jax.Array, action: jax.Array, embedding: Any
    ) -> tuple[mctx.RecurrentFnOutput, Any]:
        """A step of the game; after its end nothing is gained any more."""
        del key
        params, problems, scale_ns = params
        states, over = embedding
        states, reward, done = jax.vmap(self.game.step)(problems, states, action)
        done = over | done
        observation = jax.vmap(self.game.observe)(problems, states)
        legal = jax.vmap(self.game.legal)(problems, states)
        logits, value = self._advise(params, observation, legal)
        output = mctx.RecurrentFnOutput(
            reward=jnp.where(over, 0.0, reward / scale_ns),
            discount=jnp.where(done, 0.0, 1.0),
            prior_logits=logits,
            value=jnp.where(done, 0.0, value),
        )
        return output, (states, done)
