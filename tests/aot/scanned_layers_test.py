"""The production TPU compiler keeps what ZeRO-3 makes of a loop over stacked layers: slices are
gathered in the loop, in the compute type, and their gradients leave it scattered.
"""

import importlib.util
import re
from typing import Any

import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import autoshard
import models
from autoshard import aot

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]

LAYERS = 3  # no other dimension has this size

_GATHER = re.compile(r"= \(?(\w+)\[([\d,]*)\].*? all-gather(?:-start)?\(.*op_name=\"([^\"]*)\"")
# The compiler's reduce-scatter: an all-reduce of which each device keeps its part.
_SCATTER = re.compile(r"= (.*?) fusion\(.*calls=%?all-reduce-scatter.*op_name=\"([^\"]*)\"")


def compiled_text() -> str:
    mesh = Mesh(np.array(aot.devices("v5e:2x4")), ("data",))
    sizes = {"d_model": 256, "d_ff": 512}
    spec = models.get("llama3_tiny", num_layers=LAYERS, scan_layers=True, remat="full", **sizes)
    compiled: Any = autoshard.compile(
        spec.build(),
        mesh,
        batch=spec.example_batch(8, 64),
        rules="zero3",
        optimizer=optax.sgd(0.1),
        dtype="bfloat16",
    )
    return str(compiled.lower().compile().as_text())


def test_slices_are_gathered_in_both_loops_and_gradients_scattered() -> None:
    text = compiled_text()
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    passes: dict[str, set[bool]] = {name: set() for name in names}
    for dtype, shape, scope in _GATHER.findall(text):
        assert LAYERS not in [int(size) for size in shape.split(",") if size]
        kernel = re.search(r"gather:layers/.*?(\w+_proj)/kernel", scope)
        if kernel is None:
            continue
        assert dtype == "bf16" and "while/body" in scope
        passes[kernel[1]].add("rematted_computation" in scope)
    assert all(found == {False, True} for found in passes.values()), passes
    shards = [
        shape
        for result, scope in _SCATTER.findall(text)
        if "transpose(jvp" in scope and "while/body" in scope
        for shape in re.findall(r"\w+\[([\d,]+)\]", result)
    ]
    # k, v; q, o; down; gate, up: an eighth of each kernel's gradient, layer by layer.
    assert sorted(shards) == sorted(2 * ["32,128"] + 2 * ["32,256"] + ["64,256"] + 2 * ["256,64"])
