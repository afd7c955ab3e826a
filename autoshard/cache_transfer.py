"""What it costs to move a cache from the layout of prefill to that of decode.

Prompts are read under one layout and continued under another, on the same devices or on others
(Zhong et al., "DistServe", 2024, arXiv:2401.09670, section 4.2; Patel et al., "Splitwise", 2024,
arXiv:2311.18677, section 4.4).

    same machine      a device gets what of its new slice is not in its old one, over the links
    other machine     every device gets its new slice, over the network of the hosts
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from autoshard.compiled_inference import CompiledInference
from autoshard.errors import MeshError, PlanError
from autoshard.explain import format_bytes, format_ms
from autoshard.layouts import ArrayLayout
from autoshard.mesh_shape import MeshShape
from autoshard.topology import Topology
from passes.hlo.collective_time import collective_time
from passes.program import Role
from passes.spec import Spec

# Of each device (outermost) the half-open range of each dimension: [devices, dimensions, 2].
Slices = np.ndarray


@dataclasses.dataclass(frozen=True)
class CacheTransfer:
    """Moving a whole cache once.

    Attributes:
      source, target: machine and mesh of prefill and of decode.
      same_machine: whether both run on the same devices.
      cache_bytes: the cache, each of its arrays once.
      moved_bytes_per_device: what a device receives, the most of all.
      total_bytes: what all devices receive.
      over: names of what it goes over.
      seconds: estimated, with nothing else on the links.
    """

    source: str
    target: str
    same_machine: bool
    cache_bytes: int
    moved_bytes_per_device: int
    total_bytes: int
    over: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        way = f" over {', '.join(self.over)}" if self.over else ""
        return (
            f"cache of {format_bytes(self.cache_bytes)} from {self.source} to {self.target}: at "
            f"most {format_bytes(self.moved_bytes_per_device)} to a device, "
            f"{format_bytes(self.total_bytes)} in all, {format_ms(self.seconds)}{way} (estimated)"
        )


def cache_transfer(
    prefill: CompiledInference, decode: CompiledInference, *, same_machine: bool | None = None
) -> CacheTransfer:
    """The cost of moving the cache that `prefill` returns to where `decode` wants it.

    Args:
      prefill, decode: compiled for the same model and sizes.
      same_machine: whether they share their devices; by default, if these are the same where they
        are here, and the topologies are.

    Raises:
      PlanError: the caches are not the same, or the machines of one are not those of the other.
      MeshError: nothing is known of the chips, or of the network between two machines.
    """
    first, second = _caches(prefill), _caches(decode)
    if [a.leaf for a in first] != [a.leaf for a in second]:
        raise PlanError(
            f"the caches of {prefill.plan.program.name} ({prefill.shape}) and "
            f"{decode.plan.program.name} ({decode.shape}) differ: compile both for one model, "
            "batch_size, capacity and dtype"
        )
    topologies = [one.target.topology for one in (prefill, decode)]
    alike = str(topologies[0]) == str(topologies[1]) and set(_devices(prefill)) == set(
        _devices(decode)
    )
    if same_machine and not alike:
        raise PlanError(
            f"{topologies[0]} and {topologies[1]} do not have the same devices: leave same_machine "
            "out"
        )
    shared = alike if same_machine is None else same_machine
    received, groups = _received(prefill, decode, first, second, shared)
    seconds, over = (
        _over_links(decode, received, groups) if shared else _over_network(topologies, received)
    )
    return CacheTransfer(
        source=f"{topologies[0]} ({prefill.plan.mesh.shape})",
        target=f"{topologies[1]} ({decode.plan.mesh.shape})",
        same_machine=shared,
        cache_bytes=sum(a.leaf.size_bytes for a in first),
        moved_bytes_per_device=int(received.max()),
        total_bytes=int(received.sum()),
        over=over,
        seconds=seconds,
    )


def _caches(one: CompiledInference) -> list[ArrayLayout]:
    return [a for a in one.plan.arrays if a.leaf.role is Role.CACHE]


def slices_of(shape: Sequence[int], spec: Spec, mesh: MeshShape) -> Slices:
    """The slice of an array that each device of a mesh has, in the order of the mesh.

    Args:
      shape: of the array.
      spec: for each dimension the mesh axes that shard it, major to minor; they divide it.
      mesh: the mesh.

    Returns:
      int64[devices, dimensions, 2]: half-open ranges.
    """
    places = dict(zip(mesh.names, np.indices(mesh.sizes).reshape(len(mesh.sizes), -1), strict=True))
    ranges = []
    for size, axes in zip(shape, spec, strict=True):
        block = np.zeros(mesh.device_count, np.int64)
        for axis in axes:
            block = block * mesh.size(axis) + places[axis]
        width = size // mesh.shards(axes)
        ranges.append(np.stack([block * width, (block + 1) * width], axis=-1))
    return np.stack(ranges, axis=1)


def shared_sizes(mine: np.ndarray, others: Slices) -> np.ndarray:
    """Elements that one slice, int64[dimensions, 2], has in common with each of others."""
    begin = np.maximum(mine[None, :, 0], others[:, :, 0])
    end = np.minimum(mine[None, :, 1], others[:, :, 1])
    common: np.ndarray = np.maximum(end - begin, 0).prod(axis=1)
    return common


def _received(
    prefill: CompiledInference,
    decode: CompiledInference,
    first: Sequence[ArrayLayout],
    second: Sequence[ArrayLayout],
    shared: bool,
) -> tuple[np.ndarray, list[list[int]]]:
    """Bytes that each device of decode receives, and which of them exchange data.

    Devices are numbered in the order of decode's mesh.
    """
    count = decode.plan.mesh.shape.device_count
    received, joined = np.zeros(count, np.int64), list(range(count))
    known: dict[object, tuple[np.ndarray, list[tuple[int, int]]]] = {}
    moved = _places(prefill, decode) if shared else None
    for old, new in zip(first, second, strict=True):
        key = (old.leaf.shape, old.param, new.param)
        if key not in known:
            wanted = slices_of(new.leaf.shape, new.param, decode.plan.mesh.refined)
            if moved is None:
                known[key] = (np.diff(wanted, axis=2)[..., 0].prod(axis=1), [])
            else:
                held = slices_of(old.leaf.shape, old.param, prefill.plan.mesh.refined)
                known[key] = _lacking(held[moved], wanted)
        elements, pairs = known[key]
        received += elements * new.leaf.itemsize_bytes
        for one, other in pairs:
            joined[_root(joined, one)] = _root(joined, other)
    groups: dict[int, list[int]] = {}
    for device in range(count):
        groups.setdefault(_root(joined, device), []).append(device)
    return received, list(groups.values())


def _root(joined: list[int], device: int) -> int:
    while joined[device] != device:
        device = joined[device]
    return device


def _devices(one: CompiledInference) -> list[object]:
    """The devices in the order of the mesh: their numbers where they are not here."""
    here, order = one.target.devices, one.target.order(one.plan.mesh.shape)
    return [number if here is None else here[number] for number in order]


def _places(prefill: CompiledInference, decode: CompiledInference) -> np.ndarray:
    """For each place of decode's mesh, the place of the same device in that of prefill."""
    place = {device: i for i, device in enumerate(_devices(prefill))}
    return np.array([place[device] for device in _devices(decode)])


def _lacking(held: Slices, wanted: Slices) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Elements that each device lacks, and pairs of devices of which one sends to the other.

    Of several that hold what is wanted, the one of the nearest number sends.
    """
    _, labels = np.unique(held, axis=0, return_inverse=True)
    labels = labels.reshape(-1)
    lacking, pairs = [], []
    for device, mine in enumerate(wanted):
        common = shared_sizes(mine, held)
        lacking.append(int(np.diff(mine, axis=1).prod()) - int(common[device]))
        for label in np.unique(labels[common > 0]):
            if label != labels[device]:
                holders = np.flatnonzero(labels == label)
                pairs.append((device, int(holders[np.abs(holders - device).argmin()])))
    return np.array(lacking, np.int64), pairs


def _over_links(
    decode: CompiledInference, received: np.ndarray, groups: list[list[int]]
) -> tuple[float, tuple[str, ...]]:
    """Each group exchanges what its devices lack, as an all-to-all does."""
    machine = decode.target.planning_machine(decode.plan.mesh.shape)
    seconds, over = 0.0, dict[str, None]()
    for group in groups:
        most = int(received[group].max())
        if len(group) > 1 and most:
            payload = most * len(group) / (len(group) - 1)
            time = collective_time(machine, "all-to-all", payload, (tuple(group),))
            seconds = max(seconds, time.seconds)
            over.update(dict.fromkeys(time.axes))
    return seconds, tuple(over)


def _over_network(
    topologies: Sequence[Topology], received: np.ndarray
) -> tuple[float, tuple[str, ...]]:
    """Every device has its share of its host's network; the slower end decides."""
    total, latency = int(received.sum()), 0.0
    shares = []
    for topology in topologies:
        bytes_per_s, hop_s = _network(topology)
        shares.append(bytes_per_s)
        latency = max(latency, hop_s)
    sending = total / (shares[0] * topologies[0].device_count)
    receiving = int(received.max()) / shares[1]
    return max(sending, receiving) + latency, ("the network of the hosts",)


def _network(topology: Topology) -> tuple[float, float]:
    """(bytes a second of one device, latency in seconds) of the network of its host."""
    chip = topology.known_chip
    sharers = chip.chips_per_host * chip.devices_per_chip
    if topology.network is not None and topology.network.groups:
        groups = topology.network.groups
        return (
            min(g.network.bytes_per_s / (g.chips_per_host * chip.devices_per_chip) for g in groups),
            max(g.network.latency_s for g in groups),
        )
    if topology.network is not None and topology.network.between is not None:
        between = topology.network.between
        return between.bytes_per_s / sharers, between.latency_s
    if chip.network is None:
        raise MeshError(
            f"nothing is known of the network of {topology}: describe the machine in a TOML file "
            "(docs/targets.md), or name a machine whose hosts have one"
        )
    return chip.network.count * chip.network.bytes_per_s / sharers, chip.network.latency_s
