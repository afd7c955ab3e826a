"""The production TPU compiler, without a TPU, accepts what plans lower to, and keeps their
collectives.
"""

import collections
import importlib.util
import re
from typing import Any

import jax
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


def compiled_text(rules: str, shape: tuple[int, int]) -> str:
    mesh = Mesh(np.array(aot.devices("v5e:2x4")).reshape(shape), ("data", "model"))
    spec = models.get("llama3_tiny", num_layers=1)
    compiled: Any = autoshard.compile(
        spec.build(), mesh, batch=spec.example_batch(8, 64), rules=rules, optimizer=optax.sgd(0.1)
    )
    assert compiled.memory_report().compiled_bytes > 0
    with pytest.raises(autoshard.DeviceError, match="cannot run"):
        compiled.init(0)
    return str(compiled.lower().compile().as_text())


def collectives(text: str) -> collections.Counter[str]:
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return collections.Counter(re.findall(rf"= .*? ({kinds})(?:-start)?\(", text))


def test_tensor_parallelism_only_all_reduces() -> None:
    assert set(collectives(compiled_text("redco", (2, 4)))) == {"all-reduce"}


def test_zero3_gathers_twice_and_scatters_gradients() -> None:
    text = compiled_text("zero3", (8, 1))
    found = collectives(text)
    matrices = 7 + 2  # of one layer, and the embedding and head
    assert found["all-gather"] >= 2 * matrices - 2  # the last uses may share their first gather
    assert "all-reduce-scatter" in text or found["reduce-scatter"]
    assert jax.default_backend() == "cpu"
