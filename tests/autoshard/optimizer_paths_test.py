"""Arrays of an optimizer's state, and the parameters that they belong to."""

import jax
import jax.numpy as jnp
import optax

from autoshard.optimizer_paths import mirrored_paths, parameter_of


def test_the_longest_end_counts() -> None:
    parameters = {"kernel", "layers/kernel", "norm"}
    assert parameter_of("0/mu/layers/kernel", parameters) == "layers/kernel"
    assert parameter_of("0/mu/other/kernel", parameters) == "kernel"
    assert parameter_of("norm", parameters) == "norm"
    assert parameter_of("0/mu/layernorm", parameters) is None
    assert parameter_of("0/count", parameters) is None


def test_counts_and_factored_moments_mirror_nothing() -> None:
    params = {"w": jnp.zeros((256, 128)), "layers": {"w": jnp.zeros((3,))}}
    shapes = {"w": (256, 128), "layers/w": (3,)}
    adam = jax.eval_shape(optax.adam(1e-3).init, params)
    assert mirrored_paths(adam, shapes) == (None, "layers/w", "w", "layers/w", "w")
    factored = jax.eval_shape(optax.scale_by_factored_rms().init, params)
    found = mirrored_paths(factored, shapes)
    assert "w" not in found and "layers/w" in found  # v_row and v_col of w have other shapes
