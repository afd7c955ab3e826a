"""Places that we give to devices are where the TPU compiler has them."""

import importlib.util

import pytest

from autoshard import aot
from autoshard.interconnect import interconnect
from autoshard.topology import Topology

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]


@pytest.mark.parametrize(
    "text", ["v4:2x4x4", "v5e:8x16", "v5p:4x4x8", "v6e:1x1", "tpu7x:2x2x4", "2x v5e:2x4"]
)
def test_devices_are_where_they_are_said_to_be(text: str) -> None:
    topology = Topology.parse(text)
    devices = aot.devices(topology.compiler_name)
    ways = interconnect(topology)
    names = [axis.name for axis in ways.axes]
    assert {device.device_kind for device in devices} <= set(topology.known_chip.device_kinds)
    for device, coordinates in zip(devices, ways.coordinates, strict=True):
        place = dict(zip(names, coordinates, strict=True))
        assert [place.get(name, 0) for name in "xyz"] == list(device.coords)
        assert place.get("die", 0) == device.core_on_chip
        assert place.get("dcn", 0) == (getattr(device, "slice_index", None) or 0)
