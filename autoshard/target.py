"""What `compile`'s second argument may be, and the mesh that comes of it."""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from autoshard import aot, chips
from autoshard.errors import DeviceError, MeshError
from autoshard.machine import machine_model, reference_machine
from autoshard.mesh_shape import MeshShape, SplitMesh
from autoshard.topology import Topology
from autoshard.torus import device_order
from passes.hlo.machine import MachineModel


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a program is to run.

    Attributes:
      topology: the machine.
      shapes: the mesh shapes to choose from; one, unless the user left the mesh open.
      devices: the devices, or None when they are not here.
      in_mesh_order: whether the user laid the devices out; else they are in their compiler's order
        and the mesh is laid on their links.
    """

    topology: Topology
    shapes: tuple[MeshShape, ...]
    devices: tuple[Any, ...] | None
    in_mesh_order: bool = True

    def mesh(self, split: SplitMesh) -> Mesh:
        """The mesh of devices, with the parts of `split` as axes, all of them Auto.

        Where the devices are not here but their compiler is, they are devices to compile for.

        Raises:
          DeviceError: the devices are not in this process, and nothing is known of them to compile
            for, or their compiler is not installed.
        """
        refined = split.refined
        if self.devices is None and self.topology.chip is None:
            raise DeviceError(self._absent(split))
        devices = self._in_order(split)
        return Mesh(
            np.array(devices, dtype=object).reshape(refined.sizes),
            refined.names,
            axis_types=(AxisType.Auto,) * len(refined.names),
        )

    def machine(self, split: SplitMesh) -> MachineModel:
        """The machine as the schedule simulator sees it, devices in the order of the mesh.

        Raises:
          MeshError: nothing is known of the chips: a real mesh of devices that no table lists.
        """
        order: tuple[int, ...] | None = None
        if self.topology.chip is not None:
            devices = self._in_order(split)
            ranks = {d.id: rank for rank, d in enumerate(sorted(devices, key=lambda d: d.id))}
            order = tuple(ranks[device.id] for device in devices)
        return machine_model(self.topology, order=order)

    @property
    def is_open(self) -> bool:
        """Whether the planner chooses the mesh."""
        return len(self.shapes) > 1

    @property
    def compiles_elsewhere(self) -> bool:
        """Whether programs are for chips of the table that are not in this process."""
        return self.devices is None and self.topology.chip is not None

    @property
    def memory_bytes(self) -> int | None:
        """What a device may hold; None where the chip is not known, and on CPU."""
        if self.topology.chip is None or self.topology.platform == "cpu":
            return None
        return self.topology.chip.memory_bytes // self.topology.chip.devices_per_chip

    def planning_machine(self, shape: MeshShape) -> MachineModel:
        """The machine for estimates, devices in the order of a mesh; none need be here.

        Where only the platform is known, it is taken for so many v5p chips behind one switch.
        """
        topology = self.topology
        if topology.chip is None and topology.platform != "cpu":
            return reference_machine(topology.device_count)
        return machine_model(topology, order=self.order(shape))

    def order(self, shape: MeshShape) -> tuple[int, ...]:
        """For each place of a mesh, in its order, the number of its device; none need be here."""
        topology = self.topology
        if topology.chip is None or (self.devices is not None and self.in_mesh_order):
            return tuple(range(topology.device_count))
        return tuple(device_order(topology, shape.sizes).tolist())

    def _in_order(self, split: SplitMesh) -> tuple[Any, ...]:
        """The devices in the order of the mesh, here or not."""
        if self.devices is None:
            return compile_only_devices(self.topology, split.shape.sizes)
        if self.in_mesh_order:
            return self.devices
        return tuple(self.devices[i] for i in device_order(self.topology, split.shape.sizes))

    def _absent(self, split: SplitMesh) -> str:
        works = (
            "`plan` and `explain` work"
            if self.topology.chip is None
            else ("`plan`, `report`, `lower()` and `memory_report()` work")
        )
        way = ""
        if self.topology.platform == "cpu":
            flag = f"--xla_force_host_platform_device_count={self.topology.device_count}"
            way = f". On CPU set XLA_FLAGS={flag} before jax starts"
        return (
            f"the plan is for {self.topology} ({split.shape}), and this process has {_here()}: "
            f"{works}; `init` and `step` need the devices{way}"
        )

    def check_runnable(self, split: SplitMesh) -> None:
        """Raises DeviceError if the devices are not here, or only there to compile for."""
        if self.devices is None:
            raise DeviceError(self._absent(split))
        try:
            here = set(jax.devices(self.topology.platform))
        except RuntimeError:
            here = set()
        if not here.issuperset(self.devices):
            count, platform = len(self.devices), self.topology.platform
            raise DeviceError(
                f"this process cannot run on {count} {platform} devices of the mesh, it has "
                f"{_here()}: `plan`, `report`, `lower()` and `memory_report()` work; "
                "to run, give a mesh of jax.devices()"
            )


def compile_only_devices(topology: Topology, mesh_sizes: tuple[int, ...]) -> tuple[Any, ...]:
    """Devices of a topology that need not be here, in the order of a mesh laid on it.

    Raises:
      DeviceError: the compiler of the topology is not installed.
      MeshError: the compiler knows no such machine.
    """
    found = aot.devices(topology.compiler_name)
    return tuple(found[place] for place in device_order(topology, mesh_sizes))


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
        return Target(_topology_of(devices), (shape,), devices)
    if isinstance(mesh, str):
        both = re.fullmatch(r"(.*?(?::\S+|\.toml))\s+(\S.*)", mesh.strip())
        if both is not None:
            return _pinned(Topology.parse(both[1]), MeshShape.parse(both[2]))
        mesh = MeshShape.parse(mesh) if "=" in mesh else Topology.parse(mesh)
    if isinstance(mesh, MeshShape):
        topology = Topology(jax.default_backend(), mesh.device_count)
        return Target(topology, (mesh,), _local(topology))
    if isinstance(mesh, Topology):
        return _on(mesh, factorisations(mesh.device_count, mesh.slices))
    raise MeshError(
        f"a mesh of type {type(mesh).__name__} is not understood: pass a jax.sharding.Mesh, a "
        "Topology, 'cpu:8' or 'data=2,model=4'"
    )


def _topology_of(devices: tuple[Any, ...]) -> Topology:
    """What machine devices make up: a whole TPU slice, or so many of a platform."""
    kind, count = devices[0].device_kind, len(devices)
    chip = chips.of_device_kind(kind)
    plain = Topology(devices[0].platform, count)
    if chip is None or not chip.torus_dims or not hasattr(devices[0], "coords"):
        return plain
    coordinates = np.array([device.coords for device in devices])[:, : chip.torus_dims]
    shape = tuple(int(size) for size in np.ptp(coordinates, axis=0) + 1)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if math.prod(shape) * slices * chip.devices_per_chip != count:
        return plain
    return Topology(chip.platform, count, chip, shape, slices)


def _pinned(topology: Topology, shape: MeshShape) -> Target:
    if shape.device_count != topology.device_count:
        raise MeshError(
            f"mesh {shape} has {shape.device_count} devices and {topology} has "
            f"{topology.device_count}: the axes' product must be {topology.device_count}, such as "
            f"{_example_shape(shape, topology.device_count)}"
        )
    return _on(topology, (shape,))


def _on(topology: Topology, shapes: tuple[MeshShape, ...]) -> Target:
    """A target of a topology's own devices, laid on its links where it has any."""
    return Target(topology, shapes, _local(topology), in_mesh_order=not topology.chip)


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
    return tuple(sorted(devices[: topology.device_count], key=lambda device: int(device.id)))


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
