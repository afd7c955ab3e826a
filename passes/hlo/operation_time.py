"""Seconds of one execution of an instruction on the device's cores.

The TPU compiler writes `estimated_cycles` for what it schedules. It adds up what its units do one
after the other (matrix unit, vector unit, traffic of re-read tiles), while the hardware runs them
side by side, so for matrix products its figure is taken as an upper bound and a roofline, with the
machine's one efficiency of the matrix unit, as the estimate. Everything else is taken as written.
GPU compilers write no times: roofline, with the loss from tiles that do not fill the cores.
"""

import dataclasses
import math

from passes.hlo.flops import product_dtype, product_flops, products
from passes.hlo.kernels import FREE_TARGETS, KernelWork, kernel_work, target_of
from passes.hlo.machine import MachineModel
from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.opcodes import FREE
from passes.hlo.shapes import Array
from passes.hlo.timeline import Basis
from passes.hlo.traffic import hbm_traffic


@dataclasses.dataclass(frozen=True)
class OperationTime:
    """One execution of an instruction.

    Attributes:
      kind: `matmul`, `elementwise`, `kernel`, `copy`, or empty for what costs nothing.
      seconds: on the cores.
      flops: of matrix products.
      hbm_bytes: traffic.
      basis: where `seconds` comes from.
    """

    kind: str
    seconds: float
    flops: float
    hbm_bytes: float
    basis: Basis


_NOTHING = OperationTime("", 0.0, 0.0, 0.0, Basis.ROOFLINE)


def operation_time(
    machine: MachineModel, module: HloModule, c: Computation, i: Instruction
) -> OperationTime:
    """Time of an instruction that is no collective, copy start, loop or call."""
    if i.opcode in FREE:
        return _NOTHING
    if i.opcode == "custom-call":
        return _custom_call(machine, module, c, i)
    flops = product_flops(module, c, i)
    traffic = hbm_traffic(module, c, i)
    cycles = i.estimated_cycles
    written = None if cycles is None else cycles / machine.clock_hz
    kind = "matmul" if flops else ("copy" if i.opcode in ("copy", "transpose") else "elementwise")
    if not flops:
        if written is not None:
            return OperationTime(kind, written, 0.0, traffic, Basis.CYCLES)
        return OperationTime(kind, traffic / machine.hbm_bytes_per_s, 0.0, traffic, Basis.ROOFLINE)
    dtype = product_dtype(module, c, i)
    busy = flops / (machine.flops_per_s(dtype) * machine.efficiency)
    if written is None:
        busy /= tile_efficiency(machine, module, c, i)
    seconds = max(busy, traffic / machine.hbm_bytes_per_s)
    if written is not None and written <= seconds:
        return OperationTime(kind, written, flops, traffic, Basis.CYCLES)
    return OperationTime(kind, seconds, flops, traffic, Basis.ROOFLINE)


def _custom_call(
    machine: MachineModel, module: HloModule, c: Computation, i: Instruction
) -> OperationTime:
    target = target_of(i)
    if target in FREE_TARGETS:
        return _NOTHING
    work = kernel_work(module, c, i)
    if work is None:
        traffic = hbm_traffic(module, c, i)
        seconds = traffic / machine.hbm_bytes_per_s
        return OperationTime("kernel", seconds, 0.0, traffic, Basis.UNKNOWN)
    return _kernel_time(machine, module, c, i, work)


def _kernel_time(
    machine: MachineModel, module: HloModule, c: Computation, i: Instruction, work: KernelWork
) -> OperationTime:
    traffic = hbm_traffic(module, c, i) if work.bytes is None else work.bytes
    operands = [module.shape_of(c, name) for name in i.operands]
    large = max(
        (s for s in operands if isinstance(s, Array)), key=lambda s: s.size_bytes, default=None
    )
    dtype = large.dtype if large is not None else "bf16"
    busy = work.flops / (machine.flops_per_s(dtype) * machine.efficiency)
    # A softmax's vector work stands between its two products, so it is not hidden behind them.
    busy += work.transcendentals * VECTOR_OPERATIONS / machine.vector_flops
    seconds = max(busy, traffic / machine.hbm_bytes_per_s)
    return OperationTime("kernel", seconds, work.flops, traffic, Basis.KERNEL)


# Vector operations for one score of blockwise attention: mask, maximum, subtraction, range
# reduction and polynomial of the exponential, sum, conversion ("FlashAttention-3", section 2.2,
# has the exponential alone at 16 operations a clock and core against 4,096 of the matrix unit).
VECTOR_OPERATIONS = 16.0


def tile_efficiency(
    machine: MachineModel, module: HloModule, c: Computation, i: Instruction
) -> float:
    """Share of the cores' work that falls on the result, for products without an estimate.

    The result is cut in square tiles, which go to the cores in waves; the last wave and the tiles
    at the edges are partly empty.
    """
    sizes = [p.shape for _, p in products(module, c, i) if isinstance(p.shape, Array)]
    largest = max(sizes, key=lambda s: s.size, default=None)
    if largest is None or len(largest.dims) < 2 or not largest.size:
        return 1.0
    side = machine.matrix_tile
    rows, columns = largest.dims[-2:]
    tiles = math.prod(largest.dims[:-2]) * math.ceil(rows / side) * math.ceil(columns / side)
    waves = math.ceil(tiles / machine.matrix_cores)
    return min(1.0, largest.size / (waves * machine.matrix_cores * side * side))
