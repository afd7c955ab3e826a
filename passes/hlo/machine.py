"""`MachineModel`: what the schedule simulator knows of the hardware.

A higher package builds it from its own description of chips and networks; every figure here is a
datasheet's, per device (what the compiler calls a device: a chip, or half of one on some TPUs).
"""

import dataclasses
import enum

_HLO_DTYPES = {
    "float64": "f64",
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "int8": "s8",
}


def hlo_dtype(name: str) -> str:
    """A dtype of JAX's in HLO's spelling, as `peak_flops` has it; others as they are."""
    return _HLO_DTYPES.get(name, name)


class Fabric(enum.Enum):
    """How devices along an axis are joined.

    TORUS: a ring of links between neighbours (a line where it does not wrap).
    SWITCH: every device reaches every other through its own port.
    """

    TORUS = "torus"
    SWITCH = "switch"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of the interconnect.

    Attributes:
      name: `x`, `y`, `z` of a torus, `nvlink`, `dcn`, ...
      size: places along it (the most, where groups are uneven).
      fabric: torus or switch.
      wraps: whether a torus axis closes to a ring.
      bytes_per_s: one way; of one link of a torus (a device has two to an axis), or of a device's
        share of its port to a switch.
      latency_s: of one hop.
      device_bytes_per_s: where devices differ, `bytes_per_s` of each, in mesh order; else empty.
    """

    name: str
    size: int
    fabric: Fabric
    wraps: bool
    bytes_per_s: float
    latency_s: float
    device_bytes_per_s: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class MachineModel:
    """One device and the ways between devices.

    Attributes:
      name: as the user wrote the topology, such as `v5p:4x4x4`.
      platform: `tpu`, `gpu` or `cpu`.
      clock_hz: of the cycles that the compiler writes into the schedule.
      peak_flops: (dtype in HLO's spelling, FLOP/s) pairs of the matrix unit; dense.
      vector_flops: FLOP/s of elementwise work in float32.
      hbm_bytes: capacity.
      hbm_bytes_per_s: bandwidth.
      fast_bytes: VMEM, or shared memory and registers that a kernel tiles for.
      host_bytes_per_s: one way between the device and its host, per device.
      axes: the interconnect, outermost (slowest) first.
      coordinates: for each device, in the order of the mesh that the program was compiled for, its
        place along each of `axes`.
      efficiency: share of the peak that the matrix unit sustains, one figure for everything.
      matrix_tile: side of the square tiles in which a matrix product is handed to the cores.
      matrix_cores: cores that work on tiles side by side (streaming multiprocessors of a GPU).
    """

    name: str
    platform: str
    clock_hz: float
    peak_flops: tuple[tuple[str, float], ...]
    vector_flops: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    fast_bytes: int
    host_bytes_per_s: float
    axes: tuple[Axis, ...]
    coordinates: tuple[tuple[int, ...], ...]
    efficiency: float = 1.0
    matrix_tile: int = 128
    matrix_cores: int = 1

    def flops_per_s(self, dtype: str) -> float:
        """Peak of the matrix unit for a dtype; of the widest type known where it is not listed."""
        rates = dict(self.peak_flops)
        return rates.get(dtype, min(rates.values()))
