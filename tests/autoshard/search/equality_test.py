"""A searched plan computes what one device does: loss and gradients, on eight CPU devices.

Memory is limited to what makes the search shard, recompute and cut the batch.
"""

from typing import Any

import jax
import numpy as np
import optax
import pytest

import autoshard
from tests.autoshard import cases

# (family, share of the memory that data parallelism takes)
CASES = (
    ("gpt2", 0.6), ("llama", 0.5), ("mixtral", 0.5), ("t5", 0.6), ("vit", 0.6), ("mixer", 0.6),
    ("resnet", 0.9),
)  # fmt: skip


def searched(spec: Any, batch: Any, **settings: Any) -> autoshard.CompiledModel:
    return autoshard.compile(
        spec.build(), "cpu:8", batch=batch, optimizer=optax.sgd(1.0),
        search=autoshard.SearchOptions(max_layouts=60, microbatches=(1, 2)), **settings,
    )  # fmt: skip


@pytest.mark.parametrize(("family", "share"), CASES)
def test_the_searched_plan_equals_one_device(family: str, share: float) -> None:
    # One family is unrolled, so that its layers are rolled; loops are quicker to search.
    layers = {"resnet": {}, "gpt2": {"num_layers": 4}}.get(family, {"scan_layers": True})
    spec = cases.small(family, **layers)
    batch = cases.random_batch(spec.example_batch(8))
    whole = cases.compile_case(spec, "data=8", "data", optimizer=optax.sgd(1.0)).plan
    limit = int(share * whole.cost.memory.total_bytes)
    compiled = searched(spec, batch, passes="auto", memory_limit_bytes=limit)
    assert compiled.plan.cost.memory.total_bytes <= limit
    assert compiled.plan.search is not None
    check(compiled, spec, batch)


def test_regions_of_unrolled_layers_are_given_up_where_memory_allows() -> None:
    spec = cases.small("llama", remat="full")
    batch = cases.random_batch(spec.example_batch(8))
    compiled = searched(spec, batch, passes="auto")
    assert "remat(policy='none')" in [str(record) for record in compiled.plan.passes]
    check(compiled, spec, batch)


def check(compiled: autoshard.CompiledModel, spec: Any, batch: Any) -> None:
    params, loss, gradients = cases.reference(spec, batch)
    state = compiled.init(0)
    before = jax.device_get(compiled.to_user_state(state).params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before, params)
    after, metrics = compiled.step(state, batch)
    np.testing.assert_allclose(float(metrics["loss"]), loss, rtol=1e-5)
    changed = jax.device_get(compiled.to_user_state(after).params)
    found = jax.tree.map(lambda a, b: a - b, before, changed)
    pairs = zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(found), strict=True)
    for (path, want), have in pairs:
        scale = max(float(np.abs(want).max()), 1e-3)
        np.testing.assert_allclose(have, want, atol=1e-4 * scale, rtol=0, err_msg=str(path))
