"""GPT-2, ViT and the block they share, against linen's own attention and what is published."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import models
from models.transformer import SelfAttention, causal_mask
from tests.models import helpers


@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_that_of_linen(causal):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 6, 16), np.float32))
    mask = causal_mask(6) if causal else None
    normal = nn.initializers.normal(0.3)
    ours = SelfAttention(16, 4, dropout_rate=0.0, kernel_init=normal, out_kernel_init=normal)
    theirs = nn.MultiHeadDotProductAttention(num_heads=4)
    # Both name their projections query, key, value and out.
    variables = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32),
        jax.eval_shape(ours.init, jax.random.key(0), x),
    )

    @helpers.quick_jit
    def both(variables):
        return ours.apply(variables, x, mask), theirs.apply(variables, x, mask=mask)

    actual, expected = both(variables)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_attention_kernels_are_shaped_by_heads():
    init, _ = helpers.pure(models.get("gpt2_small", num_layers=1))
    attention = jax.eval_shape(init)["params"]["h_0"]["attn"]
    for name in ("query", "key", "value"):
        assert attention[name]["kernel"].shape == (768, 12, 64)
        assert attention[name]["bias"].shape == (12, 64)
    assert attention["out"]["kernel"].shape == (12, 64, 768)
    assert attention["out"]["bias"].shape == (768,)


def test_gpt2_is_initialised_as_published():
    params = helpers.compiled(helpers.small("gpt2_tiny"))[0]["params"]
    block = params["h_0"]
    residual = 0.02 / math.sqrt(2)  # two branches in the only layer
    for kernel, std in [
        (params["wte"]["embedding"], 0.02),
        (params["wpe"]["embedding"], 0.02),
        (block["attn"]["query"]["kernel"], 0.02),
        (block["mlp"]["up"]["kernel"], 0.02),
        (block["attn"]["out"]["kernel"], residual),
        (block["mlp"]["down"]["kernel"], residual),
    ]:
        assert float(np.std(kernel)) == pytest.approx(std, rel=0.1)


def test_gpt2_refuses_more_tokens_than_positions():
    model = helpers.linen(helpers.small("gpt2_tiny"))
    with pytest.raises(ValueError, match="17 tokens, but max_seq_len=16"):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 17), jnp.int32))


def test_gpt2_logits_have_the_padded_width():
    spec = helpers.small("gpt2_tiny", vocab_size=250, pad_vocab_to=64)
    init, apply = helpers.pure(spec)
    variables = jax.eval_shape(init)
    logits = jax.eval_shape(apply, variables, spec.example_batch(2)["tokens"])
    assert logits.shape == (2, 16, 256)
    assert variables["params"]["wte"]["embedding"].shape == (256, 32)


@pytest.mark.parametrize(("pooling", "length"), [("mean", 16), ("class_token", 17)])
def test_vit_sequence_is_the_patches_and_a_class_token_if_asked(pooling, length):
    spec = helpers.small("vit_tiny", pooling=pooling)
    init, apply = helpers.pure(spec)
    variables = jax.eval_shape(init)
    assert variables["params"]["positions"].shape == (1, length, 64)
    assert ("class_token" in variables["params"]) == (pooling == "class_token")
    logits = jax.eval_shape(apply, variables, spec.example_batch(2)["image"])
    assert logits.shape == (2, 16)


def test_vit_with_mean_pooling_and_no_positions_ignores_the_order_of_patches():
    spec = helpers.small("vit_tiny")
    variables, apply = helpers.compiled(spec)
    params = variables["params"]
    unplaced = {"params": {**params, "positions": jnp.zeros_like(params["positions"])}}
    image = np.asarray(helpers.model_input(spec))
    rolled = np.roll(image, shift=(4, 8), axis=(1, 2))  # whole patches of 4
    expected = apply(unplaced, jnp.asarray(image))
    np.testing.assert_allclose(apply(unplaced, jnp.asarray(rolled)), expected, atol=1e-5)
    assert np.abs(np.asarray(apply(variables, jnp.asarray(image)) - expected)).max() > 1e-5
