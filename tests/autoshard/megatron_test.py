"""Under `redco` a layer moves what Megatron-LM moves, and nothing else; asserted in compiled HLO.

A layer is the difference between a model of two layers and one of one. On a mesh without data
parallelism the model axis is all there is, so every collective belongs to the layers, the
embedding or the loss.
"""

import collections
from typing import Any

import jax
import pytest

import models
from autoshard import lower
from tests.autoshard import cases
from tests.autoshard.hlo import hlo_of, moved_arrays

BATCH, SEQUENCE, WIDTH = 8, 16, 32


def spec_of(family: str, layers: int) -> models.ModelSpec:
    overrides: dict[str, Any] = {"num_layers": layers}
    if family == "llama":
        overrides |= {"d_model": WIDTH, "num_kv_heads": 4}
    return cases.small(family, **overrides)


def activations_moved(family: str, layers: int, mesh: str, backward: bool) -> collections.Counter:
    """How many [batch, sequence, width] arrays each kind of collective moves."""
    spec = spec_of(family, layers)
    compiled = cases.compile_case(spec, mesh, "redco", BATCH)
    text = hlo_of(compiled.lower()) if backward else compiled_forward(compiled)
    moved = moved_arrays(text)
    degree = compiled.plan.mesh.refined.shards(compiled.plan.data_parts)
    stream = (BATCH // degree, SEQUENCE, WIDTH)
    strangers = {"all-gather", "all-to-all", "collective-permute", "reduce-scatter"}
    assert not [m for m in moved if m.kind in strangers]
    return collections.Counter(m.kind for m in moved if m.shape == stream)


def compiled_forward(compiled: Any) -> str:
    """HLO of the loss alone."""
    state, batch = compiled.abstract_state, compiled.abstract_batch
    forward = lower.make_eval(compiled.traced, compiled.shardings)
    return hlo_of(jax.jit(forward).lower(state, batch))


@pytest.mark.parametrize(
    ("family", "most_backward"),
    [("gpt2", 3 + 1), ("llama", 3 + 2)],
)
@pytest.mark.parametrize("mesh", ["data=1,model=4", "data=2,model=4"])
def test_a_layer_all_reduces_what_megatron_does(family: str, most_backward: int, mesh: str) -> None:
    forward = [activations_moved(family, n, mesh, backward=False) for n in (1, 2)]
    whole = [activations_moved(family, n, mesh, backward=True) for n in (1, 2)]
    assert forward[1] - forward[0] == {"all-reduce": 2}
    layer = (whole[1] - whole[0])["all-reduce"] - 2
    assert 2 <= layer <= most_backward


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_matmul_weight_is_sharded_over_the_model_axis(family: str) -> None:
    compiled = cases.compile_case(spec_of(family, 2), "data=2,model=4", "redco", BATCH)
    matrices = [
        a for a in compiled.plan.arrays
        if a.leaf.role.value == "parameter" and len(a.leaf.shape) >= 2 and "wpe" not in a.leaf.path
        and "bias" not in a.leaf.path
    ]  # fmt: skip
    assert len(matrices) >= 13
    for array in matrices:
        shards = [d for d in array.compute if "model" in d]
        assert len(shards) == 1, array


def test_partial_sums_have_the_predicted_bytes() -> None:
    """Estimated bytes of partial sums equal those of the compiled program (ring: 2 (n-1)/n)."""
    spec = spec_of("llama", 2)
    compiled = cases.compile_case(spec, "data=1,model=4", "redco", BATCH)
    moved = moved_arrays(hlo_of(compiled.lower()))
    large = [m for m in moved if len(m.shape) == 3 and m.shape[-1] > 1]
    sent = sum(2 * m.size_bytes * 3 / 4 for m in large)
    # What remains are softmax reductions of [batch, sequence] and scalars of the gradient norm.
    assert sent <= compiled.plan.cost.tensor_bytes <= 1.1 * sent
