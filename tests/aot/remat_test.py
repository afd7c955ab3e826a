"""Remat and offload in the programs that real compilers make, without a device."""

import dataclasses
import importlib.util
from typing import Any

import optax
import pytest

import autoshard
import models
from autoshard.compiled_program import CompiledMemory
from passes.offload import Offload
from passes.remat import Remat

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]

needs_gpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="the GPU compiler is not installed: jax[cuda13]",
)
LAYERS = 96  # what they carry is more than the VMEM of a v5e
WIDTH = 256
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Compiled:
    memory: CompiledMemory
    notes: str


def compiled(target: str, one: Any) -> Compiled:
    """A step of a small Llama under a pass; four sequences of 512 a device."""
    spec = models.get(
        "llama3_tiny", num_layers=LAYERS, scan_layers=True, d_model=WIDTH, d_ff=4 * WIDTH,
        num_heads=2, num_kv_heads=2, vocab_size=512, max_seq_len=512,
    )  # fmt: skip
    model: Any = autoshard.compile(
        spec.build(),
        target,
        batch=spec.example_batch(4 * 8),
        rules="zero3",
        optimizer=optax.sgd(1e-3),
        passes=[one],
    )
    report = model.compile_report(cache=False)
    assert report.memory is not None
    notes = "\n".join(note for record in model.plan.passes for note in record.notes)
    return Compiled(report.memory, notes)


def carried_bytes() -> int:
    return LAYERS * 4 * 512 * WIDTH * 4


@needs_gpu_compiler
def test_hbm_follows_the_budget() -> None:
    full = compiled("h100:8 data=8", Remat(policy="full"))
    extra = 512 * MIB
    auto = compiled("h100:8 data=8", Remat(budget_bytes=carried_bytes() + extra))
    grown = auto.memory.total_bytes - full.memory.total_bytes
    assert 0.5 * extra < grown <= 1.05 * extra, (grown / MIB, auto.notes)


@pytest.mark.parametrize(
    "target", ["v5e:2x4 data=8", pytest.param("h100:8 data=8", marks=needs_gpu_compiler)]
)
def test_hbm_falls_by_what_goes_to_the_host(target: str) -> None:
    device = compiled(target, Remat(policy="full"))  # keeps what is carried on the device
    host = compiled(target, Offload(values=("*/carry",)))
    moved = host.memory.host_temporaries_bytes
    assert moved >= carried_bytes() and device.memory.host_temporaries_bytes == 0, host.notes
    # The compiler's own peak counts host memory, too.
    fallen = device.memory.total_bytes - host.memory.total_bytes
    assert fallen >= 0.8 * moved, (fallen / MIB, moved / MIB)
