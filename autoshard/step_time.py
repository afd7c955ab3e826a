"""Seconds of a step under a layout, estimated on a machine before anything is compiled.

products       matrix products and convolutions: the greater of FLOPs at the sustained rate, sides
               padded to the tiles of the matrix unit, and of what they read and write
traffic        what else is written to memory, and read again (`memory_buffers` says what)
optimizer      state, parameters and gradients once through
communication  predicted collectives on the links that they run over; what the compiler is known to
               run beside computation is hidden, as far as one product goes

The estimate ranks layouts; the compiler's schedule decides (`docs/planning.md`).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import numpy as np

from autoshard.factors import FactorRole
from autoshard.graph import SCAN_YS
from autoshard.memory import MemoryEstimate
from autoshard.memory_buffers import Buffer, Kind
from autoshard.memory_sizes import Sizes
from autoshard.mesh_groups import groups_over
from autoshard.mesh_shape import MeshShape
from autoshard.predicted_collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    REDUCE_SCATTER,
    Phase,
    PredictedCollective,
    Purpose,
)
from autoshard.product_flops import product_flops
from autoshard.sharded_program import ShardedProgram
from autoshard.staged_gather import inner_devices
from passes.hlo.collective_time import collective_time
from passes.hlo.machine import Fabric, MachineModel, hlo_dtype
from passes.hlo.replica_groups import Groups
from passes.ir import PRODUCTS

PERMUTE, STAGED = "collective-permute", "all-gather in stages"
_ROWS = 8  # of a tile of the matrix unit
# Parameters are read and written, gradients read; the optimizer's state is read and written.
_PARAMETER_PASSES, _OPTIMIZER_PASSES = 3, 2


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step on one device.

    Attributes:
      products_s: matrix products and convolutions.
      traffic_s: memory traffic beside theirs.
      optimizer_s: the update.
      communication_s: collectives, from begin to end.
      exposed_s: the part of it that nothing hides.
      idle_s: stages of a pipeline that wait for others.
    """

    products_s: float = 0.0
    traffic_s: float = 0.0
    optimizer_s: float = 0.0
    communication_s: float = 0.0
    exposed_s: float = 0.0
    idle_s: float = 0.0

    @property
    def compute_s(self) -> float:
        """The device works."""
        return self.products_s + self.traffic_s + self.optimizer_s

    @property
    def total_s(self) -> float:
        """The step."""
        return self.compute_s + self.exposed_s + self.idle_s


class StepTimer:
    """Times on one mesh of one machine. What collectives take is kept from layout to layout.

    Attributes:
      machine: devices in the order of the mesh.
      inner_devices: neighbours that gather parameters first, where all devices do; see
        `staged_gather`.
    """

    def __init__(self, machine: MachineModel) -> None:
        self.machine = machine
        self._lines: dict[tuple[MeshShape, str, tuple[str, ...]], tuple[float, float]] = {}
        self.inner_devices = _inner_devices(machine)

    def collective_s(self, mesh: MeshShape, one: PredictedCollective) -> float:
        """Seconds of one execution."""
        key = (mesh, one.kind, one.axes)
        if key not in self._lines:
            self._lines[key] = self._line(*key)
        latency_s, per_byte_s = self._lines[key]
        return latency_s + per_byte_s * one.payload_bytes

    def _line(self, mesh: MeshShape, kind: str, axes: tuple[str, ...]) -> tuple[float, float]:
        """Latency and seconds a byte: every model of a collective is linear in its bytes."""
        if kind == STAGED:
            return self._staged_line()
        groups = groups_over(mesh, axes)
        if kind == PERMUTE:  # everybody hands on to the next
            groups = tuple(pair for group in groups for pair in itertools.pairwise(group))
        return self._line_of(kind, groups)

    def _line_of(self, kind: str, groups: Groups) -> tuple[float, float]:
        unit = 1e6
        none, some = (collective_time(self.machine, kind, b, groups).seconds for b in (0.0, unit))
        return none, (some - none) / unit

    def _staged_line(self) -> tuple[float, float]:
        """Of a gather over all devices, neighbours first: they gather what the others hold once."""
        devices = np.arange(len(self.machine.coordinates)).reshape(-1, self.inner_devices)
        first, last = (
            self._line_of(ALL_GATHER, tuple(map(tuple, ids.tolist())))
            for ids in (devices, devices.T)
        )
        return first[0] + last[0], first[1] / len(devices) + last[1]

    def product_s(self, program: ShardedProgram, index: int) -> float:
        """Seconds of a product or convolution, all repeats."""
        op = program.analysis.graph.ops[index]
        rate = (
            self.machine.flops_per_s(hlo_dtype(program.analysis.graph.values[op.inputs[0]].dtype))
            * self.machine.efficiency
        )
        traffic = sum(program.local_bytes(v) for v in {*op.inputs, *op.outputs})
        flops = _padded_flops(program, index, self.machine.matrix_tile)
        return program.repeats(index) * max(flops / rate, traffic / self.machine.hbm_bytes_per_s)


def _padded_flops(program: ShardedProgram, index: int, tile: int) -> float:
    """FLOPs of one execution on one device, its sides rounded up to tiles."""
    op, rule = program.analysis.graph.ops[index], program.analysis.rules[index]
    bound = program.analysis.factor_dims(index)
    sides = {"batch": 1.0, "rows": 1.0, "columns": 1.0, "summed": 1.0}
    carried = [{f for dim in operand for f in dim} for operand in rule.operands[:2]]
    for factor, (info, atoms) in enumerate(zip(rule.factors, bound, strict=True)):
        if info.role is FactorRole.INDEXED:
            continue
        local = info.size / program.degree(program.factor_parts(atoms))
        if info.role in (FactorRole.CONTRACTED, FactorRole.HALO):
            sides["summed"] *= local
        elif all(factor in c for c in carried):
            sides["batch"] *= local
        else:
            sides["rows" if factor in carried[0] else "columns"] *= local
    if op.primitive != "dot_general":
        parts = {p for atoms in bound for p in program.factor_parts(atoms)}
        return product_flops(program.analysis, index) / program.degree(parts)
    low, high = sorted((sides["rows"], sides["columns"]))
    padded = _rounded(low, _ROWS) * _rounded(high, tile) * _rounded(sides["summed"], tile)
    return 2.0 * sides["batch"] * padded


def _rounded(size: float, tile: int) -> float:
    return math.ceil(size / tile) * tile


def is_product(program: ShardedProgram, index: int) -> bool:
    """Whether an operation runs on the matrix unit and depends on an input."""
    op = program.analysis.graph.ops[index]
    return op.primitive in PRODUCTS and any(program.analysis.sources[v] for v in op.inputs)


def _traffic_bytes(program: ShardedProgram, sizes: Sizes, buffers: Iterable[Buffer]) -> float:
    """What is written and read once more, besides operands and results of products."""
    ops = program.analysis.graph.ops
    made = {value: index for index, op in enumerate(ops) for value in op.outputs}
    total = 0.0
    for buffer in buffers:
        index = made.get(buffer.value)
        if buffer.kind is not Kind.ACTIVATION or index is None or is_product(program, index):
            continue
        op = ops[index]
        # A stack is written slice by slice, all of it once in the loops around its own.
        slices = int(op.params["length"]) if op.primitive == SCAN_YS else 1
        total += 2 * sizes.buffer(buffer) * program.repeats(index) / slices
    return total


def step_time(
    program: ShardedProgram,
    sizes: Sizes,
    buffers: Iterable[Buffer],
    memory: MemoryEstimate,
    collectives: Iterable[PredictedCollective],
    timer: StepTimer,
    trains: bool,
) -> StepTime:
    """Estimate a step.

    Args:
      program: the gradient program when training, under a layout.
      sizes: of its values.
      buffers: what it writes; see `find_buffers`.
      memory: bytes of parameters and optimizer state.
      collectives: predicted.
      timer: of the mesh.
      trains: whether parameters are updated.
    """
    machine = timer.machine
    count = len(program.analysis.graph.ops)
    products = sum(timer.product_s(program, i) for i in range(count) if is_product(program, i))
    traffic = _traffic_bytes(program, sizes, buffers) / machine.hbm_bytes_per_s
    state = _PARAMETER_PASSES * memory.parameters_bytes + _OPTIMIZER_PASSES * memory.optimizer_bytes
    optimizer = state / machine.hbm_bytes_per_s if trains else 0.0
    communication, exposed, hidden = 0.0, 0.0, 0.0
    mesh = program.layout.mesh.refined
    beside_s = _mean_product_s(program, products)
    for one in collectives:
        as_made = _as_made(one, mesh, timer)
        each_s = timer.collective_s(mesh, as_made)
        communication += one.count * each_s
        covered = min(each_s, beside_s) if _hides(as_made, machine) else 0.0
        hidden += one.count * covered
        exposed += one.count * (each_s - covered)
    exposed += max(0.0, hidden - products - traffic)
    return StepTime(products, traffic, optimizer, communication, exposed)


def _mean_product_s(program: ShardedProgram, products_s: float) -> float:
    """Seconds of one product: a collective runs beside the one before it, or that it is of."""
    count = len(program.analysis.graph.ops)
    runs = sum(program.repeats(index) for index in range(count) if is_product(program, index))
    return products_s / runs if runs else 0.0


def _as_made(one: PredictedCollective, mesh: MeshShape, timer: StepTimer) -> PredictedCollective:
    """What the compiler makes of a collective.

    That for TPU gathers and scatters over all devices of a closed torus of three dimensions by
    all-reduces (read off its programs); parameters are gathered in stages for that.
    """
    if timer.inner_devices == 1 or one.devices != mesh.device_count:
        return one
    of_parameters = one.purpose is Purpose.PARAMETERS and one.phase is not Phase.OPTIMIZER
    if one.kind == ALL_GATHER and of_parameters:
        return dataclasses.replace(one, kind=STAGED)
    if one.kind in (ALL_GATHER, REDUCE_SCATTER):
        return dataclasses.replace(one, kind=ALL_REDUCE)
    return one


def _hides(one: PredictedCollective, machine: MachineModel) -> bool:
    """Whether the compiler runs it beside other work.

    The one for TPU scatters sums of gradients piece by piece, while the product that makes them
    goes on (a windowed einsum), and gathers ahead on chips with a torus of two dimensions only; the
    one for GPU starts gathers and scatters ahead.
    """
    if one.phase is Phase.OPTIMIZER:
        return False
    if machine.platform == "tpu" and _torus_dims(machine) > 2:
        return one.kind == REDUCE_SCATTER
    return one.kind in (ALL_GATHER, REDUCE_SCATTER)


def _inner_devices(machine: MachineModel) -> int:
    torus = [i for i, axis in enumerate(machine.axes) if axis.fabric is Fabric.TORUS]
    if machine.platform != "tpu" or not torus or torus[0] > 0:  # several slices
        return 1
    return inner_devices([[place[i] for i in torus] for place in machine.coordinates])


def _torus_dims(machine: MachineModel) -> int:
    return sum(axis.fabric is Fabric.TORUS for axis in machine.axes)
