"""Batch normalisation's two modes, and the shapes of ResNet-50."""

import jax
import jax.numpy as jnp
import numpy as np

import models
from models.resnet import ConvNorm
from tests.models import helpers


def test_training_moves_the_running_statistics_and_evaluation_does_not():
    spec = helpers.small("resnet_tiny")
    model, image = helpers.linen(spec), helpers.model_input(spec)
    variables, _ = helpers.compiled(spec)

    @helpers.quick_jit
    def run(variables):
        return tuple(
            model.apply(variables, image, train=train, mutable=["batch_stats"])[1]
            for train in (True, False)
        )

    trained, evaluated = run(variables)
    for before, moved, kept in zip(
        jax.tree.leaves(variables["batch_stats"]),
        jax.tree.leaves(trained["batch_stats"]),
        jax.tree.leaves(evaluated["batch_stats"]),
        strict=True,
    ):
        assert np.abs(np.asarray(moved) - np.asarray(before)).max() > 0
        np.testing.assert_array_equal(kept, before)


def test_training_normalises_by_the_batch():
    rng = np.random.default_rng(0)
    image = 3 + 2 * rng.standard_normal((4, 6, 6, 3), np.float32)
    layer = ConvNorm(features=8, kernel_size=3, stride=1, dtype=jnp.dtype("float32"))

    @helpers.quick_jit
    def run(image):
        variables = layer.init(jax.random.key(1), image)
        return layer.apply(variables, image, train=True, mutable=["batch_stats"])[0]

    normal = np.asarray(run(image))
    np.testing.assert_allclose(normal.mean(axis=(0, 1, 2)), np.zeros(8), atol=1e-5)
    np.testing.assert_allclose(normal.std(axis=(0, 1, 2)), np.ones(8), atol=1e-3)


def test_resnet50_halves_the_image_as_published():
    spec = models.get("resnet50")
    model = helpers.linen(spec)

    def run(image):
        variables = model.init(jax.random.key(0), image)
        return model.apply(variables, image, capture_intermediates=True, mutable=["intermediates"])

    logits, captured = jax.eval_shape(run, spec.example_batch(2)["image"])
    outputs = captured["intermediates"]
    assert logits.shape == (2, 1000)
    assert outputs["stem"]["__call__"][0].shape == (2, 112, 112, 64)
    last = {0: 2, 1: 3, 2: 5, 3: 2}
    shapes = [outputs[f"stage_{s}_block_{b}"]["__call__"][0].shape for s, b in last.items()]
    assert shapes == [(2, 56, 56, 256), (2, 28, 28, 512), (2, 14, 14, 1024), (2, 7, 7, 2048)]
