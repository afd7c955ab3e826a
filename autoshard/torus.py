"""Which devices a mesh is made of: mesh axes laid on the ways between devices.

A mesh axis is a product of parts of physical axes; a part is a whole physical axis or, where it
must be, a factor of one with a stride:

    mesh 16 x 4 on v5p:4x4x4    data = z * y, model = x         each owns whole axes
    mesh 16 x 4 on v5e:8x8      data = y4/2 * x4/2              every second place of y and of x,
                                model = y2 * x2                 and tiles of 2 x 2, rings of
                                                                neighbours

Switched levels are dealt out by rule: those between slices or hosts to the leading mesh axes, the
dies of a chip to the last ones. The torus is searched for the assignment of least cost: the sum
over mesh axes of weight times the seconds that an all-gather of one byte takes, in all groups of
the axis at once. A level of n devices with b bytes/s takes (n - 1) / n / b, and a level further out
does so on the share that is left ("How to Scale Your Model", chapter "Sharded Matrices and How to
Multiply Them"). With B for the bytes/s of a link, one way, b is

    a switch                      the device's port
    parts that are whole axes     2B for each that closes to a ring, B for each other: libtpu runs
                                  rings along all of them at once
    one part of an axis           B / stride, as the groups in between share the links; twice that
                                  for the outermost part of a ring
    parts, not all of them whole  2B / the largest stride: libtpu runs one ring through all members

What libtpu does is read off its collective strategies: `UniDirectionNDRingStrategy` for whole axes,
one-dimensional ones else.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from autoshard.errors import MeshError
from autoshard.interconnect import interconnect
from autoshard.topology import Topology
from passes.hlo.machine import Axis, Fabric

_MOST_TRIED = 20_000
_TORUS = "torus"  # the level that all torus axes are of
_HEAVIER = 4.0  # than the mesh axis before it, where the user gives no weights


@dataclasses.dataclass(frozen=True)
class Part:
    """A factor of a physical axis that a mesh axis owns.

    Attributes:
      axis: name of the physical axis.
      size: number of places.
      stride: places of the physical axis from one to the next.
      whole: whether it is the whole physical axis.
      closes: whether its last place has a link back to the first, perhaps shared.
    """

    axis: str
    size: int
    stride: int
    whole: bool
    closes: bool


@dataclasses.dataclass(frozen=True)
class MeshLayout:
    """A mesh on the devices of a topology.

    Attributes:
      sizes: of the mesh axes, outermost first.
      parts: for each mesh axis, what it owns, major to minor; empty where devices are too unevenly
        grouped for a mesh axis to own anything.
      order: for each place of the mesh (row-major), its device in the compiler's order.
      coordinates: for each place of the mesh, its place along each physical axis (outermost first).
      cost_s_per_byte: what the layout was chosen by; None where there was no choice.
    """

    sizes: tuple[int, ...]
    parts: tuple[tuple[Part, ...], ...]
    order: tuple[int, ...]
    coordinates: tuple[tuple[int, ...], ...]
    cost_s_per_byte: float | None


def device_order(
    topology: Topology, sizes: Sequence[int], weights: Sequence[float] | None = None
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """The permutation that makes a mesh of a topology's devices.

    With `devices` an array of them in the compiler's order (by `id`), the mesh is
    `devices[device_order(topology, sizes)].reshape(sizes)`.

    Raises:
      MeshError: as `lay_out`.
    """
    return np.array(lay_out(topology, tuple(sizes), weights and tuple(weights)).order, np.int64)


@functools.lru_cache(maxsize=256)
def lay_out(
    topology: Topology, sizes: tuple[int, ...], weights: tuple[float, ...] | None = None
) -> MeshLayout:
    """Lays mesh axes on the ways between the devices of a topology.

    Args:
      topology: the machine; its chip must be known.
      sizes: of the mesh axes, outermost first.
      weights: bytes that are sent along each mesh axis, up to a common factor; by default each axis
        sends four times as much as the one before it.

    Raises:
      MeshError: the sizes do not multiply to the number of devices, there are more or fewer weights
        than axes, or only the platform of the topology is known.
    """
    if math.prod(sizes) != topology.device_count or min(sizes, default=0) < 1:
        raise MeshError(
            f"a mesh of {'x'.join(map(str, sizes))} has {math.prod(sizes)} devices and {topology} "
            f"has {topology.device_count}: the product of the axes must be that"
        )
    if weights is None:
        weights = tuple(_HEAVIER**i for i in range(len(sizes)))
    if len(weights) != len(sizes):
        raise MeshError(f"{len(weights)} weights for {len(sizes)} mesh axes: give one for each")
    ways = interconnect(topology)
    if not ways.regular:
        plain = tuple(range(topology.device_count))
        return MeshLayout(sizes, ((),) * len(sizes), plain, ways.coordinates, None)
    split = _split(ways.axes, sizes, weights)
    parts = _parts(ways.axes, split, len(sizes))
    order = _order(ways.axes, split, len(sizes))
    return MeshLayout(
        sizes,
        parts,
        order,
        tuple(ways.coordinates[device] for device in order),
        _cost(ways.axes, parts, weights),
    )


# How one physical axis is split: (mesh axis, size) pairs, major to minor.
_Split = tuple[tuple[int, int], ...]


def _split(
    axes: tuple[Axis, ...], sizes: tuple[int, ...], weights: tuple[float, ...]
) -> tuple[_Split, ...]:
    """The split of every physical axis."""
    torus = [j for j, axis in enumerate(axes) if axis.fabric is Fabric.TORUS]
    left = list(sizes)
    found: dict[int, _Split] = {}
    inner = [j for j in range(len(axes)) if torus and j > torus[-1]]
    for j in reversed(inner):  # dies, to the last mesh axes
        found[j] = _deal(axes[j].size, left, reversed(range(len(sizes))))
    for j in range(len(axes)):
        if j not in torus and j not in inner:
            found[j] = _deal(axes[j].size, left, range(len(sizes)))
    searched = _search(tuple(axes[j] for j in torus), tuple(left), weights) if torus else ()
    found.update(zip(torus, searched, strict=True))
    return tuple(found[j] for j in range(len(axes)))


def _deal(size: int, left: list[int], mesh_axes: Iterator[int] | range) -> _Split:
    """Gives each mesh axis in turn as much of a switched axis as divides what it still needs."""
    split = []
    for i in mesh_axes:
        share = math.gcd(size, left[i])
        left[i] //= share
        size //= share
        if share > 1:
            split.append((i, share))
    return tuple(sorted(split))


def _search(
    axes: tuple[Axis, ...], sizes: tuple[int, ...], weights: tuple[float, ...]
) -> tuple[_Split, ...]:
    """The splits of torus axes of least cost; of equal ones, that with fewest parts, then first.

    Every distribution of factors is bounded from below by what its parts would cost if none shared
    a link; orders of parts on an axis are tried by that bound, until it passes the best. Meshes of
    five and more axes can have millions of orders: the search then ends after `_MOST_TRIED`.
    """
    bounded = []
    for factors in _distributions(tuple(axis.size for axis in axes), sizes):
        pieces = sum(len(split) for split in factors)
        bounded.append((_bound(axes, factors, weights), pieces, factors))
    promising = (
        (bound, pieces, splits)
        for bound, pieces, factors in sorted(bounded)
        for splits in itertools.product(*(_orders(split, weights) for split in factors))
    )
    best: tuple[float, int, tuple[_Split, ...]] | None = None
    for bound, pieces, splits in itertools.islice(promising, _MOST_TRIED):
        if best is not None and (bound, pieces) > best[:2]:
            break
        cost = _cost(axes, _parts(axes, splits, len(weights)), weights)
        best = min(best or (math.inf, 0, ()), (cost, pieces, splits))
    assert best is not None, (axes, sizes)  # lay_out checked the product
    return best[2]


def _distributions(
    axis_sizes: tuple[int, ...], sizes: tuple[int, ...]
) -> Iterator[tuple[_Split, ...]]:
    """All ways to write mesh sizes as products of factors of the axes; each axis by mesh axis."""
    if not axis_sizes:
        if math.prod(sizes) == 1:
            yield ()
        return
    for shares in _shares(axis_sizes[0], sizes):
        left = tuple(size // share for size, share in zip(sizes, shares, strict=True))
        split = tuple((i, share) for i, share in enumerate(shares) if share > 1)
        for rest in _distributions(axis_sizes[1:], left):
            yield (split, *rest)


def _shares(size: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All factors of `size`, one for each mesh axis and dividing it, that multiply to `size`."""
    if not sizes:
        if size == 1:
            yield ()
        return
    common = math.gcd(size, sizes[0])
    for share in range(1, common + 1):
        if common % share == 0:
            for rest in _shares(size // share, sizes[1:]):
                yield (share, *rest)


def _orders(split: _Split, weights: tuple[float, ...]) -> Iterator[_Split]:
    """All orders of the parts on an axis; the heaviest mesh axis minor in the first of them."""
    heaviest_last = sorted(split, key=lambda part: (weights[part[0]], part[0]))
    return itertools.permutations(heaviest_last)


def _parts(
    axes: tuple[Axis, ...], splits: tuple[_Split, ...], mesh_axes: int
) -> tuple[tuple[Part, ...], ...]:
    """What each mesh axis owns, by physical axis from the outermost on."""
    owned: list[list[Part]] = [[] for _ in range(mesh_axes)]
    for axis, split in zip(axes, splits, strict=True):
        stride = axis.size
        for place, (i, size) in enumerate(split):
            stride //= size
            closes = axis.wraps and place == 0
            owned[i].append(Part(axis.name, size, stride, size == axis.size, closes))
    return tuple(tuple(parts) for parts in owned)


def _order(axes: tuple[Axis, ...], splits: tuple[_Split, ...], mesh_axes: int) -> tuple[int, ...]:
    """Devices in the mesh's row-major order: pieces of the physical axes, by mesh axis."""
    pieces = [(i, size) for split in splits for i, size in split]
    devices = np.arange(math.prod(axis.size for axis in axes))
    devices = devices.reshape([size for _, size in pieces])
    by_mesh_axis = [k for i in range(mesh_axes) for k, piece in enumerate(pieces) if piece[0] == i]
    return tuple(int(device) for device in devices.transpose(by_mesh_axis).ravel())


def _bound(
    axes: tuple[Axis, ...], factors: tuple[_Split, ...], weights: tuple[float, ...]
) -> float:
    """A cost that no order of the parts on their axes can be below: as if none shared links."""
    owned: list[list[Part]] = [[] for _ in weights]
    for axis, split in zip(axes, factors, strict=True):
        for i, size in split:
            owned[i].append(Part(axis.name, size, 1, size == axis.size, axis.wraps))
    return _cost(axes, tuple(map(tuple, owned)), weights)


def _cost(
    axes: tuple[Axis, ...], parts: tuple[tuple[Part, ...], ...], weights: tuple[float, ...]
) -> float:
    """Seconds a byte, as the head of this file defines it."""
    return sum(
        weight * _gather_s_per_byte(axes, owned)
        for weight, owned in zip(weights, parts, strict=True)
    )


def _gather_s_per_byte(axes: tuple[Axis, ...], owned: tuple[Part, ...]) -> float:
    """Seconds of an all-gather of one byte along a mesh axis, level by level from the inside."""
    by_name = {axis.name: axis for axis in axes}
    seconds, inner = 0.0, 1
    for name, level in itertools.groupby(reversed(owned), key=lambda p: _level(by_name[p.axis])):
        parts = tuple(level)
        axis = by_name[parts[0].axis]
        bandwidth = _torus_bytes_per_s(axis, parts) if name == _TORUS else axis.bytes_per_s
        count = math.prod(part.size for part in parts)
        seconds += (count - 1) / count / bandwidth / inner
        inner *= count
    return seconds


def _level(axis: Axis) -> str:
    return _TORUS if axis.fabric is Fabric.TORUS else axis.name


def _torus_bytes_per_s(axis: Axis, parts: tuple[Part, ...]) -> float:
    link = axis.bytes_per_s
    if all(part.whole for part in parts):
        return sum((2 if part.closes else 1) * link for part in parts)
    if len(parts) == 1:
        return (2 if parts[0].closes else 1) * link / parts[0].stride
    return 2 * link / max(part.stride for part in parts)
