"""Topologies by name: what they stand for, and what is said of those that there are not."""

import math

import hypothesis
import pytest
from hypothesis import strategies as st

from autoshard import chips
from autoshard.errors import MeshError
from autoshard.slice_shapes import check_slice_shape, slice_shapes, wraps
from autoshard.topology import Topology


@pytest.mark.parametrize(
    ("text", "platform", "count", "shape", "slices"),
    [
        ("v5p:4x4x4", "tpu", 64, (4, 4, 4), 1),
        ("v5e:16x16", "tpu", 256, (16, 16), 1),
        ("v6e:16x16", "tpu", 256, (16, 16), 1),
        ("v5e:1x1", "tpu", 1, (1, 1), 1),
        ("v4:2x2x4", "tpu", 16, (2, 2, 4), 1),
        ("tpu7x:4x4x4", "tpu", 128, (4, 4, 4), 1),
        ("2x v5e:16x16", "tpu", 512, (16, 16), 2),
        ("3xv5p:8x8x16", "tpu", 3072, (8, 8, 16), 3),
        ("h100:8x4", "gpu", 32, (8, 4), 1),
        ("h100:4x2", "gpu", 8, (4, 2), 1),
        ("b200:8", "gpu", 8, (8,), 1),
        ("h200:8x1", "gpu", 8, (8,), 1),
        ("  V5P:4X4X8 ", "tpu", 128, (4, 4, 8), 1),
        ("cpu:8", "cpu", 8, (), 1),
        ("tpu:8", "tpu", 8, (), 1),
    ],
)
def test_names(text: str, platform: str, count: int, shape: tuple[int, ...], slices: int) -> None:
    topology = Topology.parse(text)
    assert (topology.platform, topology.device_count) == (platform, count)
    assert (topology.shape, topology.slices) == (shape, slices)
    assert Topology.parse(str(topology)) == topology


@hypothesis.given(st.data())
def test_names_are_read_back(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["v4", "v5e", "v5p", "v6e", "tpu7x"]))
    shape = data.draw(st.sampled_from(slice_shapes(name)))
    slices = data.draw(st.integers(1, 4))
    text = f"{slices}x {name}:{'x'.join(map(str, shape))}"
    topology = Topology.parse(text)
    assert str(topology) == text.removeprefix("1x ")
    assert Topology.parse(str(topology)) == topology
    chip = chips.get(name)
    assert topology.device_count == slices * math.prod(shape) * chip.devices_per_chip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5q:4x4x4", "'v5q:4x4x4': no chip 'v5q' is known: did you mean v5p"),
        ("h1000:8", "did you mean h100"),
        ("v5p:4x4x6", "no slice of shape 4x4x6; the nearest are v5p:4x4x8, v5p:4x4x4"),
        ("v5p:8x4x4", "the nearest are v5p:4x4x8, .* in ascending order"),
        ("v5p:4x4", "no slice of shape 4x4; the nearest are v5p:2x2x4"),
        ("v5p:16x20x28", "at most 6144 chips"),
        ("v5e:8x4", "the nearest are v5e:4x8"),
        ("v5e:32x32", "the nearest are v5e:16x16.* are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v6e:4x4x4", "v6e has no slice of shape 4x4x4; the nearest are v6e:8x8"),
        ("h100:16", "a host has at most 8 h100, not 16: write 'h100:8x2'"),
        ("b200:12x3", "'b200:8x5' for 40 of them on 5 hosts"),
        ("h100:2x2x2", "chips a host and hosts, such as 'h100:8x4'"),
        ("2x h100:8", "chips a host and hosts, such as 'h100:8x4'"),
        ("cpu:2x4", "cpu takes a number of devices"),
        ("2x cpu:4", "cpu takes a number of devices"),
        ("v5e:0x4", "at least 1"),
        ("0x v5e:4x4", "at least 1"),
        ("v5e 4x4", "cannot read topology 'v5e 4x4': write a chip and a shape"),
        ("v5e:", "cannot read topology"),
        ("v5e:4x", "cannot read topology"),
        ("99999x v5e:16x16", "25,599,744 devices, and machines of at most 1,000,000 are"),
        ("cpu:" + "9" * 5000, "cannot read topology"),
    ],
)
def test_names_that_stand_for_nothing(text: str, message: str) -> None:
    with pytest.raises(MeshError, match=message):
        Topology.parse(text)


@hypothesis.given(st.text("vh0123456789epx: .tomlcu=-", max_size=30))
def test_any_text_is_a_topology_or_an_error(text: str) -> None:
    try:
        assert Topology.parse(text).device_count > 0
    except MeshError as error:
        assert "\n" not in str(error).strip() or "\n" in text


def test_a_platform_alone_has_no_figures() -> None:
    with pytest.raises(MeshError, match=r"tpu:8 names 8 devices but no chip.*v5p:4x4x4"):
        _ = Topology.parse("tpu:8").known_chip
    assert Topology.parse("cpu:8").known_chip == chips.get("cpu")


@pytest.mark.parametrize("text", ["v5p:4x4x4", "2x v5e:4x4", "h100:8x2", "cpu:8"])
def test_compilers_know_them_by_the_same_name(text: str) -> None:
    assert Topology.parse(text).compiler_name == text


def test_slices_in_three_dimensions() -> None:
    shapes = slice_shapes("v5p")
    assert len(shapes) == len(set(shapes))
    cubes = {shape for shape in shapes if min(shape) >= 4}
    # Counted anew: multiples of four in ascending order, at most 96 cubes.
    sides = range(4, 4 * 96 + 1, 4)
    assert cubes == {
        (a, b, c)
        for a in sides
        for b in sides
        if a <= b and a * b * b <= 6144
        for c in sides
        if b <= c and a * b * c <= 6144
    }
    assert (16, 16, 24) in cubes
    for shape in ((2, 2, 1), (2, 4, 4), (8, 8, 16)):
        check_slice_shape("v5p", shape)


@pytest.mark.parametrize(
    ("shape", "closed"),
    # "How to Scale Your Model": 16 in two dimensions, whole cubes in three.
    [
        ((16, 16), (True, True)),
        ((8, 16), (False, True)),
        ((8, 8), (False, False)),
        ((4, 4, 4), (True, True, True)),
        ((4, 4, 12), (True, True, True)),
        ((2, 4, 4), (False, False, False)),
        ((2, 2, 1), (False, False, False)),
    ],
)
def test_which_axes_close_to_rings(shape: tuple[int, ...], closed: tuple[bool, ...]) -> None:
    assert wraps(shape) == closed


def test_a_platform_that_nothing_is_known_of_is_refused() -> None:
    with pytest.raises(MeshError, match="platform 'METAL' is unknown: it is one of cpu, gpu, tpu"):
        Topology("METAL", 1)
