"""The production TPU compiler explains its memory mapping, follows an order, and is asked again."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

import autoshard
from autoshard import aot
from memory_planner.overrides import ORDER_OPTION

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
    assert all(dict(t.options)[ORDER_OPTION] for t in screened)
    # The compiler's places lie within what it may fill.
    for stay in mapped.extracted.mapping.stays:
        size = problem.buffers[stay.buffer].size_bytes
        assert stay.offset_bytes + size <= problem.capacity_bytes
