"""A model that computes in another dtype than was asked for is told of."""

import jax
import optax
from flax import linen as nn
from flax import nnx

import autoshard


class Tagged(nnx.Module):
    """A table that fixes its dtype, and a layer that follows it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(16, 8, rngs=rngs)
        self.out = nnx.Linear(8, 16, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.out(self.embed(tokens))


class Followed(nn.Module):
    """Layers that follow their inputs."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        return nn.Dense(16)(nn.Embed(16, 8)(tokens))


def notes(model: object, dtype: str | None) -> str:
    batch = {"tokens": jax.ShapeDtypeStruct((8, 4), "int32")}
    plan = autoshard.compile(
        model, "data=8", batch=batch, optimizer=optax.sgd(0.1), rules="data", dtype=dtype
    ).plan
    return " ".join(plan.notes)


def test_products_that_stay_wide_are_told_of() -> None:
    assert "1 of 1 products are computed in float32 though dtype='bfloat16'" in notes(
        Tagged, "bfloat16"
    )


def test_nothing_is_said_where_there_is_nothing_to_say() -> None:
    assert "float32" not in notes(Followed(), "bfloat16")
    assert "float32" not in notes(Tagged, None)
