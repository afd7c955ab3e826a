"""The production TPU compiler moves what plans predict for Llama: by kind, source, count, bytes."""

import importlib.util
import math
from typing import Any

import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import autoshard
import models
from autoshard import aot
from autoshard.collective_rows import collective_rows, differs
from autoshard.compile_report import CollectiveRow
from passes.hlo.parse import parse

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]

# Small gradients of all layers are stacked in bfloat16 and reduced once, behind the loop.
_SCALES = "all-reduce LlamaBlock.__call__), after the loop"
# The targets' logits are picked before they are cast to float32.
_TARGETS = "all-reduce next_token_loss), in another type"

# Differences of a model as small as this one; docs/collectives.md has those of the 8B's width.
_EXPLAINED = {
    "data": {_SCALES},
    "redco": {
        _SCALES,
        "all-reduce LlamaAttention._output), after the loop",
        "all-reduce LlamaAttention._project), after the loop",
        _TARGETS,
    },
    "zero3": {_SCALES},
    # Halves of the embedding's gradient do not fill tiles: a border is exchanged.
    "zero3+redco": {_SCALES, _TARGETS, "collective-permute Llama.__call__)"},
}


def rows_of(rules: str) -> tuple[CollectiveRow, ...]:
    shape = (2, 4) if "redco" in rules else (8, 1)
    mesh = Mesh(np.array(aot.devices("v5e:2x4")).reshape(shape), ("data", "model"))
    spec = models.get("llama3_tiny", num_layers=3, scan_layers=True, remat="full")
    compiled: Any = autoshard.compile(
        spec.build(),
        mesh,
        batch=spec.example_batch(16, 128),
        rules=rules,
        optimizer=optax.adamw(1e-3),
        dtype="bfloat16",
    )
    module = parse(compiled.lower().compile().as_text())
    return collective_rows(compiled.plan.cost.collectives, module)


@pytest.mark.parametrize("rules", ["data", "zero3", "redco", "zero3+redco"])
def test_the_tpu_compiler_moves_what_is_predicted(rules: str) -> None:
    rows = rows_of(rules)
    different = [r for r in rows if differs(r)]
    found = {f"{r.kind} {r.source.split(' (')[1]}" for r in different}
    assert found <= _EXPLAINED[rules], different
    equal_bytes = sum(r.compiled_bytes for r in rows if not differs(r))
    assert equal_bytes > 0.985 * sum(r.predicted_bytes for r in rows)
    assert math.isclose(
        sum(r.compiled_bytes for r in rows), sum(r.predicted_bytes for r in rows), rel_tol=0.01
    )
    assert sum(r.compiled_count for r in rows) >= 25
