"""Options that are given to the TPU compiler, and those that are tried."""

import pytest

from autoshard.compiler_options import ASYNC_COLLECTIVES, alternatives, of_chip
from autoshard.topology import Topology


@pytest.mark.parametrize(
    ("topology", "options"),
    [
        ("v6e:2x2", {"xla_tpu_scoped_vmem_limit_kib": "65536"}),
        ("v5e:2x2", {}),
        ("h100:8x1", {}),
        ("cpu:8", {}),
        ("tpu:8", {}),
    ],
)
def test_options_go_with_the_chip(topology: str, options: dict[str, str]) -> None:
    assert of_chip(Topology.parse(topology)) == options


def test_collectives_can_overlap_where_there_are_any() -> None:
    assert alternatives(Topology.parse("v5e:2x2")) == (ASYNC_COLLECTIVES,)
    for other in ("v5e:1x1", "h100:8x1", "cpu:8"):
        assert alternatives(Topology.parse(other)) == ()
