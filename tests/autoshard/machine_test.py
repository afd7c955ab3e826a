"""Machine models: figures per device, axes from the outside in, places in mesh order."""

import pytest

from autoshard import chips
from autoshard.errors import MeshError
from autoshard.machine import machine_model
from autoshard.topology import Topology
from autoshard.torus import lay_out
from passes.hlo.machine import Axis, Fabric


def axes(text: str) -> list[tuple[str, int, bool]]:
    return [(a.name, a.size, a.wraps) for a in machine_model(Topology.parse(text)).axes]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v5p:4x4x8", [("z", 8, True), ("y", 4, True), ("x", 4, True)]),
        ("v5p:2x4x4", [("z", 4, False), ("y", 4, False), ("x", 2, False)]),
        ("v5p:2x2x1", [("y", 2, False), ("x", 2, False)]),
        ("v5e:8x16", [("y", 16, True), ("x", 8, False)]),
        ("v6e:1x1", []),
        ("2x v5e:16x16", [("dcn", 2, False), ("y", 16, True), ("x", 16, True)]),
        ("tpu7x:4x4x4", [("z", 4, True), ("y", 4, True), ("x", 4, True), ("die", 2, False)]),
        ("h100:8x4", [("infiniband", 4, False), ("nvlink", 8, False)]),
        ("b200:8", [("nvlink", 8, False)]),
        ("cpu:8", [("memory", 8, False)]),
    ],
)
def test_axes_from_the_outside_in(text: str, expected: list[tuple[str, int, bool]]) -> None:
    assert axes(text) == expected


def test_a_device_is_a_chip_or_half_of_one() -> None:
    v5p, tpu7x = (machine_model(Topology.parse(f"{name}:4x4x4")) for name in ("v5p", "tpu7x"))
    assert v5p.flops_per_s("bf16") == 459e12
    assert tpu7x.flops_per_s("bf16") == 2307e12 / 2
    assert tpu7x.flops_per_s("f8e4m3fn") == 4614e12 / 2
    assert tpu7x.hbm_bytes_per_s == 7380e9 / 2
    assert tpu7x.hbm_bytes == int(94.75 * 2**30)
    assert tpu7x.clock_hz == chips.get("tpu7x").clock_hz
    assert len(tpu7x.coordinates) == 128
    # Two devices share a chip's links, and have the way between them to themselves.
    by_name = {axis.name: axis.bytes_per_s for axis in tpu7x.axes}
    assert by_name == {"z": 4.5e10, "y": 4.5e10, "x": 4.5e10, "die": 6 * 9e10}


def test_ports_and_shares_of_adapters() -> None:
    gpus = machine_model(Topology.parse("h100:8x4"))
    assert gpus.axes == (
        Axis("infiniband", 4, Fabric.SWITCH, False, 50e9, 4e-6),
        Axis("nvlink", 8, Fabric.SWITCH, False, 450e9, 1.9e-6),
    )
    slices = machine_model(Topology.parse("2x v5e:4x4"))
    assert slices.axes[0] == Axis("dcn", 2, Fabric.SWITCH, False, 25e9 / 8, 10e-6)
    assert {axis.fabric for axis in slices.axes[1:]} == {Fabric.TORUS}


def test_places_in_the_compilers_order() -> None:
    machine = machine_model(Topology.parse("2x v5e:2x4"))
    assert [axis.name for axis in machine.axes] == ["dcn", "y", "x"]
    assert machine.coordinates[:4] == ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1))
    assert machine.coordinates[8] == (1, 0, 0)
    dies = machine_model(Topology.parse("tpu7x:2x2x1"))
    assert dies.coordinates[:4] == ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1))


def test_places_in_mesh_order() -> None:
    topology = Topology.parse("v5e:8x8")
    layout = lay_out(topology, (16, 4))
    machine = machine_model(topology, order=layout.order, efficiency=0.9)
    assert machine.coordinates == layout.coordinates
    assert machine.efficiency == 0.9
    # The last mesh axis is a tile of 2 x 2.
    assert machine.coordinates[:4] == ((0, 0), (0, 1), (1, 0), (1, 1))


def test_an_order_must_be_a_permutation() -> None:
    with pytest.raises(MeshError, match="no permutation of the 8 of b200:8"):
        machine_model(Topology.parse("b200:8"), order=(0, 1, 2, 3, 4, 5, 6, 6))


def test_a_platform_alone_is_no_machine() -> None:
    with pytest.raises(MeshError, match="name the chip and the shape"):
        machine_model(Topology.parse("gpu:8"))
