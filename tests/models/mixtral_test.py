"""The choice of experts, their queues, and that an expert layer is the weighted sum of experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.mixtral import ExpertMLP, MixtralConfig, choose_experts, places

# Sizes that no two dimensions share.
CONFIG = MixtralConfig(d_model=12, num_heads=2, num_kv_heads=1, d_ff=10, num_experts=5)
NO_DROPS = 5 / 2


def layer(**fields):
    return ExpertMLP(dataclasses.replace(CONFIG, **fields), nnx.Rngs(0))


def by_hand(mlp, x, taken=None):
    """Token by token in numpy; `taken`: bool[B, S, E], which choices found a place."""
    router, gate, up, down = (
        np.asarray(getattr(mlp, f"{name}_kernel")[...], np.float64)
        for name in ("router", "gate", "up", "down")
    )
    result = np.zeros(x.shape)
    for at in np.ndindex(x.shape[:2]):
        logits = x[at] @ router
        best = np.argsort(-logits)[:2]
        weights = np.exp(logits[best]) / np.exp(logits[best]).sum()
        for expert, weight in zip(best, weights, strict=True):
            if taken is None or taken[(*at, expert)]:
                gated = x[at] @ gate[expert]
                hidden = gated / (1 + np.exp(-gated)) * (x[at] @ up[expert])
                result[at] += weight * (hidden @ down[expert])
    return result


@pytest.mark.parametrize("group_size", [4, 12, 64])
def test_layer_is_the_weighted_sum_of_each_tokens_experts(group_size):
    mlp = layer(group_size=group_size, capacity_factor=NO_DROPS)
    x = 30 * np.random.default_rng(0).standard_normal((3, 12, 12), np.float32)
    expected = by_hand(mlp, x)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(jax.jit(mlp)(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-6)


def test_tokens_without_a_place_skip_the_expert():
    mlp = layer(capacity_factor=0.5, group_size=6)
    assert mlp.config.capacity(6) == 2
    x = 30 * np.random.default_rng(1).standard_normal((2, 12, 12), np.float32)
    logits = x @ np.asarray(mlp.router_kernel[...])
    chosen = logits >= np.sort(logits, axis=-1)[..., -2:-1]
    in_groups = chosen.reshape(2, 2, 6, 5)
    taken = (in_groups & (np.cumsum(in_groups, axis=2) <= 2)).reshape(chosen.shape)
    assert chosen.sum() > taken.sum() > 0
    expected = by_hand(mlp, x, taken)
    assert np.abs(expected - by_hand(mlp, x)).max() > 1e-2
    np.testing.assert_allclose(jax.jit(mlp)(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-6)


def test_choice_of_experts_and_weights():
    chosen, weights = choose_experts(jnp.log(jnp.array([[1.0, 6.0, 3.0, 2.0]])), 2)
    np.testing.assert_array_equal(chosen, [[False, True, True, False]])
    np.testing.assert_allclose(weights, [[0, 2 / 3, 1 / 3, 0]], rtol=1e-6)


def test_equal_scores_choose_two_experts_all_the_same():
    chosen, weights = choose_experts(jnp.zeros((3, 4)), 2)
    np.testing.assert_array_equal(chosen.sum(axis=-1), [2, 2, 2])
    np.testing.assert_allclose(weights.sum(axis=-1), np.ones(3))


def test_queues_are_first_come_first_served():
    chosen = jnp.array([[1, 0], [1, 1], [1, 1], [0, 1]], bool)[None, None]
    found = np.asarray(places(chosen, 2))[0, 0]
    expected = np.zeros((4, 2, 2), bool)
    expected[0, 0, 0] = expected[1, 0, 1] = expected[1, 1, 0] = expected[2, 1, 1] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("factor", "tokens", "capacity"), [(1.0, 64, 16), (1.25, 64, 20), (4.0, 64, 64), (9.0, 8, 8)]
)
def test_capacity(factor, tokens, capacity):
    assert MixtralConfig(capacity_factor=factor).capacity(tokens) == capacity


def test_lengths_are_multiples_of_the_group():
    with pytest.raises(ValueError, match="12 tokens are no multiple of group_size=8"):
        layer(group_size=8)(jnp.zeros((1, 12, 12)))


def test_experts_keep_batch_and_groups_apart():
    mlp = layer(group_size=4)
    jaxpr = jax.make_jaxpr(mlp)(jnp.zeros((7, 12, 12))).jaxpr
    products = [e.outvars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 6
    assert all(7 in shape and 3 in shape for shape in products), products
