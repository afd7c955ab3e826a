"""The production TPU compiler explains its memory mapping, follows an order, and is asked again."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import autoshard
import models
from autoshard import aot
from autoshard.machine import machine_model
from autoshard.memory_compiler import LoweredCompiler
from autoshard.topology import Topology
from memory_planner.overrides import ORDER_OPTION
from memory_planner.replay import replay
from memory_planner.session import open_session

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]

SIDE = 5120
TOPOLOGY = "v5e:1x1"


def skips(x: jax.Array, weights: list[jax.Array]) -> jax.Array:
    """Three products, each beside what was two before: 50 MiB each, of which VMEM holds two."""
    before, total = x, jnp.zeros_like(x)
    for w in weights:
        before, x = x, jax.nn.relu(x @ w) + before
        total += x
    return total


def test_a_small_contended_program_is_mapped() -> None:
    (device,) = aot.devices(TOPOLOGY)[:1]
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.bfloat16, sharding=sharding)
    lowered = jax.jit(skips).lower(x, [x] * 3)
    budget = autoshard.MemoryBudget(assignments=3, compiles=1, sweep=(), strategy="fixed orders")
    lines: list[str] = []
    mapped = autoshard.map_memory(
        lowered, TOPOLOGY, budget, devices=(device,), progress=lines.append
    )
    problem = mapped.extracted.problem
    assert len(problem.buffers) >= 4 and problem.capacity_bytes > 64 << 20
    assert {b.size_bytes for b in problem.buffers} >= {2 * SIDE * SIDE}
    assert 0 < mapped.best.total <= mapped.default.total and mapped.best.cycles > 0
    # The program, without fast memory, one candidate at most; the probe, itself, three orders.
    assert mapped.compiles <= 3 and 2 <= mapped.assignments <= 5
    screened = [t for t in mapped.trials if t.method == "fixed orders"]
    assert screened and all(t.screened is not None for t in screened)
    # The compiler's own order needs no option; every other one has it.
    others = [t for t in screened if t.options]
    assert others and all(dict(t.options)[ORDER_OPTION] for t in others)
    own = [t for t in screened if not t.options]
    assert all(t.screened.total == mapped.default.total for t in own if t.screened)
    # The compiler's places lie within what it may fill.
    for stay in mapped.extracted.mapping.stays:
        size = problem.buffers[stay.buffer].size_bytes
        assert stay.offset_bytes + size <= problem.capacity_bytes


def test_a_step_that_updates_its_state_in_place_is_replayed_to_two_percent() -> None:
    spec = models.get(
        "llama3_8b", dtype="bfloat16", num_layers=1, num_heads=8, num_kv_heads=8, d_model=1024,
        d_ff=2816, vocab_size=4096, remat="none", scan_layers=False,
    )  # fmt: skip
    step: Any = autoshard.compile(
        spec.build(), "v5e:1x1", batch=spec.example_batch(4, 512), rules="data", dtype="bfloat16"
    )
    machine = machine_model(Topology.parse("v5e:1x1"))
    compiler = LoweredCompiler(step.lower(), "v5e:1x1", aot.devices("v5e:1x1"))
    session = open_session(compiler, machine)
    problem, real = session.extracted.problem, session.default.confirmed
    assert real is not None and real.stall_cycles > 0.01 * real.total
    replayed = replay(problem, session.extracted.mapping)
    assert replayed.total_ns * machine.clock_hz / 1e9 == pytest.approx(real.total, rel=0.02)
    # State begins and ends in HBM; what is computed on the way does not.
    state = [b for b in problem.buffers if b.name.startswith("state_")]
    assert state and all(b.starts_in_hbm for b in state)
    moments = [b for b in state if b.name.startswith("state_opt_state")]
    assert moments and all(b.ends_in_hbm for b in moments)
    assert not any(b.starts_in_hbm for b in problem.buffers if "convolution" in b.name)
