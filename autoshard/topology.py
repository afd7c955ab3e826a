"""Machines and meshes: what `compile`'s second argument may be."""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from autoshard import chips, networks
from autoshard.chip import Chip
from autoshard.errors import DeviceError, MeshError
from autoshard.mesh_shape import MeshShape, SplitMesh
from autoshard.networks import Network
from autoshard.slice_shapes import check_slice_shape, format_shape, wraps

_PLATFORMS = ("cpu", "gpu", "tpu")
_FORMS = "'v5p:4x4x4', '2x v5e:16x16' (slices), 'h100:8x4' (GPUs a host x hosts), 'cpu:8'"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A set of devices that need not be here.

    Attributes:
      platform: `cpu`, `gpu` or `tpu`.
      device_count: number of devices, as the compiler counts them.
      chip: what the devices are; None where only the platform is known (`tpu:8`).
      shape: of one slice in chips, x first; of GPUs, chips a host and hosts; empty where the
        platform is all that is known, on CPU, and where `network` has groups of hosts.
      slices: number of slices.
      network: the file that describes the machine; None for one of the table.
    """

    platform: str
    device_count: int
    chip: Chip | None = None
    shape: tuple[int, ...] = ()
    slices: int = 1
    network: Network | None = None

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """From `v5p:4x4x4`, `2x v5e:16x16`, `h100:8x4`, `cpu:8`, `tpu:8` or a TOML file's path.

        Raises:
          MeshError: the text is of no such form, the chip or the shape is unknown, or the file
            cannot be read.
        """
        text = text.strip()
        if text.endswith(".toml"):
            return _of_network(networks.load(text))
        match = re.fullmatch(r"(?:(\d+)x\s*)?([a-z]\w*):(\d+(?:x\d+)*)", text.lower())
        if match is None:
            raise MeshError(
                f"cannot read topology {text!r}: write a chip and a shape, such as {_FORMS}, the "
                "path of a TOML file, or mesh axes such as 'data=2,model=4'"
            )
        slices = int(match[1] or 1)
        shape = tuple(map(int, match[3].split("x")))
        try:
            return _of_chip(match[2], shape, slices)
        except MeshError as error:
            raise MeshError(f"cannot read topology {text!r}: {error}") from error

    def __str__(self) -> str:
        if self.network is not None:
            return self.network.path
        if self.chip is None or not self.shape:
            return f"{self.platform}:{self.device_count}"
        return f"{self.slices}x {self.slice_name}" if self.slices > 1 else self.slice_name

    @property
    def slice_name(self) -> str:
        """One slice as libtpu names it, such as `v5p:4x4x4`; of GPUs, the whole machine."""
        return f"{self.known_chip.name}:{format_shape(self.shape)}"

    @property
    def known_chip(self) -> Chip:
        """What the devices are.

        Raises:
          MeshError: only the platform is known.
        """
        if self.chip is not None:
            return self.chip
        if self.platform == "cpu":
            return chips.CHIPS["cpu"]
        raise MeshError(
            f"{self} names {self.device_count} devices but no chip, so nothing is known of their "
            f"speed or memory: name the chip and the shape, such as {_FORMS}"
        )

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each axis of `shape` closes to a ring; empty where there is no torus."""
        if self.network is not None:
            return self.network.wraps
        return wraps(self.shape) if self.chip is not None and self.chip.torus_dims else ()


def _of_chip(name: str, shape: tuple[int, ...], slices: int) -> Topology:
    if min(shape) < 1 or slices < 1:
        raise MeshError("sizes are at least 1")
    if name in _PLATFORMS:
        if len(shape) > 1 or slices > 1:
            raise MeshError(f"{name} takes a number of devices, such as '{name}:8'")
        return Topology(name, shape[0])
    try:
        chip = chips.get(name)
    except MeshError as error:
        raise MeshError(
            f"{error}. Where only the platform matters, write one of {', '.join(_PLATFORMS)} and "
            "a number of devices"
        ) from error
    if chip.torus_dims:
        check_slice_shape(name, shape)
        count = math.prod(shape) * slices * chip.devices_per_chip
        return Topology(chip.platform, count, chip, shape, slices)
    return _of_hosts(chip, shape, slices)


def _of_hosts(chip: Chip, shape: tuple[int, ...], slices: int) -> Topology:
    per_host, hosts = (*shape, 1)[:2]
    if slices > 1 or len(shape) > 2:
        raise MeshError(
            f"{chip.name} takes chips a host and hosts, such as '{chip.name}:8x{max(slices, 4)}'"
        )
    if per_host > chip.chips_per_host:
        most = chip.chips_per_host
        rounded = -(-per_host * hosts // most)
        raise MeshError(
            f"a host has at most {most} {chip.name}, not {per_host}: write "
            f"'{chip.name}:{most}x{rounded}' for {most * rounded} of them on {rounded} hosts"
        )
    return Topology(
        chip.platform, per_host * hosts, chip, (per_host,) if hosts == 1 else (per_host, hosts)
    )


def _of_network(network: Network) -> Topology:
    per_group = [group.hosts * group.chips_per_host for group in network.groups]
    chip_count = sum(per_group) if network.groups else math.prod(network.shape) * network.slices
    return Topology(
        network.chip.platform,
        chip_count * network.chip.devices_per_chip,
        network.chip,
        network.shape,
        network.slices,
        network,
    )


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a program is to run.

    Attributes:
      topology: the machine.
      shapes: the mesh shapes to choose from; one, unless the user left the mesh open.
      devices: the devices in mesh order, or None when they are not here.
    """

    topology: Topology
    shapes: tuple[MeshShape, ...]
    devices: tuple[Any, ...] | None

    def mesh(self, split: SplitMesh) -> Mesh:
        """The mesh of real devices, with the parts of `split` as axes, all of them Auto.

        Raises:
          DeviceError: the devices are not in this process.
        """
        refined = split.refined
        if self.devices is None:
            raise DeviceError(
                f"the plan is for {self.topology} ({split.shape}), and this process has "
                f"{_here()}: `plan`, `report` and `lower()` work, `init` and `step` need the "
                f"devices{self._way_here(refined.device_count)}"
            )
        return Mesh(
            np.array(self.devices, dtype=object).reshape(refined.sizes),
            refined.names,
            axis_types=(AxisType.Auto,) * len(refined.names),
        )

    def _way_here(self, count: int) -> str:
        if self.topology.platform != "cpu":
            return ""
        flag = f"--xla_force_host_platform_device_count={count}"
        return f": on CPU set XLA_FLAGS={flag} before jax starts"

    def check_runnable(self) -> None:
        """Raises DeviceError if the devices are only there to compile for."""
        if self.devices is None:
            return  # `mesh` says so, with the way out
        try:
            here = set(jax.devices(self.topology.platform))
        except RuntimeError:
            here = set()
        if not here.issuperset(self.devices):
            count, platform = len(self.devices), self.topology.platform
            raise DeviceError(
                f"this process cannot run on {count} {platform} devices of the mesh, it has "
                f"{_here()}: `plan`, `lower()` and `memory_report()` work; "
                "to run, give a mesh of jax.devices()"
            )


def _here() -> str:
    devices = jax.devices()
    return f"{len(devices)} {devices[0].platform} device(s)"


def factorisations(count: int, slices: int = 1) -> tuple[MeshShape, ...]:
    """All `data x model` shapes of `count` devices; only `data` crosses slices."""
    return tuple(
        MeshShape(("data", "model"), (count // m, m))
        for m in range(1, count + 1)
        if count % m == 0 and (count // m) % slices == 0
    )


def resolve(mesh: Any) -> Target:
    """What the user means by a mesh.

    Args:
      mesh: a `jax.sharding.Mesh` (its axis types are ignored: the planner works with Auto axes), a
        `MeshShape`, a `Topology`, or a string: `v5p:4x4x4` (the planner chooses the shape),
        `v5p:4x4x4 data=16,model=4`, or `data=2,model=4` (over the devices of this process).

    Raises:
      MeshError: the argument is none of these, or the axes do not have as many devices as the
        topology.
    """
    if isinstance(mesh, Mesh):
        shape = MeshShape(tuple(str(n) for n in mesh.axis_names), tuple(mesh.devices.shape))
        devices = tuple(mesh.devices.flat)
        return Target(Topology(devices[0].platform, len(devices)), (shape,), devices)
    if isinstance(mesh, str):
        both = re.fullmatch(r"(.*?(?::\S+|\.toml))\s+(\S.*)", mesh.strip())
        if both is not None:
            return _pinned(Topology.parse(both[1]), MeshShape.parse(both[2]))
        mesh = MeshShape.parse(mesh) if "=" in mesh else Topology.parse(mesh)
    if isinstance(mesh, MeshShape):
        topology = Topology(jax.default_backend(), mesh.device_count)
        return Target(topology, (mesh,), _local(topology))
    if isinstance(mesh, Topology):
        return Target(mesh, factorisations(mesh.device_count, mesh.slices), _local(mesh))
    raise MeshError(
        f"a mesh of type {type(mesh).__name__} is not understood: pass a jax.sharding.Mesh, a "
        "Topology, 'cpu:8' or 'data=2,model=4'"
    )


def _pinned(topology: Topology, shape: MeshShape) -> Target:
    if shape.device_count != topology.device_count:
        raise MeshError(
            f"mesh {shape} has {shape.device_count} devices and {topology} has "
            f"{topology.device_count}: the axes' product must be {topology.device_count}, such as "
            f"{_example_shape(shape, topology.device_count)}"
        )
    return Target(topology, (shape,), _local(topology))


def _example_shape(shape: MeshShape, count: int) -> MeshShape:
    """The same axes over `count` devices: sizes kept from the last axis on, where they divide."""
    sizes = list(shape.sizes)
    for i in range(len(sizes) - 1, 0, -1):
        sizes[i] = math.gcd(sizes[i], count)
        count //= sizes[i]
    return MeshShape(shape.names, (count, *sizes[1:]))


def _local(topology: Topology) -> tuple[Any, ...] | None:
    devices = jax.devices()
    if devices[0].platform != topology.platform or len(devices) < topology.device_count:
        return None
    if topology.chip is not None and devices[0].device_kind not in topology.chip.device_kinds:
        return None
    return tuple(devices[: topology.device_count])


def check_context() -> None:
    """Raises MeshError inside `jax.set_mesh` of a mesh with Explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    explicit = [
        str(name)
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    ]
    if explicit:
        raise MeshError(
            f"a mesh with Explicit axes ({', '.join(explicit)}) is set here by jax.set_mesh, and "
            "the planner works with Auto axes: call autoshard outside that context, or make the "
            "mesh with axis_types=(AxisType.Auto, ...)"
        )
