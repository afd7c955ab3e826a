"""The network is blind to the buffers' numbers and to padding."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memory_planner.agents.network import NetworkConfig, PolicyValue, expanded
from memory_planner.games.game import Observation

FEATURES = 5
MARK = 4


def observation(count: int, padding: int = 0, seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    buffers = rng.normal(size=(count, FEATURES)).astype(np.float32)
    buffers[:, MARK] = np.arange(count) == 1
    padded = np.pad(buffers, ((0, padding), (0, 0)))
    return Observation(padded, np.arange(count + padding) < count, np.ones(3, np.float32))


def network(marked_feature: int | None) -> Callable[[Observation], tuple[np.ndarray, np.ndarray]]:
    """Logits and value by a network of random weights."""
    model = PolicyValue(NetworkConfig(8, 1, 2, choices=3, marked_feature=marked_feature))
    params = jax.jit(model.init)(jax.random.key(0), observation(4))
    # The last layers begin at zero, where everything is equal.
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda a: noise.normal(size=a.shape).astype(a.dtype), params)
    apply = jax.jit(model.apply)
    return lambda seen: jax.tree.map(np.asarray, apply(params, seen))


@pytest.mark.parametrize("marked_feature", [None, MARK])
def test_renumbered_buffers_renumber_the_logits(marked_feature: int | None) -> None:
    advise = network(marked_feature)
    seen = observation(4)
    order = np.array([2, 0, 3, 1])
    other = Observation(seen.buffers[order], seen.mask[order], seen.summary)
    logits, value = advise(seen)
    new_logits, new_value = advise(other)
    np.testing.assert_allclose(value, new_value, rtol=1e-4)
    rows = logits.reshape(-1, 3)
    assert np.ptp(rows) > 0.1
    wanted = rows[order] if marked_feature is None else rows
    np.testing.assert_allclose(new_logits.reshape(-1, 3), wanted, rtol=1e-3, atol=1e-4)


def test_one_set_of_weights_serves_any_number_of_buffers_and_padding_changes_nothing() -> None:
    advise = network(None)
    logits, value = advise(observation(6))
    padded_logits, padded_value = advise(observation(6, padding=3))
    assert padded_logits.shape == (27,)
    np.testing.assert_allclose(padded_logits[:18], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(padded_value, value, rtol=1e-4)


def test_no_buffers_at_all_still_have_a_value() -> None:
    advise = network(None)
    _, value = advise(observation(0, padding=2))
    assert np.isfinite(value)


def test_features_are_seen_relative_to_the_largest_and_as_logarithms() -> None:
    rows = np.array([[0.002, -1.0], [0.001, 0.5], [9.0, 9.0]], np.float32)
    seen = np.asarray(expanded(jnp.asarray(rows), jnp.array([True, True, False])))[:2]
    np.testing.assert_allclose(seen[:, 2:4], np.array([[1, -1], [0.5, 0.5]]), rtol=1e-6)
    np.testing.assert_allclose(seen[0, 4:], np.log([3, 1 / 1001]) / 7, rtol=1e-5)
