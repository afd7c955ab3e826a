"""`compiled.report` on CPU devices: the compiler's figures, exactly, beside the plan's."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import autoshard
import models
from autoshard.compile_report import Comparison, CompileReport
from passes.hlo.trace import save_trace


@pytest.fixture(scope="module")
def compiled() -> Any:
    spec = models.get("llama3_tiny", num_layers=1, vocab_size=64, max_seq_len=16)
    return autoshard.compile(
        spec.build(),
        "data=2,model=4",
        batch=spec.example_batch(8, 16),
        rules="zero3+redco",
        optimizer=optax.adamw(1e-3),
    )


@pytest.fixture(scope="module")
def report(compiled: Any) -> CompileReport:
    made: CompileReport = compiled.compile_report(cache=False, command="python train.py")
    return made


def row(report: CompileReport, name: str) -> Comparison:
    return next(c for c in report.comparisons if c.name == name)


def test_memory_is_what_the_compiler_says(compiled: Any, report: CompileReport) -> None:
    analysis: Any = compiled.lower().compile().memory_analysis()
    memory = report.memory
    assert memory is not None
    assert memory.total_bytes == (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    assert row(report, "memory, total").compiled == memory.total_bytes
    assert report.out_of_memory is None


def test_state_is_predicted_exactly(report: CompileReport) -> None:
    for name in ("parameters", "optimizer state"):
        comparison = row(report, name)
        assert comparison.predicted == comparison.compiled != 0


def test_matrix_flops_are_predicted_exactly(report: CompileReport) -> None:
    comparison = row(report, "matrix FLOPs a device")
    assert comparison.predicted == pytest.approx(comparison.compiled, rel=0.01)


def test_the_step_is_the_sum_of_its_parts(report: CompileReport) -> None:
    timeline = report.timeline
    assert timeline is not None
    parts = timeline.compute_s + timeline.exposed_communication_s + timeline.exposed_copy_s
    assert timeline.step_s == pytest.approx(parts, rel=1e-6)
    assert max(span.end_s for span in timeline.spans) == pytest.approx(timeline.step_s)
    assert not timeline.unmodelled
    assert 0 < (report.mfu or 0) < 1


def test_memory_over_time_starts_with_the_inputs(report: CompileReport) -> None:
    timeline, memory = report.timeline, report.memory
    assert timeline is not None and memory is not None
    curve = timeline.memory
    assert curve.live_bytes[0] >= memory.arguments_bytes
    assert max(curve.live_bytes) <= memory.total_bytes * 1.01
    assert list(curve.times_s) == sorted(curve.times_s)


def test_collectives_are_listed_with_their_source(report: CompileReport) -> None:
    assert report.timeline is not None
    kinds = {c.kind for c in report.timeline.collectives}
    assert {"all-gather", "all-reduce"} <= kinds
    assert any("llama.py" in c.source for c in report.timeline.collectives)


def test_it_saves_itself_and_its_trace(report: CompileReport, tmp_path: pathlib.Path) -> None:
    report.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "python train.py" in text and "Llama" in text
    assert report.timeline is not None
    save_trace(report.timeline, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    bars = [e for e in events if e["ph"] == "X"]
    assert len(bars) == len(report.timeline.spans)
    assert max(e["ts"] + e["dur"] for e in bars) == pytest.approx(report.timeline.step_s * 1e6)
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} >= {"compute"}


def test_a_function_has_a_report_too() -> None:
    specs = (
        jax.ShapeDtypeStruct((64, 64), jnp.float32),
        jax.ShapeDtypeStruct((8, 64), jnp.float32),
    )
    function: Any = autoshard.compile(
        lambda w, x: x @ w, "data=2,model=4", batch=specs, rules="redco"
    )
    report = function.report
    assert report.model_flops == 2 * 8 * 64 * 64
    assert report.timeline.flops == 2 * 8 * 64 * 64 / 8
    assert report is function.report


def test_a_machine_that_is_not_here_says_what_works() -> None:
    spec = models.get("mlp_tiny") if "mlp_tiny" in models.names() else models.get("gpt2_tiny")
    planned: Any = autoshard.compile(spec.build(), "cpu:64", batch=spec.example_batch(64))
    assert planned.plan.mesh.shape.device_count == 64
    with pytest.raises(autoshard.DeviceError, match="xla_force_host_platform_device_count=64"):
        planned.init(0)
