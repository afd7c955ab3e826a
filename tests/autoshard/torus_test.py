"""Mesh axes on the torus: least cost by brute force, link loads counted, rules for other levels."""

import collections
import itertools
import math
from collections.abc import Iterator, Sequence

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from autoshard.errors import MeshError
from autoshard.topology import Topology
from autoshard.torus import MeshLayout, Part, device_order, lay_out


def described(layout: MeshLayout) -> list[str]:
    """`z4 * y2/2`: parts with their sizes and strides above 1."""

    def one(part: Part) -> str:
        return f"{part.axis}{part.size}" + (f"/{part.stride}" if part.stride > 1 else "")

    return [" * ".join(map(one, parts)) for parts in layout.parts]


@pytest.mark.parametrize(
    ("topology", "sizes", "expected"),
    [
        ("v5p:4x4x4", (16, 4), ["z4 * y4", "x4"]),
        ("v5p:4x4x4", (4, 16), ["z4", "y4 * x4"]),
        ("v5p:4x4x4", (64,), ["z4 * y4 * x4"]),
        ("v5p:4x4x4", (1, 64), ["", "z4 * y4 * x4"]),
        ("v5p:8x8x16", (64, 16), ["y8 * x8", "z16"]),
        ("v5e:16x16", (16, 16), ["y16", "x16"]),
        # No axis of 4: every second chip each way, and tiles of 2 x 2.
        ("v5e:8x8", (16, 4), ["y4/2 * x4/2", "y2 * x2"]),
        ("v5e:16x16", (64, 4), ["y8/2 * x8/2", "y2 * x2"]),
        # The dies of a chip, the closest of all, go to the last axis.
        ("tpu7x:4x4x4", (64, 2), ["z4 * y4 * x4", "die2"]),
        ("tpu7x:4x4x4", (16, 8), ["z4 * y4", "x4 * die2"]),
        # Slices and hosts go to the first.
        ("2x v5e:16x16", (32, 16), ["dcn2 * y16", "x16"]),
        ("2x v5e:16x16", (2, 16, 16), ["dcn2", "y16", "x16"]),
        ("4x v5e:16x16", (2, 32, 16), ["dcn2/2", "dcn2 * y16", "x16"]),
        ("h100:8x4", (4, 8), ["infiniband4", "nvlink8"]),
        ("h100:8x4", (8, 4), ["infiniband4 * nvlink2/4", "nvlink4"]),
        ("h100:8x4", (2, 16), ["infiniband2/2", "infiniband2 * nvlink8"]),
        ("b200:8", (1, 8), ["", "nvlink8"]),
        ("cpu:8", (2, 4), ["memory2/4", "memory4"]),
    ],
)
def test_known_layouts(topology: str, sizes: tuple[int, ...], expected: list[str]) -> None:
    assert described(lay_out(Topology.parse(topology), sizes)) == expected


MESHES = [
    (text, sizes)
    for text in ("v5p:4x4x8", "v5e:4x8", "2x v5e:4x4", "tpu7x:2x2x4", "h100:8x4", "cpu:32")
    for sizes in ((32,), (8, 4), (4, 8), (2, 4, 4), (16, 1, 2))
]


@pytest.mark.parametrize(("text", "sizes"), MESHES)
def test_coordinates_follow_the_parts(text: str, sizes: tuple[int, ...]) -> None:
    topology = Topology.parse(text)
    factor = topology.device_count // math.prod(sizes)
    sizes = (sizes[0] * factor, *sizes[1:])
    layout = lay_out(topology, sizes)
    assert sorted(layout.order) == list(range(topology.device_count))
    assert len(set(layout.coordinates)) == topology.device_count
    names = [part.axis for parts in layout.parts for part in parts]
    axes = sorted(set(names), key=lambda name: "dcn infiniband zyx die memory nvlink".index(name))
    for place, coordinates in zip(
        itertools.product(*map(range, sizes)), layout.coordinates, strict=True
    ):
        expected: collections.Counter[str] = collections.Counter(dict.fromkeys(axes, 0))
        for index, parts in zip(place, layout.parts, strict=True):
            for part in reversed(parts):
                index, digit = divmod(index, part.size)
                expected[part.axis] += digit * part.stride
        assert coordinates == tuple(expected[axis] for axis in axes)


def test_the_order_makes_the_mesh() -> None:
    topology = Topology.parse("v5p:4x4x4")
    devices = np.arange(64)
    mesh = devices[device_order(topology, (16, 4))].reshape(16, 4)
    assert (mesh[0] == [0, 1, 2, 3]).all()  # x fastest
    assert (mesh[:, 0] == 4 * np.arange(16)).all()
    switched = devices[device_order(topology, (4, 16), weights=(1.0, 1.0))].reshape(4, 16)
    assert sorted(switched.ravel()) == list(range(64))


# A search of its own: every way to give each torus axis's factors to mesh axes, in every order.


def all_splits(
    axes: tuple[int, ...], sizes: tuple[int, ...]
) -> Iterator[tuple[tuple[tuple[int, int], ...], ...]]:
    per_axis = []
    for axis in axes:
        divisors = [d for d in range(1, axis + 1) if axis % d == 0]
        choices = set()
        for shares in itertools.product(divisors, repeat=len(sizes)):
            if math.prod(shares) == axis:
                used = [(i, share) for i, share in enumerate(shares) if share > 1]
                choices |= set(itertools.permutations(used))
        per_axis.append(sorted(choices))
    for splits in itertools.product(*per_axis):
        owned = [1] * len(sizes)
        for split in splits:
            for i, share in split:
                owned[i] *= share
        if tuple(owned) == sizes:
            yield splits


def cost(
    axes: tuple[int, ...],
    closed: tuple[bool, ...],
    splits: tuple[tuple[tuple[int, int], ...], ...],
    weights: tuple[float, ...],
) -> float:
    """Seconds for a byte a second on a link, from the definition in the module's head."""
    total = 0.0
    for i, weight in enumerate(weights):
        parts = []  # (whole, ring, stride)
        count = 1
        for size, ring, split in zip(axes, closed, splits, strict=True):
            for place, (owner, share) in enumerate(split):
                if owner == i:
                    stride = math.prod(other for _, other in split[place + 1 :])
                    parts.append((share == size, ring and place == 0, stride))
                    count *= share
        if not parts:
            continue
        if all(whole for whole, _, _ in parts):
            bandwidth = sum(2.0 if ring else 1.0 for _, ring, _ in parts)
        elif len(parts) == 1:
            bandwidth = (2.0 if parts[0][1] else 1.0) / parts[0][2]
        else:
            bandwidth = 2.0 / max(stride for _, _, stride in parts)
        total += weight * (count - 1) / count / bandwidth
    return total


@pytest.mark.parametrize(
    ("text", "sizes", "weights"),
    [
        ("v5e:2x4", (4, 2), None),
        ("v5e:4x4", (8, 2), None),
        ("v5e:8x8", (16, 4), None),
        ("v5e:8x8", (4, 2, 8), None),
        ("v5e:8x16", (4, 32), (1.0, 1.0)),
        ("v5e:8x16", (8, 4, 4), (3.0, 1.0, 2.0)),
        ("v5p:2x2x4", (2, 8), None),
        ("v5p:4x4x4", (8, 8), None),
        ("v5p:4x4x4", (2, 4, 8), (1.0, 5.0, 2.0)),
        ("v5p:4x4x4", (2, 2, 16), None),
        ("v5p:4x4x12", (6, 32), None),
        ("v4:4x4x8", (16, 2, 4), (1.0, 1.0, 1.0)),
    ],
)
def test_no_other_layout_costs_less(
    text: str, sizes: tuple[int, ...], weights: tuple[float, ...] | None
) -> None:
    topology = Topology.parse(text)
    axes, closed = topology.shape[::-1], topology.wraps[::-1]
    given = weights or tuple(4.0**i for i in range(len(sizes)))
    link = topology.known_chip.link.bytes_per_s
    least = min(cost(axes, closed, splits, given) for splits in all_splits(axes, sizes))
    layout = lay_out(topology, sizes, weights)
    assert layout.cost_s_per_byte == pytest.approx(least / link, rel=1e-9)


# What parts cost is what links carry: rings through the members of all groups, hop by hop.


def ring_load(
    places: Sequence[Sequence[tuple[int, ...]]], shape: tuple[int, ...], ring: bool
) -> int:
    """The most rings that any link carries one way; hops between members go straight."""
    loads: collections.Counter[tuple[tuple[int, ...], int, int]] = collections.Counter()
    for members in places:
        for here, there in itertools.pairwise([*members, members[0]]):
            (dim,) = (d for d in range(len(shape)) if here[d] != there[d])
            step = 1 if there[dim] > here[dim] else -1
            if ring and abs(there[dim] - here[dim]) > shape[dim] / 2:
                step = -step
            at = list(here)
            while at[dim] != there[dim]:
                loads[tuple(at), dim, step] += 1
                at[dim] = (at[dim] + step) % shape[dim]
    return max(loads.values())


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_groups_in_a_line_share_its_links(size: int, stride: int) -> None:
    places = [[(start + i * stride,) for i in range(size)] for start in range(stride)]
    # One ring there and back: each link carries as many rings as there are groups in between.
    assert ring_load(places, (size * stride,), ring=False) == stride


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_groups_in_a_ring_leave_the_other_direction_free(size: int, stride: int) -> None:
    places = [[(start + i * stride,) for i in range(size)] for start in range(stride)]
    backwards = [members[::-1] for members in places]
    assert ring_load(places, (size * stride,), ring=True) == stride
    assert ring_load(places + backwards, (size * stride,), ring=True) == stride


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (4, 4), (2, 4), (8, 2)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_ring_through_a_grid_shares_links_by_its_stride(
    rows: int, columns: int, stride: int
) -> None:
    there = [(row, 0) for row in range(rows)]  # down the first column, back in snakes
    back = [
        (row, column)
        for row in reversed(range(rows))
        for column in (range(1, columns) if row % 2 else reversed(range(1, columns)))
    ]
    places = [
        [(a + row * stride, b + column * stride) for row, column in there + back]
        for a in range(stride)
        for b in range(stride)
    ]
    shape = (rows * stride, columns * stride)
    both = places + [members[::-1] for members in places]
    assert ring_load(both, shape, ring=False) == stride


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40, deadline=None)
def test_layouts_of_drawn_meshes(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(["v5p:4x4x8", "2x v5e:4x8", "tpu7x:2x4x4", "h100:8x8"]))
    topology = Topology.parse(text)
    left, sizes = topology.device_count, []
    for _ in range(3):
        sizes.append(data.draw(st.sampled_from([d for d in (1, 2, 4, 8) if left % d == 0])))
        left //= sizes[-1]
    mesh = (left, *sizes)
    layout = lay_out(topology, mesh)
    assert sorted(layout.order) == list(range(topology.device_count))
    for size, parts in zip(mesh, layout.parts, strict=True):
        assert math.prod(part.size for part in parts) == size


def test_a_mesh_of_another_size_is_refused() -> None:
    topology = Topology.parse("v5p:4x4x4")
    with pytest.raises(MeshError, match="a mesh of 8x4 has 32 devices and v5p:4x4x4 has 64"):
        lay_out(topology, (8, 4))
    with pytest.raises(MeshError, match="1 weights for 2 mesh axes"):
        lay_out(topology, (16, 4), (1.0,))
    with pytest.raises(MeshError, match="names 8 devices but no chip"):
        lay_out(Topology.parse("gpu:8"), (8,))
