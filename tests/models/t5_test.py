"""Relative positions, what each position sees, and that both stacks can be scanned over."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from models.t5 import relative_buckets
from tests.models import helpers

SMALL = {"max_seq_len": 16, "num_layers": 2}


def spec_of(**fields):
    return models.get("t5_tiny", **{**SMALL, **fields})


def batch_of(spec):
    rng = np.random.default_rng(0)
    batch = spec.example_batch(2)
    return {k: jnp.asarray(rng.integers(0, 256, x.shape), jnp.int32) for k, x in batch.items()}


@functools.cache
def variables_of(spec):
    batch = batch_of(spec)
    init = helpers.quick_jit(spec.build().init)
    return init(jax.random.key(0), batch["tokens"], batch["decoder_tokens"])


def abstract_variables(spec):
    batch = batch_of(spec)
    init = spec.build().init
    return jax.eval_shape(init, jax.random.key(0), batch["tokens"], batch["decoder_tokens"])


def logits_of(spec, variables, batch):
    return spec.build().apply(variables, batch["tokens"], batch["decoder_tokens"])


def loss_and_gradients(spec, variables, batch):
    def loss(variables):
        logits = logits_of(spec, variables, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return losses.mean()

    return helpers.quick_jit(jax.value_and_grad(loss))(variables)


@functools.cache
def plain_loss_and_gradients():
    spec = spec_of()
    return loss_and_gradients(spec, variables_of(spec), batch_of(spec))


def test_buckets_are_as_published():
    distance = jnp.array([0, 1, 7, 8, 15, 16, 127, 128, 999, -1, -7, -8, -127, -999])
    both = relative_buckets(distance, 32, 128, both_ways=True)
    expected = [0, 17, 23, 24, 25, 26, 31, 31, 31, 1, 7, 8, 15, 15]
    np.testing.assert_array_equal(both, expected)
    back = relative_buckets(-distance, 32, 128, both_ways=False)
    np.testing.assert_array_equal(back, [0, 1, 7, 8, 15, 16, 31, 31, 31, 0, 0, 0, 0, 0])


def test_first_step_knows_nothing_and_reaches_every_parameter():
    value, gradients = plain_loss_and_gradients()
    assert float(value) == pytest.approx(np.log(256), rel=0.5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 1e-8, path


@pytest.mark.parametrize("changed", [0, 2, 3])
def test_the_decoder_sees_no_later_output_and_the_whole_input(changed):
    spec = spec_of()
    variables, batch = variables_of(spec), batch_of(spec)
    apply = helpers.quick_jit(lambda batch: logits_of(spec, variables, batch))
    plain = np.asarray(apply(batch))
    assert plain.shape == (2, 4, 256)
    output = batch["decoder_tokens"]
    output = output.at[:, changed].set((output[:, changed] + 1) % 256)
    other = np.asarray(apply({**batch, "decoder_tokens": output}))
    np.testing.assert_array_equal(plain[:, :changed], other[:, :changed])
    assert (np.abs(plain - other)[:, changed:].max(axis=-1) > 0).all()
    tokens = batch["tokens"].at[:, -1 - changed].add(1)
    other = np.asarray(apply({**batch, "tokens": tokens % 256}))
    assert (np.abs(plain - other).max(axis=-1) > 0).all()


def test_positions_of_the_input_matter():
    spec = spec_of()
    variables, batch = variables_of(spec), batch_of(spec)
    reversed_input = {**batch, "tokens": batch["tokens"][:, ::-1]}
    apply = helpers.quick_jit(lambda batch: logits_of(spec, variables, batch))
    assert np.abs(np.asarray(apply(batch)) - np.asarray(apply(reversed_input))).max() > 1e-5


def stacked(tree):
    """Parameters of the unrolled model as those of the scanned one."""
    found = {}
    for name, value in tree["params"].items():
        match = re.fullmatch(r"(encoder|decoder)_(\d+)", name)
        if match is None:
            found[name] = value
        else:
            found.setdefault(match[1], []).append(value)
    join = lambda *xs: jnp.stack(xs)  # noqa: E731
    made = {k: jax.tree.map(join, *v) if isinstance(v, list) else v for k, v in found.items()}
    return {"params": made}


@pytest.mark.parametrize(
    ("scan_layers", "remat"), [(False, "full"), (True, "none"), (True, "full")]
)
def test_scanned_and_rematerialised_layers_compute_the_same(scan_layers, remat):
    plain, other = spec_of(), spec_of(scan_layers=scan_layers, remat=remat)
    variables, batch = variables_of(plain), batch_of(plain)
    expected, gradients = plain_loss_and_gradients()
    if scan_layers:
        variables, gradients = stacked(variables), stacked(gradients)
        shapes = jax.tree.map(jnp.shape, abstract_variables(other))
        assert shapes == jax.tree.map(jnp.shape, variables)
    loss, found = loss_and_gradients(other, variables, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
        largest = max(float(jnp.abs(two).max()), 1e-3)
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-4 * largest)


def test_compute_dtype_is_that_of_the_logits_and_not_of_the_parameters():
    spec = spec_of(dtype="bfloat16")
    batch = batch_of(spec)
    variables = abstract_variables(spec)
    logits = jax.eval_shape(lambda v: logits_of(spec, v, batch), variables)
    assert logits.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
