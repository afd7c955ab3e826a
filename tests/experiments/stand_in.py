"""A small sharded model with the interface of `autoshard.compile`'s result, to test the runner.

It predicts the next byte from the last one by a table, trained by plain gradient descent.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from autoshard.state import TrainState


@dataclasses.dataclass(frozen=True)
class StandInPlan:
    mesh: str

    def explain(self) -> str:
        return f"a stand-in plan for {self.mesh}"

    def to_json(self) -> dict[str, Any]:
        return {"mesh": self.mesh}

    def save(self, path: pathlib.Path) -> None:
        path.write_text(json.dumps(self.to_json()))


@jax.jit  # Compiled once for all the runs of the tests, as the functions below.
def _loss(table: jax.Array, tokens: Any) -> jax.Array:
    logits = jax.nn.log_softmax(table[tokens[:, :-1]])
    return -jnp.mean(jnp.take_along_axis(logits, tokens[:, 1:, None], -1))


@jax.jit
def _new(rng: jax.Array) -> TrainState:
    table = 0.01 * jax.random.normal(rng, (256, 256))
    return TrainState(jnp.int32(0), {"table": table}, {}, {}, rng)


@functools.partial(jax.jit, donate_argnums=0)
def _update(state: TrainState, tokens: Any) -> tuple[TrainState, dict]:
    loss, grad = jax.value_and_grad(_loss)(state.params["table"], tokens)
    new = dataclasses.replace(
        state, step=state.step + 1, params={"table": state.params["table"] - 50.0 * grad}
    )
    return new, {"loss": loss, "grad_norm": jnp.linalg.norm(grad)}


class StandIn:
    """A table sharded over the first axis of `mesh`, the batch likewise.

    Args:
      mesh: of real devices.
      nan_at: the step whose loss is NaN.
      bad_grad_at: the step whose gradient norm is infinite, its loss finite.
      on_step: called with the number of each step after it.
    """

    def __init__(
        self,
        mesh: Mesh,
        nan_at: int | None = None,
        bad_grad_at: int | None = None,
        on_step: Callable[[int], object] = lambda step: None,
    ):
        self.mesh = mesh
        self.plan = StandInPlan(str(dict(mesh.shape)))
        self.nan_at = nan_at
        self.bad_grad_at = bad_grad_at
        self.on_step = on_step
        self._table = NamedSharding(mesh, P(mesh.axis_names[0]))
        self._whole = NamedSharding(mesh, P())

    @property
    def abstract_state(self) -> TrainState:
        shapes = jax.eval_shape(_new, jax.random.key(0))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=self._table if x.ndim else self._whole
            ),
            shapes,
        )

    @property
    def abstract_user_state(self) -> TrainState:
        return self.abstract_state

    def to_user_state(self, state: TrainState) -> TrainState:
        return state

    def from_user_state(self, state: TrainState) -> TrainState:
        return state

    def init(self, rng: jax.Array, batch: Any = None) -> TrainState:
        return jax.device_put(_new(rng), jax.tree.map(lambda x: x.sharding, self.abstract_state))

    def step(self, state: TrainState, batch: dict[str, np.ndarray]) -> tuple[TrainState, dict]:
        state, metrics = _update(state, batch["tokens"])
        step = int(state.step)
        if step == self.nan_at:
            metrics["loss"] = jnp.float32(jnp.nan)
        if step == self.bad_grad_at:
            metrics["grad_norm"] = jnp.float32(jnp.inf)
        self.on_step(step)
        return state, metrics

    def eval(self, state: TrainState, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {"loss": _loss(state.params["table"], batch["tokens"])}
