"""Simulated step times beside throughput that was measured on hardware and published.

  make bench-published        (or: python -m benchmarks.published [--rows=FILE] [--no-cache])

Each row of `published_throughput.csv` is built as its run was (`benchmarks.published_model`:
same sizes, batch, tensor degree, rematerialisation, splash attention, compiler options), compiled
by the real TPU compiler, and simulated from the schedule. All constants come from datasheets but
one, `MATRIX_EFFICIENCY`, the share of its peak that the matrix unit sustains, the same for every
chip and row. The second table leaves each row out in turn: the efficiency that suits the others
best, and what it predicts for the row. The bar is 10% for every row.

The simulated time leaves out the input pipeline, the host, and variation between chips.
"""

import argparse
import csv
import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from autoshard.compiled_program import CompiledProgram
from autoshard.compiling import compile_program
from autoshard.machine import MATRIX_EFFICIENCY, machine_model
from autoshard.target import compile_only_devices
from autoshard.topology import Topology
from autoshard.torus import device_order
from benchmarks.published_model import PublishedModel, make_step
from passes.hlo.loops import trip_count
from passes.hlo.machine import MachineModel
from passes.hlo.module import Computation, HloModule
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate
from passes.hlo.timeline import Timeline

ROWS = pathlib.Path(__file__).with_name("published_throughput.csv")
BAR = 0.10
_CANDIDATES = tuple(n / 200 for n in range(160, 201))  # efficiencies from 0.8 to 1

# What the runs' scripts set (LIBTPU_INIT_ARGS of MaxText's configurations for these chips, 2024).
_OPTIONS = {
    "v5e": """xla_tpu_enable_data_parallel_all_reduce_opt
        xla_tpu_data_parallel_opt_different_sized_ops xla_tpu_enable_async_collective_fusion
        xla_tpu_enable_async_collective_fusion_fuse_all_gather
        xla_tpu_enable_async_collective_fusion_multiple_steps
        xla_tpu_overlap_compute_collective_tc xla_enable_async_all_gather""",
    "v5p": """xla_tpu_enable_async_collective_fusion_fuse_all_gather
        xla_enable_async_collective_permute xla_tpu_enable_ag_backward_pipelining
        xla_tpu_enable_data_parallel_all_reduce_opt xla_tpu_data_parallel_opt_different_sized_ops
        xla_tpu_enable_async_collective_fusion
        xla_tpu_enable_async_collective_fusion_multiple_steps
        xla_tpu_overlap_compute_collective_tc xla_enable_async_all_gather""",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One published run."""

    name: str
    model: PublishedModel
    topology: Topology
    batch_per_chip: int
    tensor: int
    tflops_per_chip: float

    @property
    def flops_per_chip(self) -> float:
        """Model FLOPs of one step, as the source counts them."""
        return self.batch_per_chip * self.model.seq_len * self.model.flops_per_token()

    @property
    def options(self) -> dict[str, bool]:
        """Compiler options of the run."""
        names = _OPTIONS.get(self.topology.known_chip.name, "").split()
        options = dict.fromkeys(names, True)
        if self.topology.known_chip.name == "v5p":
            options["xla_tpu_megacore_fusion_allow_ags"] = False
        return options

    def tflops(self, step_s: float) -> float:
        """Model TFLOP/s a chip at a step time."""
        return self.flops_per_chip / step_s / 1e12


def read_rows(path: pathlib.Path) -> list[Row]:
    """Rows of a CSV file with the columns of `published_throughput.csv`."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return [
        Row(
            name=f"{r['name']} {r['topology']}",
            model=PublishedModel(
                int(r["embed"]), int(r["heads"]), int(r["mlp"]), int(r["layers"]), r["remat"]
            ),
            topology=Topology.parse(r["topology"]),
            batch_per_chip=int(r["batch_per_chip"]),
            tensor=int(r["tensor"]),
            tflops_per_chip=float(r["tflops_per_chip"]),
        )
        for r in csv.DictReader(lines)
    ]


def compile_row(row: Row, cache: bool) -> CompiledProgram:
    """The run's step, compiled for its pod."""
    count = row.topology.device_count
    sizes = (count // row.tensor, row.tensor)
    devices = compile_only_devices(row.topology, sizes)
    mesh = Mesh(
        np.array(devices).reshape(sizes), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2
    )
    step = make_step(row.model, mesh, count * row.batch_per_chip)
    with jax.set_mesh(mesh):
        lowered = jax.jit(
            step.function, donate_argnums=(0, 1), out_shardings=step.out_shardings
        ).lower(*step.specs)
    return compile_program(
        lowered,
        topology=row.topology.compiler_name,
        devices=devices,
        compiler_options=row.options,
        cache=cache,
    )


def machine_of(row: Row, efficiency: float) -> MachineModel:
    """The pod, its devices in the order of the run's mesh."""
    sizes = (row.topology.device_count // row.tensor, row.tensor)
    order = tuple(map(int, device_order(row.topology, sizes)))
    return machine_model(row.topology, order=order, efficiency=efficiency)


def cycles_s(module: HloModule, clock_hz: float) -> float:
    """Seconds of the compiler's `estimated_cycles`, loops multiplied, and nothing else."""

    def total(c: Computation) -> float:
        seconds = 0.0
        for i in c.instructions:
            if i.opcode == "while":
                body = module.computations[i.attributes["body"].lstrip("%")]
                seconds += (trip_count(module, c, i) or 1) * total(body)
            else:
                seconds += (i.estimated_cycles or 0) / clock_hz
        return seconds

    return total(module.entry_computation)


def _print_rows(rows: Sequence[Row], timelines: Sequence[Timeline], cycles: list[float]) -> bool:
    print(
        f"\n{'run':16} {'published':>10} {'simulated':>10} {'ratio':>6} {'step':>8} {'cores':>8} "
        f"{'exposed':>8} {'cycles only':>12}   (TFLOP/s a chip; simulated seconds)"
    )
    passed = True
    for row, timeline, alone in zip(rows, timelines, cycles, strict=True):
        found = row.tflops(timeline.step_s)
        ratio = found / row.tflops_per_chip
        passed = passed and abs(ratio - 1) <= BAR
        print(
            f"{row.name:16} {row.tflops_per_chip:>10.0f} {found:>10.1f} {ratio:>6.3f} "
            f"{timeline.step_s:>7.2f}s {timeline.compute_s:>7.2f}s "
            f"{timeline.exposed_communication_s:>7.2f}s {row.tflops(alone):>12.1f}"
        )
    return passed


def _worst(rows: Sequence[Row], tflops: dict[tuple[str, float], float], efficiency: float) -> float:
    """The largest |log ratio| of some rows at an efficiency."""
    return max(abs(math.log(tflops[row.name, efficiency] / row.tflops_per_chip)) for row in rows)


def _print_left_out(rows: Sequence[Row], modules: Sequence[HloModule]) -> bool:
    tflops = {
        (row.name, e): row.tflops(simulate(module, machine_of(row, e)).step_s)
        for row, module in zip(rows, modules, strict=True)
        for e in _CANDIDATES
    }
    print("\nleft out         efficiency that suits the others best   ratio for the row")
    passed = True
    for row in rows:
        others = [other for other in rows if other is not row]
        best = min(_CANDIDATES, key=lambda e: _worst(others, tflops, e))
        ratio = tflops[row.name, best] / row.tflops_per_chip
        passed = passed and abs(ratio - 1) <= BAR
        print(f"{row.name:16} {best:>20.3f} {ratio:>38.3f}")
    unit = max(abs(tflops[row.name, 1.0] / row.tflops_per_chip - 1) for row in rows)
    print(f"with an efficiency of 1 the worst row is {unit:.1%} off")
    return passed


def main() -> None:
    """Print both tables and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=pathlib.Path, default=ROWS, help="a CSV of runs")
    parser.add_argument("--no-cache", action="store_true", help="compile anew")
    arguments = parser.parse_args()
    rows = read_rows(arguments.rows)
    modules, timelines, cycles = [], [], []
    for row in rows:
        program = compile_row(row, not arguments.no_cache)
        how = "from the cache" if program.cached else f"in {program.compile_s:.0f} s"
        print(f"compiled {row.name} {how}", flush=True)
        modules.append(parse(program.hlo_text))
        timelines.append(simulate(modules[-1], machine_of(row, MATRIX_EFFICIENCY)))
        cycles.append(cycles_s(modules[-1], row.topology.known_chip.clock_hz))
    passed = _print_rows(rows, timelines, cycles)
    print(f"efficiency of the matrix unit: {MATRIX_EFFICIENCY}")
    passed = (len(rows) < 2 or _print_left_out(rows, modules)) and passed
    print(f"every row within {BAR:.0%}: {'yes' if passed else 'NO'}")


if __name__ == "__main__":
    main()
