"""Decode compiled by the production TPU compiler: one cache, changed in place."""

import importlib.util
from typing import Any

import pytest

import autoshard
import models
from passes.program import Role

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]


def test_memory_and_collectives_of_decode_are_those_estimated() -> None:
    spec = models.get("llama3_8b", dtype="bfloat16", num_layers=2, vocab_size=32768)
    decode: Any = autoshard.compile(
        spec.build(),
        "v5e:2x4",
        batch=autoshard.InferenceShape(16, 256, 1024),
        task="decode",
        dtype="bfloat16",
        search=autoshard.SearchOptions(verify=0),
    )
    memory, estimate = decode.report.memory, decode.plan.cost.memory
    shards = decode.plan.mesh.refined.shards
    cache = sum(
        a.leaf.size_bytes // shards([p for dim in a.param for p in dim])
        for a in decode.plan.arrays
        if a.leaf.role is Role.CACHE
    )
    assert cache > 0.05 * memory.total_bytes
    assert memory.aliased_bytes == cache
    assert memory.temporaries_bytes < 0.2 * cache
    assert estimate.total_bytes == pytest.approx(memory.total_bytes, rel=0.02)
    rows = decode.report.collectives
    assert rows
    for row in rows:
        assert (row.predicted_count, row.predicted_bytes) == (
            row.compiled_count,
            row.compiled_bytes,
        )
