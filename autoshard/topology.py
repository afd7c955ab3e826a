"""Machines and meshes: what `compile`'s second argument may be."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from autoshard.errors import DeviceError, MeshError
from autoshard.mesh_shape import MeshShape, SplitMesh

_PLATFORMS = ("cpu", "gpu", "tpu")


@dataclasses.dataclass(frozen=True)
class Topology:
    """A set of devices that need not be here.

    Attributes:
      platform: `cpu`, `gpu` or `tpu`.
      device_count: number of devices.
    """

    platform: str
    device_count: int

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """From `cpu:8`.

        Raises:
          MeshError: the text is not `platform:count`.
        """
        match = re.fullmatch(r"([a-z]+):(\d+)", text.strip().lower())
        if match is None or match[1] not in _PLATFORMS or int(match[2]) < 1:
            raise MeshError(
                f"cannot read topology {text!r}: write 'platform:count' with a platform of "
                f"{', '.join(_PLATFORMS)}, such as 'cpu:8', or mesh axes such as 'data=2,model=4'"
            )
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.platform}:{self.device_count}"


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
                f"{_here()}: planning, `plan` and `explain` work, `init` and `step` need the "
                "devices. On CPU set XLA_FLAGS=--xla_force_host_platform_device_count="
                f"{refined.device_count} before jax starts"
            )
        return Mesh(
            np.array(self.devices, dtype=object).reshape(refined.sizes),
            refined.names,
            axis_types=(AxisType.Auto,) * len(refined.names),
        )

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


def factorisations(count: int) -> tuple[MeshShape, ...]:
    """All `data x model` shapes of `count` devices."""
    return tuple(
        MeshShape(("data", "model"), (count // m, m)) for m in range(1, count + 1) if count % m == 0
    )


def resolve(mesh: Any) -> Target:
    """What the user means by a mesh.

    Args:
      mesh: a `jax.sharding.Mesh` (its axis types are ignored: the planner works with Auto axes), a
        `MeshShape`, a `Topology`, or a string: `cpu:8` (the planner chooses the shape) or
        `data=2,model=4` (over the devices of this process).

    Raises:
      MeshError: the argument is none of these.
    """
    if isinstance(mesh, Mesh):
        shape = MeshShape(tuple(str(n) for n in mesh.axis_names), tuple(mesh.devices.shape))
        devices = tuple(mesh.devices.flat)
        return Target(Topology(devices[0].platform, len(devices)), (shape,), devices)
    if isinstance(mesh, str):
        mesh = MeshShape.parse(mesh) if "=" in mesh else Topology.parse(mesh)
    if isinstance(mesh, MeshShape):
        topology = Topology(jax.default_backend(), mesh.device_count)
        return Target(topology, (mesh,), _local(topology))
    if isinstance(mesh, Topology):
        return Target(mesh, factorisations(mesh.device_count), _local(mesh))
    raise MeshError(
        f"a mesh of type {type(mesh).__name__} is not understood: pass a jax.sharding.Mesh, a "
        "Topology, 'cpu:8' or 'data=2,model=4'"
    )


def _local(topology: Topology) -> tuple[Any, ...] | None:
    devices = jax.devices()
    if devices[0].platform != topology.platform or len(devices) < topology.device_count:
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
