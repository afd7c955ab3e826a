"""The compiler for TPU sums what it should gather over a closed torus; in two stages it gathers."""

import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import autoshard
import models
from autoshard import aot
from autoshard.parameter_gather import ParameterGather
from autoshard.staged_gather import inner_devices_of
from tests.autoshard import hlo

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]

WIDTH = 2048


@pytest.mark.parametrize("staged", [False, True])
def test_a_gather_over_a_closed_torus_is_a_sum_unless_it_is_staged(staged: bool) -> None:
    devices = np.array(aot.devices("v5p:4x4x4"))
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    inner = inner_devices_of(mesh)
    assert inner == 4
    stored, whole = (("data",), ()), ((), ())
    gather = ParameterGather("w", mesh, stored, whole, stored, inner if staged else 1)
    cut = NamedSharding(mesh, PartitionSpec("data"))
    w, x = (
        jax.ShapeDtypeStruct((rows, WIDTH), "bfloat16", sharding=cut) for rows in (WIDTH, 64 * 256)
    )
    lowered = jax.jit(lambda w, x: x @ gather(w), out_shardings=cut).lower(w, x)
    kinds = [moved.kind for moved in hlo.moved_arrays(hlo.hlo_of(lowered))]
    assert kinds == (["all-gather", "all-gather"] if staged else ["all-reduce"])


def test_a_report_says_of_which_gathers_stages_were_made() -> None:
    spec = models.get("mlp", in_features=WIDTH, hidden=(WIDTH, WIDTH))
    compiled = autoshard.compile(
        spec.build(),
        "v5p:4x4x4 data=64",
        batch=spec.example_batch(64 * 256),
        rules="zero3",
        dtype="bfloat16",
    )
    rows = compiled.report.collectives
    gathers = [row for row in rows if row.kind == "all-gather"]
    assert gathers and all(row.source.endswith("in two stages") for row in gathers)
