"""Pipelines as a choice of the search: what they cost; they compute what one device does."""

import jax
import numpy as np
import optax
import pytest

import autoshard
import models
from autoshard import planning
from autoshard.adapters import adapt
from autoshard.losses import default_loss
from autoshard.plan import Plan
from autoshard.precision import Precision
from autoshard.search.pipelines import possible_stages
from autoshard.trace import trace_model
from passes.pipelining.closed_forms import bubble
from tests.autoshard import cases

OPTIONS = autoshard.SearchOptions(verify=0, microbatches=(8,))


def llama(num_layers: int = 8) -> models.ModelSpec:
    return cases.small("llama", num_layers=num_layers, scan_layers=True, remat="full")


def plan(mesh: str) -> Plan:
    spec = llama()
    return autoshard.compile(
        spec.build(), mesh, batch=spec.example_batch(64, 16), optimizer=optax.adam(1e-3),
        passes="auto", search=OPTIONS,
    ).plan  # fmt: skip


def stages_of(spec: models.ModelSpec) -> tuple[int, ...]:
    traced = trace_model(
        adapt(spec.build()), default_loss, spec.example_batch(8), True, Precision()
    )
    return possible_stages(planning.examine(traced.program))


def test_stages_divide_the_layers_of_one_chain() -> None:
    assert stages_of(llama(12)) == (2, 3, 4, 6, 12)
    assert stages_of(cases.small("llama")) == ()  # not a loop
    assert stages_of(cases.small("t5", scan_layers=True)) == ()  # two chains


def test_a_pipeline_costs_its_share_and_the_closed_form_of_its_bubble() -> None:
    whole, staged = plan("v5p:2x2x1 data=4"), plan("v5p:2x2x1 stage=4,data=1")
    assert [p.name for p in staged.passes] == ["pipeline"]
    layers = [a for a in staged.arrays if a.dims[:1] == ("layers",)]
    assert layers
    assert all(a.param[0] == ("stage",) for a in layers)
    # Rows of the batch or layers: four devices share the work either way, but for what is not in
    # layers.
    assert staged.cost.flops == pytest.approx(whole.cost.flops, rel=0.35)
    assert staged.cost.memory.parameters_bytes < whole.cost.memory.parameters_bytes / 2
    time = staged.cost.time
    busy = time.total_s - time.idle_s - time.optimizer_s
    assert time.idle_s / (busy + time.idle_s) == pytest.approx(bubble("1f1b", 4, 8), rel=0.02)
    hops = [c for c in staged.cost.collectives if c.kind == "collective-permute"]
    assert [c.count for c in hops] == [16]  # forward and backward of 8 microbatches
    assert hops[0].payload_bytes == 8 * 16 * 64 * 4  # rows, positions, width, float32


def test_stages_are_tried_on_an_open_mesh_and_can_be_forbidden() -> None:
    spec = llama()

    def meshes(forbid: tuple[str, ...]) -> set[str]:
        found = autoshard.compile(
            spec.build(), "v5p:2x2x1", batch=spec.example_batch(64, 16), passes="auto",
            search=autoshard.SearchOptions(verify=0, microbatches=(1, 8), forbid=forbid),
        ).plan  # fmt: skip
        assert found.search is not None
        return {other.mesh for other in found.alternatives}

    assert any(mesh.startswith("stage=") for mesh in meshes(()))
    assert not any(mesh.startswith("stage=") for mesh in meshes(("stage",)))


def test_a_searched_pipeline_equals_one_device() -> None:
    spec = llama()
    batch = cases.random_batch(spec.example_batch(16, 16))
    _, loss, gradients = cases.reference(spec, batch)
    compiled = autoshard.compile(
        spec.build(), "stage=4,data=2", batch=batch, optimizer=optax.sgd(1.0), passes="auto",
        search=autoshard.SearchOptions(microbatches=(8,)),
    )  # fmt: skip
    assert compiled.plan.passes[-1].name == "pipeline"
    state = compiled.init(0)
    before = jax.device_get(state.params)
    after, metrics = compiled.step(state, batch)
    np.testing.assert_allclose(float(metrics["loss"]), loss, rtol=1e-5)
    found = jax.tree.map(lambda a, b: a - b, before, jax.device_get(after.params))
    for want, have in zip(jax.tree.leaves(gradients), jax.tree.leaves(found), strict=True):
        scale = max(float(np.abs(want).max()), 1e-3)
        np.testing.assert_allclose(have, want, atol=1e-4 * scale, rtol=0)
