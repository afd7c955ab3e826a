"""Rotary positions, grouped-query attention, and the shapes of Llama 3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from models.llama import (
    Llama,
    LlamaConfig,
    apply_rotary,
    grouped_attention,
    rotary_tables,
)
from tests.models import helpers

HEAD_DIM = 8
positions = st.integers(min_value=0, max_value=2047)


@helpers.quick_jit
def _rotated_score(query, key, query_position, key_position):
    """Returns the score of one query and one key, float32[K] each, at their positions."""
    both = jnp.stack((query, key))[None, :, None, :]
    at = jnp.stack((query_position, key_position))
    turned = apply_rotary(both, *rotary_tables(at, HEAD_DIM, 10000.0))
    return jnp.dot(turned[0, 0, 0], turned[0, 1, 0])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(positions, positions, positions, st.integers(min_value=0, max_value=2**16))
def test_rotary_scores_depend_on_the_distance_only(query_at, key_at, shift, seed):
    query, key = np.random.default_rng(seed).standard_normal((2, HEAD_DIM), np.float32)
    score = _rotated_score(query, key, query_at, key_at)
    shifted = _rotated_score(query, key, query_at + shift, key_at + shift)
    np.testing.assert_allclose(score, shifted, atol=5e-3)


def test_rotary_scores_do_depend_on_the_distance():
    ones = np.ones(HEAD_DIM, np.float32)
    assert abs(_rotated_score(ones, ones, 3, 3) - _rotated_score(ones, ones, 3, 1)) > 0.1


def test_rotary_turns_pairs_as_complex_numbers():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, HEAD_DIM), np.float32)

    @helpers.quick_jit
    def turn(x):
        return apply_rotary(x, *rotary_tables(jnp.arange(5), HEAD_DIM, 500000.0))

    turned = np.asarray(turn(x))
    half = HEAD_DIM // 2
    frequencies = 500000.0 ** (-2 * np.arange(half) / HEAD_DIM)
    turns = np.exp(1j * np.arange(5)[:, None] * frequencies)[None, :, None, :]
    expected = (x[..., :half] + 1j * x[..., half:]) * turns
    np.testing.assert_allclose(turned[..., :half], expected.real, atol=1e-5)
    np.testing.assert_allclose(turned[..., half:], expected.imag, atol=1e-5)


@pytest.mark.parametrize(("kv_heads", "group"), [(4, 2), (1, 8), (8, 1)])
def test_grouped_attention_equals_attention_over_repeated_heads(kv_heads, group):
    rng = np.random.default_rng(0)
    query = rng.standard_normal((2, 6, kv_heads, group, HEAD_DIM), np.float32)
    key, value = rng.standard_normal((2, 2, 6, kv_heads, HEAD_DIM), np.float32)

    heads = query.reshape(2, 6, kv_heads * group, HEAD_DIM)
    keys, values = np.repeat(key, group, axis=2), np.repeat(value, group, axis=2)
    scores = np.einsum("bshk,bthk->bhst", heads, keys) / np.sqrt(HEAD_DIM)
    scores = np.where(np.tril(np.ones((6, 6), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("bhst,bthk->bshk", weights, values)

    grouped = helpers.quick_jit(grouped_attention)(query, key, value)
    np.testing.assert_allclose(grouped.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_keys_and_values_are_never_repeated():
    spec = helpers.small("llama3_tiny", num_heads=16, num_kv_heads=2, d_model=128)
    init, apply = helpers.pure(spec)
    tokens = spec.example_batch(3, seq_len=5)["tokens"]
    jaxpr = jax.make_jaxpr(apply)(jax.eval_shape(init), tokens).jaxpr
    made = {(eqn.primitive.name, var.aval.shape) for eqn in jaxpr.eqns for var in eqn.outvars}
    assert ("reshape", (3, 5, 2, 8)) in made  # key and value
    assert ("reshape", (3, 5, 2, 8, 8)) in made  # query, grouped
    # Repeated, they would be broadcast to the group or gathered to the number of query heads.
    repeating = ("broadcast_in_dim", "gather", "tile", "concatenate")
    assert not {(name, (3, 5, 2, 8, 8)) for name in repeating} & made
    assert not {(name, (3, 5, 16, 8)) for name in ("broadcast_in_dim", "gather", "tile")} & made


def test_shapes_of_a_layer_are_as_published():
    config = LlamaConfig(num_layers=1)
    model = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0)))
    assert isinstance(model.layers, nnx.List)
    layer = model.layers[0]
    assert layer.attn.q_proj.kernel.shape == (4096, 4096)
    assert layer.attn.k_proj.kernel.shape == (4096, 1024)
    assert layer.attn.v_proj.kernel.shape == (4096, 1024)
    assert layer.attn.o_proj.kernel.shape == (4096, 4096)
    assert layer.mlp.gate_proj.kernel.shape == (4096, 14336)
    assert layer.mlp.up_proj.kernel.shape == (4096, 14336)
    assert layer.mlp.down_proj.kernel.shape == (14336, 4096)
    assert layer.attn_norm.epsilon == 1e-5
    assert model.lm_head.kernel.shape == (4096, 128256)
    assert model.embed.embedding.shape == (128256, 4096)


def test_llama_starts_small_and_smaller_where_it_writes_to_the_residual_stream():
    state, _ = helpers.compiled(helpers.small("llama3_tiny"))
    layer = state["layers"][1]
    residual = 0.02 / 2  # 1 / sqrt(2 * layers)
    for kernel, std in [
        (state["embed"]["embedding"], 0.02),
        (state["lm_head"]["kernel"], 0.02),
        (layer["attn"]["q_proj"]["kernel"], 0.02),
        (layer["mlp"]["gate_proj"]["kernel"], 0.02),
        (layer["attn"]["o_proj"]["kernel"], residual),
        (layer["mlp"]["down_proj"]["kernel"], residual),
    ]:
        assert float(np.std(kernel[...])) == pytest.approx(std, rel=0.1)


def test_head_is_not_tied_and_layers_differ():
    state, _ = helpers.compiled(helpers.small("llama3_tiny"))
    embedding = np.asarray(state["embed"]["embedding"][...])
    assert np.abs(np.asarray(state["lm_head"]["kernel"][...]).T - embedding).max() > 0.01
    first, second = (
        np.asarray(state["layers"][i]["mlp"]["up_proj"]["kernel"][...]) for i in (0, 1)
    )
    assert np.abs(first - second).max() > 0.01


def test_train_and_eval_mode_trace_the_same_program():
    spec = helpers.small("llama3_tiny")
    tokens = helpers.model_input(spec)
    jaxprs = []
    for mode in (Llama.train, Llama.eval):
        model = nnx.eval_shape(lambda: Llama(LlamaConfig(num_layers=1), nnx.Rngs(0)))
        mode(model)
        graph, state = nnx.split(model)
        forward = jax.make_jaxpr(lambda state, x, graph=graph: nnx.merge(graph, state)(x))
        jaxprs.append(str(forward(state, tokens)))
    assert jaxprs[0] == jaxprs[1]
