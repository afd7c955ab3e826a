"""`compiled.report` through the production TPU compiler, for a slice that is not here."""

import importlib.util
from typing import Any

import optax
import pytest

import autoshard
import models
from autoshard.compile_report import CompileReport

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]


@pytest.fixture(scope="module")
def compiled() -> Any:
    spec = models.get(
        "llama3_tiny", num_layers=3, d_model=256, d_ff=512, scan_layers=True, remat="full"
    )
    return autoshard.compile(
        spec.build(),
        "v5e:2x4 data=4,model=2",
        batch=spec.example_batch(16, 128),
        rules="zero3+redco",
        optimizer=optax.adamw(1e-3),
        dtype="bfloat16",
    )


@pytest.fixture(scope="module")
def report(compiled: Any) -> CompileReport:
    made: CompileReport = compiled.compile_report(cache=False)
    return made


def test_the_mesh_is_laid_on_the_torus(compiled: Any) -> None:
    """Devices along `model`, the axis that talks most, are neighbours."""
    for pair in compiled.mesh.devices.reshape(-1, 2):
        (x, y, _), (u, v, _) = pair[0].coords, pair[1].coords
        assert abs(x - u) + abs(y - v) == 1


def test_plan_report_and_lower_work_and_step_says_why_not(
    compiled: Any, report: CompileReport
) -> None:
    assert compiled.plan.topology == "v5e:2x4"
    assert "sharding" in compiled.lower().as_text()
    with pytest.raises(autoshard.DeviceError, match=r"v5e:2x4 .* need the devices"):
        compiled.init(0)
    assert report.topology.device_count == 8


def test_memory_is_what_the_compiler_says(compiled: Any, report: CompileReport) -> None:
    """Compiled in a child process, against the compiler called directly in this one."""
    analysis: Any = compiled.lower().compile().memory_analysis()
    assert report.memory is not None and report.timeline is not None
    assert report.memory.total_bytes == (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    assert report.memory.peak_bytes == analysis.peak_memory_in_bytes
    # The compiler's peak counts VMEM, too, where nearly all of so small a program lives.
    vmem = report.topology.known_chip.fast_bytes
    highest = max(report.timeline.memory.live_bytes)
    assert report.memory.arguments_bytes < highest <= report.memory.peak_bytes <= highest + vmem


def test_loops_are_multiplied(report: CompileReport) -> None:
    """FLOPs of the schedule: the model's, and each layer's forward pass a second time (remat)."""
    assert report.timeline is not None
    assert not report.timeline.unmodelled
    executed = report.timeline.flops * 8
    assert executed == pytest.approx(
        8 * next(c.predicted or 0 for c in report.comparisons if c.unit == "flops"), rel=0.02
    )
    assert report.model_flops < executed < report.model_flops * 4 / 3
    assert {span.repeats for span in report.timeline.spans} >= {1, 3}


def test_weights_are_gathered_layer_by_layer(report: CompileReport) -> None:
    assert report.timeline is not None
    gathers = [c for c in report.timeline.collectives if c.kind == "all-gather"]
    assert any(c.repeats == 3 for c in gathers)
    assert all(c.axes for c in gathers)
