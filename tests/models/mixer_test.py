"""An MLP-Mixer against its equations in numpy, and its published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.mixer import MixerBlock, MixerConfig
from tests.models import helpers

CONFIG = MixerConfig(
    image_size=6, patch_size=2, d_model=5, num_layers=1, hidden_tokens=7, hidden_channels=11
)


def random_variables(block: MixerBlock, x: jax.Array) -> dict:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def test_block_is_as_published():
    block = MixerBlock(CONFIG)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 9, 5), np.float32))
    variables = random_variables(block, x)
    weights = jax.tree.map(np.float64, variables["params"])

    def norm(x, w):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w["scale"] + w["bias"]
        )

    def mlp(x, w):
        hidden = x @ w["up"]["kernel"] + w["up"]["bias"]
        hidden *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        return hidden @ w["down"]["kernel"] + w["down"]["bias"]

    expected = np.float64(x)
    patches = norm(expected, weights["ln_1"]).transpose(0, 2, 1)
    expected = expected + mlp(patches, weights["token_mixing"]).transpose(0, 2, 1)
    expected = expected + mlp(norm(expected, weights["ln_2"]), weights["channel_mixing"])
    found = helpers.quick_jit(block.apply)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "patches", "width", "tokens", "channels"),
    [("mixer_b16", 196, 768, 384, 3072), ("mixer_l16", 196, 1024, 512, 4096)],
)
def test_kernels_are_shaped_as_published(name, patches, width, tokens, channels):
    init, _ = helpers.pure(models.get(name, num_layers=1, scan_layers=False))
    block = jax.eval_shape(init)["params"]["block_0"]
    assert block["token_mixing"]["up"]["kernel"].shape == (patches, tokens)
    assert block["channel_mixing"]["up"]["kernel"].shape == (width, channels)


def test_the_order_of_patches_matters():
    spec = helpers.small("mixer_tiny")
    variables, apply = helpers.compiled(spec)
    image = np.asarray(helpers.model_input(spec))
    rolled = np.roll(image, shift=(4, 8), axis=(1, 2))  # whole patches of 4
    first, second = (np.asarray(apply(variables, jnp.asarray(x))) for x in (image, rolled))
    assert np.abs(first - second).max() > 1e-3
