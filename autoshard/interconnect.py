"""The ways between the devices of a topology, as axes of the machine model.

Devices are in the compiler's order, that of their `id`: slices or groups of hosts outermost, then
z, y, x of the torus (x fastest), then the dies of a chip; of GPUs, hosts, then GPUs in the host.
(The list that `get_topology_desc` returns goes host by host instead: sort it by `id`.)
"""

import dataclasses
import itertools
import math

from autoshard.chip import Chip
from autoshard.networks import HostGroup, HostNetwork
from autoshard.topology import Topology
from passes.hlo.machine import Axis, Fabric


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """Axes and the places of devices along them.

    Attributes:
      axes: outermost (slowest) first, each of at least two places; `device_bytes_per_s` of an axis
        is in the order of `coordinates`.
      coordinates: of each device, in the compiler's order.
      regular: whether every combination of coordinates is a device.
    """

    axes: tuple[Axis, ...]
    coordinates: tuple[tuple[int, ...], ...]
    regular: bool


def interconnect(topology: Topology) -> Interconnect:
    """The ways between the devices of a topology.

    Raises:
      MeshError: only the platform of the topology is known.
    """
    chip = topology.known_chip
    if topology.network is not None and topology.network.groups:
        return _groups(topology.network.groups, topology.network.between, chip)
    if chip.torus_dims:
        axes = (*_slices(topology, chip), *_torus(topology, chip), *_dies(chip))
    else:
        axes = _hosts(topology, chip)
    axes = tuple(axis for axis in axes if axis.size > 1)
    places = itertools.product(*(range(axis.size) for axis in axes))
    return Interconnect(axes, tuple(places), regular=True)


def _switch(name: str, size: int, bytes_per_s: float, latency_s: float) -> Axis:
    return Axis(name, size, Fabric.SWITCH, False, bytes_per_s, latency_s)


def _slices(topology: Topology, chip: Chip) -> tuple[Axis, ...]:
    sharers = chip.chips_per_host * chip.devices_per_chip
    if topology.network is not None and topology.network.between is not None:
        between = topology.network.between
        share = between.bytes_per_s / sharers
        return (_switch(between.name, topology.slices, share, between.latency_s),)
    if chip.network is None:
        return ()
    share = chip.network.count * chip.network.bytes_per_s / sharers
    return (_switch("dcn", topology.slices, share, chip.network.latency_s),)


def _torus(topology: Topology, chip: Chip) -> tuple[Axis, ...]:
    # Both devices of a chip send over its links, and each has its half of them.
    share = chip.link.bytes_per_s / chip.devices_per_chip
    return tuple(
        Axis(name, size, Fabric.TORUS, wraps, share, chip.link.latency_s)
        for name, size, wraps in reversed(
            tuple(zip("xyz", topology.shape, topology.wraps, strict=False))
        )
    )


def _dies(chip: Chip) -> tuple[Axis, ...]:
    if chip.die_link is None:
        return ()
    return (
        _switch("die", chip.devices_per_chip, chip.die_link.bytes_per_s, chip.die_link.latency_s),
    )


def _hosts(topology: Topology, chip: Chip) -> tuple[Axis, ...]:
    per_host, hosts = (*(topology.shape or (topology.device_count,)), 1)[:2]
    name = "nvlink" if chip.platform == "gpu" else "memory"
    port = chip.link.count * chip.link.bytes_per_s
    inside = _switch(name, per_host, port, chip.link.latency_s)
    if chip.network is None:
        return (inside,)
    # Every chip has its own adapters, whether the others of its host are used or not.
    share = chip.network.count * chip.network.bytes_per_s / chip.chips_per_host
    return (_switch("infiniband", hosts, share, chip.network.latency_s), inside)


def _groups(groups: tuple[HostGroup, ...], between: HostNetwork | None, chip: Chip) -> Interconnect:
    """Groups of hosts, each with its own network, joined by a slower one."""
    coordinates: tuple[tuple[int, ...], ...] = tuple(
        (g, host, place)
        for g, group in enumerate(groups)
        for host in range(group.hosts)
        for place in range(group.chips_per_host)
    )
    members = [groups[place[0]] for place in coordinates]
    names = {group.network.name for group in groups}
    axes = [
        Axis(
            next(iter(names)) if len(names) == 1 else "network",
            max(group.hosts for group in groups),
            Fabric.SWITCH,
            False,
            min(group.network.bytes_per_s / group.chips_per_host for group in groups),
            max(group.network.latency_s for group in groups),
            tuple(group.network.bytes_per_s / group.chips_per_host for group in members),
        ),
        _switch(
            "nvlink" if chip.platform == "gpu" else "link",
            max(group.chips_per_host for group in groups),
            chip.link.count * chip.link.bytes_per_s,
            chip.link.latency_s,
        ),
    ]
    if between is not None:
        shares = tuple(between.bytes_per_s / group.chips_per_host for group in members)
        name = "between" if between.name in names else between.name
        outer = _switch(name, len(groups), min(shares), between.latency_s)
        axes.insert(0, dataclasses.replace(outer, device_bytes_per_s=shares))
    else:
        coordinates = tuple(place[1:] for place in coordinates)
    return _without_single_places(tuple(axes), coordinates)


def _without_single_places(
    axes: tuple[Axis, ...], coordinates: tuple[tuple[int, ...], ...]
) -> Interconnect:
    kept = [i for i, axis in enumerate(axes) if axis.size > 1]
    axes = tuple(axes[i] for i in kept)
    return Interconnect(
        axes,
        tuple(tuple(place[i] for i in kept) for place in coordinates),
        regular=math.prod(axis.size for axis in axes) == len(coordinates),
    )
