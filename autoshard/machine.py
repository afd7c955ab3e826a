"""From a topology and a mesh to the `MachineModel` that the schedule simulator runs on."""

import dataclasses
from collections.abc import Sequence

from autoshard import chips
from autoshard.errors import MeshError
from autoshard.interconnect import interconnect
from autoshard.topology import Topology
from passes.hlo.machine import Axis, Fabric, MachineModel

# Share of its peak that the matrix unit sustains on large products: the one constant here that is
# no datasheet's. `make bench-published` shows what it does to each published run, and what the runs
# left out in turn say of it; at 1 every run is still within 10%.
MATRIX_EFFICIENCY = 0.95


def machine_model(
    topology: Topology,
    *,
    order: Sequence[int] | None = None,
    efficiency: float = MATRIX_EFFICIENCY,
) -> MachineModel:
    """The devices of a topology and the ways between them, in mesh order.

    Args:
      topology: the machine; its chip must be known.
      order: for each place of the mesh (row-major), its device in the compiler's order, as
        `torus.device_order` returns it; None for the compiler's order itself.
      efficiency: share of the peak that the matrix unit sustains.

    Raises:
      MeshError: only the platform of the topology is known, or `order` is no permutation.
    """
    chip = topology.known_chip
    ways = interconnect(topology)
    devices = tuple(range(topology.device_count)) if order is None else tuple(order)
    if sorted(devices) != list(range(topology.device_count)):
        raise MeshError(
            f"the order of {len(devices)} devices is no permutation of the {topology.device_count} "
            f"of {topology}: take it from torus.device_order"
        )
    per_chip = chip.devices_per_chip
    return MachineModel(
        name=str(topology),
        platform=topology.platform,
        clock_hz=chip.clock_hz,
        peak_flops=tuple((dtype, flops / per_chip) for dtype, flops in chip.peak_flops),
        vector_flops=chip.vector_flops / per_chip,
        hbm_bytes=chip.memory_bytes // per_chip,
        hbm_bytes_per_s=chip.hbm_bytes_per_s / per_chip,
        fast_bytes=chip.fast_bytes // per_chip,
        host_bytes_per_s=chip.host_bytes_per_s / per_chip,
        axes=tuple(
            dataclasses.replace(
                axis, device_bytes_per_s=tuple(axis.device_bytes_per_s[d] for d in devices)
            )
            if axis.device_bytes_per_s
            else axis
            for axis in ways.axes
        ),
        coordinates=tuple(ways.coordinates[device] for device in devices),
        efficiency=efficiency,
        matrix_tile=chip.matrix_tile,
        matrix_cores=chip.multiprocessors,
    )


def reference_machine(device_count: int, chip: str = "v5p") -> MachineModel:
    """A machine to plan for where only a number of devices is known: a chip's, behind one switch.

    A device's port has the bandwidth of the two links that a chip has to an axis of its torus.
    """
    figures = chips.get(chip)
    axis = Axis(
        "switch",
        device_count,
        Fabric.SWITCH,
        False,
        2 * figures.link.bytes_per_s,
        figures.link.latency_s,
    )
    return MachineModel(
        name=f"{device_count} devices like {chip}",
        platform=figures.platform,
        clock_hz=figures.clock_hz,
        peak_flops=figures.peak_flops,
        vector_flops=figures.vector_flops,
        hbm_bytes=figures.memory_bytes,
        hbm_bytes_per_s=figures.hbm_bytes_per_s,
        fast_bytes=figures.fast_bytes,
        host_bytes_per_s=figures.host_bytes_per_s,
        axes=(axis,) if device_count > 1 else (),
        coordinates=tuple((place,) for place in range(device_count)) if device_count > 1 else ((),),
        efficiency=MATRIX_EFFICIENCY,
        matrix_tile=figures.matrix_tile,
        matrix_cores=figures.multiprocessors,
    )
