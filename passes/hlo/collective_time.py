"""Seconds of a collective from its bytes, its algorithm and the links that it runs over.

Models: on a torus every axis that a group spans is a ring used in both directions, and the axes
work side by side ("How to Scale Your Model", chapter 3); behind a switch every device has a port.
Where a group spans both, the inner fabric goes first and the outer one moves what is left, 1/n of
the data (hierarchical algorithms, as NCCL's and Megascale's).
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence

from passes.hlo.machine import Axis, Fabric, MachineModel
from passes.hlo.replica_groups import Groups

_MOST_GROUPS = 32  # groups of one collective are alike but where devices differ

# Times the data crosses the group: once to gather or scatter, twice to reduce for all.
_PASSES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "collective-broadcast": 1}


@dataclasses.dataclass(frozen=True)
class CollectiveTime:
    """What a collective takes.

    Attributes:
      seconds: from its begin to its end, undisturbed.
      axes: names of the axes that it runs over.
      links: the directions of those axes that are busy meanwhile, as `x+` and `x-`. Rings use
        both; a permute that shifts one way leaves the other free.
    """

    seconds: float
    axes: tuple[str, ...]
    links: tuple[str, ...]


def _both(axes: Iterable[str]) -> tuple[str, ...]:
    return tuple(axis + sign for axis in axes for sign in "+-")


@dataclasses.dataclass(frozen=True)
class _Extent:
    """What a group takes of one axis: its places, and a device's one-way bandwidth along it.

    Attributes:
      axis: the axis.
      places: how many of its places.
      bytes_per_s: of a device into the axis, over all links that the group's pattern leaves it.
      link_bytes_per_s: of one link.
      stride: places of the axis from one member to the next.
    """

    axis: Axis
    places: int
    bytes_per_s: float
    link_bytes_per_s: float
    stride: int


def collective_time(
    machine: MachineModel, kind: str, payload_bytes: float, groups: Groups
) -> CollectiveTime:
    """Time of one collective; the slowest of its groups.

    Args:
      machine: the model.
      kind: as in `Collective`.
      payload_bytes: a device's data, of the larger side.
      groups: logical devices; pairs for a permute.
    """
    if kind == "collective-permute":
        return _permute(machine, payload_bytes, groups)
    worst, axes = 0.0, dict[str, None]()
    for group in groups[:: max(1, len(groups) // _MOST_GROUPS)]:
        extents = _extents(machine, group)
        axes.update(dict.fromkeys(e.axis.name for e in extents))
        worst = max(worst, _group_time(kind, payload_bytes, len(group), extents))
    return CollectiveTime(worst, tuple(axes), _both(axes))


def slices_time(machine: MachineModel, kind: str, payload_bytes: float) -> CollectiveTime:
    """Time of a collective between slices: over the outermost axis, all its places."""
    if not machine.axes:  # one device has nobody to talk to
        return CollectiveTime(0.0, (), ())
    axis = machine.axes[0]
    extent = _Extent(axis, axis.size, axis.bytes_per_s, axis.bytes_per_s, 1)
    scale = axis.size if kind == "all-gather" else 1  # what is sent is one slice's share
    seconds = _group_time(kind, payload_bytes * scale, axis.size, [extent])
    return CollectiveTime(seconds, (axis.name,), _both((axis.name,)))


def _extents(machine: MachineModel, group: Sequence[int]) -> list[_Extent]:
    """Axes that a group spans, innermost first."""
    known = [d for d in group if d < len(machine.coordinates)]
    found = []
    for number, axis in reversed(list(enumerate(machine.axes))):
        places = sorted({machine.coordinates[d][number] for d in known})
        if len(places) < 2:
            continue
        link = axis.bytes_per_s
        if axis.device_bytes_per_s:
            link = min(axis.device_bytes_per_s[d] for d in known)
        found.append(_extent(axis, places, link))
    return found


def _extent(axis: Axis, places: list[int], link: float) -> _Extent:
    if axis.fabric is Fabric.SWITCH:
        return _Extent(axis, len(places), link, link, 1)
    stride = min(b - a for a, b in itertools.pairwise(places))
    closed = axis.wraps and len(places) * stride == axis.size
    # Rings with gaps share their links with the rings in the gaps; a line has one way out at its
    # ends.
    return _Extent(axis, len(places), (2 if closed else 1) * link / stride, link, stride)


def _group_time(kind: str, payload: float, size: int, extents: Sequence[_Extent]) -> float:
    levels = _levels(extents)
    if math.prod(e.places for e in extents) != size:  # no sub-grid: a ring over the slowest axis
        levels = [[min(extents, key=lambda e: e.bytes_per_s)]] if extents else []
    seconds, inside = 0.0, 1
    for level in levels:
        width = math.prod(e.places for e in level) if len(levels) > 1 else size
        latency = sum(e.axis.latency_s * e.stride * (e.places - 1) for e in level)
        moved = _moved(kind, payload / inside, width, level)
        seconds += moved / _rate(level) + _PASSES.get(kind, 1) * latency
        inside *= width
    return seconds


def _levels(extents: Sequence[_Extent]) -> list[list[_Extent]]:
    """The fabrics that a group spans, innermost first; the axes of one torus are one fabric."""
    levels: list[list[_Extent]] = []
    for extent in extents:
        torus = extent.axis.fabric is Fabric.TORUS
        if torus and levels and levels[-1][0].axis.fabric is Fabric.TORUS:
            levels[-1].append(extent)
        else:
            levels.append([extent])
    return levels


def _rate(level: Sequence[_Extent]) -> float:
    """A device's bytes/s through a fabric, one way.

    Whole axes of a torus work side by side. Where a group has parts of several axes, libtpu runs a
    single ring through all its members (read off the strategies that it names in its programs).
    """
    if len(level) == 1 or all(e.places == e.axis.size for e in level):
        return sum(e.bytes_per_s for e in level)
    return min(2 * e.link_bytes_per_s for e in level) / max(e.stride for e in level)


def _moved(kind: str, payload: float, width: int, level: Sequence[_Extent]) -> float:
    """Bytes that a device sends through its links, one level of the hierarchy."""
    share = payload * (width - 1) / width
    if kind not in ("all-to-all", "ragged-all-to-all"):
        return _PASSES.get(kind, 1) * share
    if level[0].axis.fabric is Fabric.SWITCH:
        return share
    # On a ring of n used both ways a byte passes n / 4 links on average; the longest axis decides.
    longest = max(e.places for e in level)
    return payload * max(longest / 4, 1 - 1 / width)


@dataclasses.dataclass(frozen=True)
class _Routes:
    """Where the messages of a permute meet, axis by axis.

    Attributes:
      load: messages on the fullest link of each axis, one way.
      hops: the most places that a message goes along each axis.
      links: directions that are used, as `x+`.
    """

    load: tuple[int, ...]
    hops: tuple[int, ...]
    links: tuple[str, ...]


def _permute(machine: MachineModel, payload: float, pairs: Groups) -> CollectiveTime:
    """Messages go axis by axis and share the links on which they meet: the fullest one decides."""
    known = len(machine.coordinates)
    two = (pair for pair in pairs if len(pair) == 2)
    moving = tuple((s, t) for s, t in two if s != t and max(s, t) < known)
    routes = _routes(machine.axes, machine.coordinates, moving)
    worst = latency = 0.0
    for axis, load, hops in zip(machine.axes, routes.load, routes.hops, strict=True):
        rates = axis.device_bytes_per_s
        link = min((rates[s] for s, _ in moving), default=0.0) if rates else axis.bytes_per_s
        worst = max(worst, load * payload / link if load else 0.0)
        latency += hops * axis.latency_s
    axes = [axis.name for axis, hops in zip(machine.axes, routes.hops, strict=True) if hops]
    return CollectiveTime(worst + latency, tuple(axes), routes.links)


@functools.lru_cache(maxsize=1024)
def _routes(
    axes: tuple[Axis, ...], coordinates: tuple[tuple[int, ...], ...], pairs: Groups
) -> _Routes:
    """Route every message in the order of the axes, the shorter way round on a ring."""
    loads: list[collections.Counter[tuple[tuple[int, ...], str]]]
    loads = [collections.Counter() for _ in axes]
    hops = [0] * len(axes)
    links: dict[str, None] = {}
    for source, target in pairs:
        here = list(coordinates[source])
        for number, axis in enumerate(axes):
            count, sign = _route(axis, here[number], coordinates[target][number])
            hops[number] = max(hops[number], count)
            if count:
                links[axis.name + sign] = None
            for _ in range(count):
                loads[number][tuple(here), sign] += 1
                if axis.fabric is Fabric.TORUS:
                    here[number] = (here[number] + (1 if sign == "+" else -1)) % axis.size
            here[number] = coordinates[target][number]
    load = tuple(max(counter.values(), default=0) for counter in loads)
    return _Routes(load, tuple(hops), tuple(links))


def _route(axis: Axis, here: int, there: int) -> tuple[int, str]:
    """Hops between two places of an axis, and in which direction."""
    if axis.fabric is Fabric.SWITCH:
        return int(here != there), "+"
    forward = there - here
    if axis.wraps:
        forward %= axis.size
        if 2 * forward > axis.size:
            forward -= axis.size
    return abs(forward), "+" if forward > 0 else "-"
