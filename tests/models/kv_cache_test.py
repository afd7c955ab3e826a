"""Decoding by a cache: the same logits and tokens as the whole model over all tokens so far."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import models
from models.kv_cache import cached_attention, empty, write
from models.llama import grouped_attention
from tests.models import helpers

BATCH, PROMPT, CAPACITY = 2, 5, 12

# Experts take all tokens: which ones they drop depends on what is read together.
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2_tiny": {"num_layers": 2},
    "llama3_tiny": {},
    "mixtral_tiny": {"capacity_factor": 4.0},
}


def spec_of(name: str, **fields: Any) -> models.ModelSpec:
    return helpers.small(name, **{**DECODERS[name], **fields})


def methods(spec: models.ModelSpec) -> tuple[Any, Any]:
    """Returns pure functions: `init() -> variables`, and `call(variables, name, *arguments)`."""
    model: Any = spec.build()
    init, _ = helpers.pure(spec)
    if isinstance(model, nn.Module):
        return init, lambda variables, name, *args: model.apply(variables, *args, method=name)
    graph, _ = nnx.split(nnx.eval_shape(lambda: model(nnx.Rngs(0))))
    return init, lambda state, name, *args: getattr(nnx.merge(graph, state), name)(*args)


def sharpened(variables: Any) -> Any:
    """Parameters so large that logits depend on all tokens before their position."""
    return jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, variables)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens_and_logits_are_those_of_the_whole_model(name, scan_layers):
    spec = spec_of(name, scan_layers=scan_layers)
    init, call = methods(spec)
    variables = sharpened(helpers.quick_jit(init)())
    jitted = helpers.quick_jit(call, static_argnums=1)
    whole, prefill, decode = (
        functools.partial(jitted, variables, name) for name in ("__call__", "prefill", "decode")
    )
    tokens = np.zeros((BATCH, CAPACITY), np.int32)
    tokens[:, :PROMPT] = np.random.default_rng(0).integers(0, helpers.NUM_TOKENS, (BATCH, PROMPT))

    logits, cache = prefill(tokens[:, :PROMPT], empty(spec.cache_spec(BATCH, CAPACITY)))
    for at in range(PROMPT, CAPACITY):
        # No position sees a later one: what fills the rest does not matter.
        expected = np.asarray(whole(tokens))[:, at - 1]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(logits.argmax(axis=-1), expected.argmax(axis=-1))
        tokens[:, at] = logits.argmax(axis=-1)
        logits, cache = decode(tokens[:, at], jnp.int32(at), cache)
    assert len(np.unique(tokens[:, PROMPT:])) > 2, tokens


def abstract_calls(spec: models.ModelSpec, capacity: int = CAPACITY) -> dict[str, Any]:
    """The arguments of the three methods, as shapes."""
    cache = spec.cache_spec(BATCH, capacity)
    tokens, token, position = (
        jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((BATCH, PROMPT), (BATCH,), ())
    )
    return {"prefill": (tokens, cache), "decode": (token, position, cache)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_shapes_and_types(name, scan_layers, dtype):
    spec = spec_of(name, scan_layers=scan_layers, dtype=dtype)
    init, call = methods(spec)
    variables, like = jax.eval_shape(init), spec.cache_spec(BATCH, CAPACITY)
    one_layer = (BATCH, CAPACITY, 4, 8)
    leaves = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(like)]
    assert leaves == [((2, *one_layer), dtype)] * 2 if scan_layers else [(one_layer, dtype)] * 4
    for method, arguments in abstract_calls(spec).items():
        run = functools.partial(lambda method, *given: call(given[0], method, *given[1:]), method)
        logits, cache = jax.eval_shape(run, variables, *arguments)
        assert logits.shape == (BATCH, helpers.NUM_TOKENS)
        assert logits.dtype == dtype
        assert cache == like


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_an_empty_cache_needs_no_parameters(name, scan_layers):
    spec = spec_of(name, scan_layers=scan_layers)
    model: Any = spec.build()
    if not isinstance(model, nn.Module):
        build = model
        model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    cache = model.init_cache(BATCH, CAPACITY)
    assert jax.eval_shape(lambda: cache) == spec.cache_spec(BATCH, CAPACITY)
    assert not any(leaf.any() for leaf in jax.tree.leaves(cache))


@pytest.mark.parametrize("method", ["prefill", "decode"])
@pytest.mark.parametrize("name", DECODERS)
def test_scanned_programs_do_not_grow_with_depth_and_write_each_cache_once(name, method):
    def equations(num_layers: int) -> list[str]:
        spec = spec_of(name, num_layers=num_layers, scan_layers=True)
        init, call = methods(spec)
        run = lambda state, *given: call(state, method, *given)  # noqa: E731
        jaxpr = jax.make_jaxpr(run)(jax.eval_shape(init), *abstract_calls(spec)[method])
        return str(jaxpr).splitlines()

    shallow = equations(2)
    assert len(shallow) == len(equations(5))
    assert sum("dynamic_update_slice" in line for line in shallow) == 2  # keys, values


def test_cached_attention_is_the_last_row_of_attention_over_all():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731
    query, key, value = draw(2, 6, 3, 2, 4), draw(2, 6, 3, 4), draw(2, 6, 3, 4)
    for position in (0, 2, 5):
        # Positions from the token's on hold what must not be seen.
        past = {"key": key.at[:, position:].set(1e4), "value": value.at[:, position:].set(1e4)}
        here = slice(position, position + 1)
        new = {"key": key[:, here], "value": value[:, here]}
        found = cached_attention(query[:, position], new, past, jnp.int32(position))
        expected = grouped_attention(query, key, value)[:, position]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", [0, 1, 3])
def test_new_positions_go_where_they_belong(position):
    cache = {"key": jnp.zeros((2, 1, 4, 1, 1)), "value": jnp.zeros((2, 1, 4, 1, 1))}
    new = {"key": jnp.ones((2, 1, 1, 1, 1)), "value": 2 * jnp.ones((2, 1, 1, 1, 1))}
    written = write(cache, new, jnp.int32(position))
    for name, value in (("key", 1), ("value", 2)):
        expected = np.zeros((2, 4))
        expected[:, position] = value
        np.testing.assert_array_equal(written[name][:, 0, :, 0, 0], expected)


@pytest.mark.parametrize("name", DECODERS)
def test_a_prompt_longer_than_the_cache_is_refused(name):
    spec = spec_of(name)
    init, call = methods(spec)
    run = lambda state, *given: call(state, "prefill", *given)  # noqa: E731
    with pytest.raises(ValueError, match="5 tokens do not fit in a cache of capacity 4"):
        jax.eval_shape(run, jax.eval_shape(init), *abstract_calls(spec, capacity=4)["prefill"])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 8), "batch_size=0 must be at least 1"),
        ((2, 0), "capacity=0 is outside 1..max_seq_len=16"),
        ((2, 17), "build the model with max_seq_len=17"),
    ],
)
def test_sizes_of_a_cache_that_cannot_be_are_refused(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        spec_of(name).cache_spec(*sizes)


@pytest.mark.parametrize("name", models.names())
def test_a_model_says_whether_it_can_decode(name):
    spec = models.get(name)
    assert spec.can_decode == (spec.family in ("gpt2", "llama", "mixtral"))
    if not spec.can_decode:
        with pytest.raises(ValueError, match=f"{name} is of the family '{spec.family}'"):
            spec.cache_spec(1, 8)
