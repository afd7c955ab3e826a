"""The training state: one pytree, every leaf of which has a place on the mesh."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a training step reads and writes.

    Attributes:
      step: int32[], the number of optimizer updates applied so far.
      params: the model's parameters, in the user's own tree (linen's `params` collection, or the
        nested dict of an nnx module's `Param` variables).
      opt_state: the optax state of `params`.
      model_state: the model's other variables (batch statistics, nnx rng counters); empty if none.
      rng: a typed PRNG key, folded with `step` before use, so that a resumed run draws what the
        uninterrupted one would have drawn.
    """

    step: Any
    params: Any
    opt_state: Any
    model_state: Any
    rng: Any
