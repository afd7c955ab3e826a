"""Sharded equals unsharded: the test behind everything.

One step of plain gradient descent at rate 1 shows the gradients as the difference of the
parameters, so the whole path is compared: initialisation, forward, backward, update. Loss to 1e-5
relative, gradients to 1e-4 of the largest of their array (a key's bias has a zero gradient, where
a relative tolerance alone would compare rounding noise), in float32.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

import models
from tests.autoshard import cases

RULES = ("data", "zero1", "zero2", "zero3", "redco", "zero3+redco", "logical")
FAMILIES = ("gpt2", "llama", "vit")


# Layers as one stack and a loop: (family, remat, rules, mesh).
SCANNED = (
    ("llama", "full", "zero3", "8x1"),
    ("llama", "full", "zero3+redco", "2x4"),
    ("llama", "none", "zero3+redco", "2x2x2"),
    ("gpt2", "full", "zero3+redco", "4x2"),
    ("gpt2", "full", "zero3", "2x2x2"),
    ("vit", "none", "zero3", "8x1"),
)


@functools.cache
def expected(spec: models.ModelSpec) -> tuple[Any, Any, float, Any]:
    batch = cases.random_batch(spec.example_batch(8))
    return batch, *cases.reference(spec, batch)


@pytest.mark.parametrize("mesh", cases.MESHES)
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_step_equals_one_device(family: str, rules: str, mesh: str) -> None:
    check(cases.small(family), rules, mesh)


@pytest.mark.parametrize(("family", "remat", "rules", "mesh"), SCANNED)
def test_a_sharded_step_over_scanned_layers_equals_one_device(
    family: str, remat: str, rules: str, mesh: str
) -> None:
    check(cases.small(family, scan_layers=True, remat=remat), rules, mesh)


@pytest.mark.parametrize(
    ("family", "rules", "mesh"),
    [
        ("llama", "zero3", "8x1"),
        ("llama", "zero3+redco", "2x4"),
        ("gpt2", "zero3", "8x1"),
        ("gpt2", "zero3+redco", "2x2x2"),
    ],
)
def test_a_step_that_looks_rows_up_in_shards_equals_one_device(
    family: str, rules: str, mesh: str
) -> None:
    """A wide table of many words, tied to the head in GPT-2."""
    spec = cases.small(family, num_layers=1, d_model=1024, vocab_size=512)
    compiled = cases.compile_case(spec, cases.MESHES[mesh], rules)
    assert "look up:" in compiled.lower().as_text(debug_info=True)
    check(spec, rules, mesh)


def check(spec: models.ModelSpec, rules: str, mesh: str) -> None:
    batch, params, loss, gradients = expected(spec)
    compiled = cases.compile_case(spec, cases.MESHES[mesh], rules, optimizer=optax.sgd(1.0))
    state = compiled.init(0)
    before = jax.device_get(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before, params)
    after, metrics = compiled.step(state, batch)

    np.testing.assert_allclose(float(metrics["loss"]), loss, rtol=1e-5)
    if spec.config.scan_layers:  # type: ignore[attr-defined]
        np.testing.assert_allclose(float(compiled.eval(state, batch)["loss"]), loss, rtol=1e-5)
    norm = float(optax.tree.norm(gradients))
    np.testing.assert_allclose(float(metrics["grad_norm"]), norm, rtol=1e-4)
    found = jax.tree.map(lambda a, b: a - b, before, jax.device_get(after.params))
    pairs = zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(found), strict=True)
    for (path, want), have in pairs:
        scale = max(float(np.abs(want).max()), 1e-3)
        np.testing.assert_allclose(have, want, atol=1e-4 * scale, rtol=0, err_msg=str(path))
    wanted = jax.tree.leaves(compiled.state_sharding)
    for array, sharding in zip(jax.tree.leaves(after), wanted, strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
