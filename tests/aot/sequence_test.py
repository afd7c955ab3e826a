"""Attention over a mesh axis, by the production TPU compiler: memory falls with the axis, both ways
round a ring hide what one way exposes, and blocks travel while others are computed.
"""

import dataclasses
import importlib.util

import pytest

from benchmarks.sequence import Case, activation_bytes, outcome, waits

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]


def test_memory_falls_with_the_axis() -> None:
    cases = [Case("v5p:4x4x4", 64 // n, n, 1 << 17, "ring", causal=True) for n in (16, 64)]
    few, many = (activation_bytes(outcome(case).memory) for case in cases)
    assert many * 4 == pytest.approx(few, rel=0.1)


def test_both_ways_wait_less_than_one() -> None:
    one = Case("v5p:4x4x8", 16, 8, 4096, "ring", causal=False, heads=8)
    (one_way, _), (both_ways, found) = (
        waits(one),
        waits(dataclasses.replace(one, method="bidirectional")),
    )
    assert "became bidirectional" in found.note
    assert 0 < both_ways <= 0.6 * one_way
    links = {c.kind for c in found.timeline.collectives}
    assert links == {"collective-permute", "all-reduce"}  # the latter is of the loss


def test_long_chunks_hide_the_ring() -> None:
    """Keys and values travel while a chunk is computed, which takes longer."""
    _, found = waits(Case("v5p:4x4x4", 16, 4, 1 << 15, "ring", causal=False))
    ring = [c for c in found.timeline.collectives if c.kind == "collective-permute"]
    assert sum(c.exposed_s for c in ring) < 0.1 * sum(c.seconds for c in ring)
