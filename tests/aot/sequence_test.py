"""Attention over a mesh axis, by the production TPU compiler: memory falls with the axis, both ways
round a ring hide what one way exposes, and blocks travel while others are computed.
"""

import dataclasses
import importlib.util

import pytest

from benchmarks.sequence import WAIT_BAR, Case, activation_bytes, exposed_s, outcome

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]


def test_memory_falls_with_the_axis_and_long_chunks_hide_the_ring() -> None:
    cases = [Case("v5p:4x4x4", 64 // n, n, 1 << 18, "ring", True, heads=1) for n in (16, 64)]
    few, many = map(outcome, cases)
    assert activation_bytes(many.memory) * 4 == pytest.approx(activation_bytes(few.memory), rel=0.1)
    ring = [c for c in few.timeline.collectives if c.kind == "collective-permute"]
    assert exposed_s(few) < 0.1 * sum(c.seconds for c in ring)


@pytest.mark.parametrize("causal", [False, True])
def test_both_ways_wait_less_than_one_and_take_less_time(causal: bool) -> None:
    one = Case("v5p:4x4x8", 16, 8, 8192 if causal else 4096, "ring", causal=causal, heads=8)
    one_way, both_ways = map(outcome, (one, dataclasses.replace(one, method="bidirectional")))
    assert "became bidirectional" in both_ways.note
    assert ("zig-zag" in both_ways.note) == causal
    assert 0 < exposed_s(both_ways) <= WAIT_BAR * exposed_s(one_way)
    assert both_ways.timeline.step_s < one_way.timeline.step_s
    links = {c.kind for c in both_ways.timeline.collectives}
    assert links == {"collective-permute", "all-reduce"}  # the latter is of the loss
