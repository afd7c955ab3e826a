"""What holds for every family: shapes, types, initial loss, and that all parameters are trained."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from tests.models import helpers

TEXT = ("gpt2_tiny", "llama3_tiny", "mixtral_tiny")


def _width(name: str) -> int:
    return helpers.NUM_TOKENS if name in TEXT else helpers.NUM_CLASSES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", helpers.SMALL)
def test_logits_have_the_compute_dtype_and_parameters_are_float32(name, dtype):
    spec = helpers.small(name, dtype=dtype)
    batch = spec.example_batch(2)
    init, apply = helpers.pure(spec)
    variables = jax.eval_shape(init)
    logits = jax.eval_shape(apply, variables, batch[spec.config.input_key])
    leading = batch["tokens"].shape if "tokens" in batch else (2,)
    assert logits.shape == (*leading, _width(name))
    assert logits.dtype == dtype
    floating = [x for x in jax.tree.leaves(variables) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert floating
    assert all(x.dtype == jnp.float32 for x in floating)


@pytest.mark.parametrize("name", ["gpt2_tiny", "mlp", "vit_tiny", "mixer_tiny", "resnet_tiny"])
def test_linen_parameters_carry_no_metadata(name):
    variables = jax.eval_shape(helpers.pure(helpers.small(name))[0])
    leaves = jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
    assert not any(isinstance(leaf, nn.meta.AxisMetadata) for leaf in leaves)


@pytest.mark.parametrize("name", ["llama3_tiny", "mixtral_tiny"])
def test_nnx_parameters_carry_no_sharding_metadata(name):
    state = jax.eval_shape(helpers.pure(helpers.small(name))[0])
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert leaves
    assert not any("out_sharding" in leaf.get_metadata() for leaf in leaves)


@pytest.mark.parametrize("name", helpers.SMALL)
def test_first_step_knows_nothing_and_reaches_every_parameter(name):
    spec = helpers.small(name)
    variables, _ = helpers.compiled(spec)
    _, apply = helpers.pure(spec)
    batch = helpers.random_batch(spec)

    @helpers.quick_jit
    def value_and_grad(variables):
        def loss(variables):
            return helpers.cross_entropy(apply(variables, batch[spec.config.input_key]), batch)

        return jax.value_and_grad(loss)(variables)

    value, gradients = value_and_grad(variables)
    assert float(value) == pytest.approx(math.log(_width(name)), rel=0.5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        where, gradient = jax.tree_util.keystr(path), np.asarray(leaf)
        assert np.isfinite(gradient).all(), where
        # Softmax ignores what a key's bias adds to a whole row of scores, and LayerNorm what the
        # last bias over patches adds to all channels.
        if re.search(r"('key'|'token_mixing'\]\['down')\]\['bias'", where):
            assert np.abs(gradient).max() < 1e-6, where
        else:
            assert np.abs(gradient).max() > 1e-8, where


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("changed", [1, 9, 15])
def test_a_token_is_not_seen_before_its_position(name, changed):
    spec = helpers.small(name)
    variables, apply = helpers.compiled(spec)
    tokens = np.array(helpers.model_input(spec))
    other = tokens.copy()
    other[:, changed] = (tokens[:, changed] + 1) % helpers.NUM_TOKENS
    first, second = (np.asarray(apply(variables, jnp.asarray(x))) for x in (tokens, other))
    np.testing.assert_array_equal(first[:, :changed], second[:, :changed])
    # It is seen from there on, by every later position.
    assert (np.abs(first - second)[:, changed:].max(axis=-1) > 0).all()


@pytest.mark.parametrize("name", ["mlp", "vit_tiny", "mixer_tiny", "resnet_tiny"])
def test_examples_do_not_influence_each_other(name):
    spec = helpers.small(name)
    variables, apply = helpers.compiled(spec)
    x = np.asarray(helpers.model_input(spec))
    together = np.asarray(apply(variables, jnp.asarray(x)))
    alone = np.asarray(apply(variables, jnp.asarray(x[[0, 0]])))
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5, atol=1e-6)
    assert np.abs(together[1] - alone[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["gpt2_tiny", "vit_tiny"])
def test_dropout_draws_only_when_not_deterministic(name):
    # Dropout has no parameters: those of the model without it serve.
    variables, _ = helpers.compiled(helpers.small(name))
    spec = helpers.small(name, dropout_rate=0.5)
    model = helpers.linen(spec)
    x = helpers.model_input(spec)

    @functools.partial(helpers.quick_jit, static_argnames="deterministic")
    def run(seed, deterministic):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, x, deterministic=deterministic, rngs=rngs)

    first, again, other = (np.asarray(run(seed, deterministic=False)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    plain, plain_other = (np.asarray(run(seed, deterministic=True)) for seed in (0, 1))
    np.testing.assert_array_equal(plain, plain_other)
    assert np.abs(first - plain).max() > 1e-3


@pytest.mark.parametrize("name", ["gpt2_tiny", "vit_tiny"])
def test_deterministic_is_the_default_and_needs_no_random_stream(name):
    x = helpers.model_input(helpers.small(name))
    jaxprs = []
    for rate in (0.0, 0.5):
        init, apply = helpers.pure(helpers.small(name, dropout_rate=rate))
        jaxprs.append(str(jax.make_jaxpr(apply)(jax.eval_shape(init), x)))
    assert jaxprs[0] == jaxprs[1]
