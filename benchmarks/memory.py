"""Our estimate of a step's memory, made before compiling, beside the compiler's figures.

  make bench-memory        (or: python -m benchmarks.memory [--cells=SUBSTRING] [--no-cache])

Ten cells (model, topology, rules), and some more that the estimate was not made with. Each is
planned, and compiled by the real TPU compiler. The compiled figure is what one device needs at the
peak of the step, `memory_analysis()`'s own peak; the last column is against the sum of its
arguments and temporaries, which also counts what lies in VMEM and what the allocator loses. The bar
is 10% for eight of the ten.

The first run takes a quarter of an hour on two cores; later ones read the cache.
"""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import autoshard
import models
from autoshard.compile_report import CompileReport

BAR = 0.10
NEEDED = 8
_GB = 1e9
_LARGEST = 6


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model on a machine under some rules, in bfloat16 with float32 parameters and AdamW.

    Attributes:
      model: name in the registry.
      target: topology and mesh.
      rules: rule sets.
      batch_size: examples, over all devices.
      seq_len: tokens an example; None for models without.
      overrides: fields of the model's configuration.
    """

    model: str
    target: str
    rules: str
    batch_size: int
    seq_len: int | None = None
    overrides: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        changed = ",".join(f"{name}={value}" for name, value in self.overrides)
        return f"{self.model} {changed} {self.target} {self.rules}".replace("  ", " ")


_SCANNED = ("scan_layers", True)
_TWO_LAYERS = (("scan_layers", False), ("remat", "none"), ("num_layers", 2))
# Dropout is off in GPT-2: the compiler takes minutes over its random numbers.
_NO_DROPOUT = ("dropout_rate", 0.0)
_NARROW = (("in_features", 512), ("hidden", (2048,) * 3))
_WIDE = (("in_features", 1024), ("hidden", (8192,) * 4), ("num_classes", 1000))

# Chosen before the estimate was written, for variety: scanned and unrolled layers, with and without
# rematerialisation; the batches of two that did not fit were halved.
CELLS = (
    Cell("llama3_8b", "v5p:4x4x4 data=16,model=4", "zero3+redco", 64, 4096),
    Cell("llama3_8b", "v6e:4x4 data=16", "zero3", 32, 4096),
    Cell("llama3_8b", "v5p:2x2x2 data=2,model=4", "redco", 16, 2048),
    Cell("llama3_8b", "v5p:2x2x2 data=2,model=4", "redco", 8, 2048, _TWO_LAYERS),
    Cell("gpt2_small", "v5e:2x4 data=8", "data", 32, 1024, (_SCANNED, _NO_DROPOUT)),
    Cell("gpt2_medium", "v5e:4x4 data=16", "zero1", 32, 1024, (_NO_DROPOUT, ("num_layers", 12))),
    Cell(
        "gpt2_large", "v6e:2x4 data=8", "zero3", 64, 1024,
        (_SCANNED, _NO_DROPOUT, ("remat", "full")),
    ),
    Cell("vit_l16", "v5e:4x4 data=16", "zero1", 256, None, (_SCANNED,)),
    Cell("resnet50", "v5e:2x4 data=8", "data", 512),
    Cell("mlp", "v5e:2x4 data=8", "zero2", 65536, None, _WIDE),
)  # fmt: skip

# Compiled after the rules of the estimate stood.
HELD_OUT = (
    Cell("llama3_8b", "v5e:4x4 data=16", "zero3", 16, 2048, (("num_layers", 8),)),
    Cell(
        "vit_l16", "v5e:2x4 data=2,model=4", "zero1+redco", 64, None,
        (_SCANNED, ("remat", "full")),
    ),
    Cell("mlp", "v5p:2x2x2 data=8", "data", 32768, None, _NARROW),
    Cell("resnet_tiny", "v6e:2x4 data=8", "data", 4096),
)  # fmt: skip


def measure(cell: Cell, cache: bool) -> CompileReport:
    """Plan and compile a cell."""
    spec = models.get(cell.model, dtype="bfloat16", **dict(cell.overrides))
    compiled: Any = autoshard.compile(
        spec.build(),
        cell.target,
        batch=spec.example_batch(cell.batch_size, cell.seq_len),
        rules=cell.rules,
        dtype="bfloat16",
    )
    report: CompileReport = compiled.compile_report(cache=cache)
    return report


def needed_bytes(report: CompileReport) -> int:
    """The compiled figure: of a program that does not fit, what its verdict says."""
    if report.memory is not None:
        return report.memory.needed_bytes
    assert report.out_of_memory is not None
    return report.out_of_memory.needed_bytes


def ratio(report: CompileReport) -> float:
    """Estimated over compiled."""
    return report.plan.cost.memory.total_bytes / needed_bytes(report)


def row(cell: Cell, report: CompileReport) -> str:
    """One line of the table, in GB; state and temporaries are estimated/compiled."""
    estimate, compiled = report.plan.cost.memory, report.memory
    state = estimate.parameters_bytes + estimate.optimizer_bytes + estimate.other_bytes
    parts = (estimate.activations_bytes, estimate.gradients_bytes, estimate.gathered_bytes)
    arguments = 0 if compiled is None else compiled.arguments_bytes
    total = needed_bytes(report) if compiled is None else compiled.total_bytes
    verdict = "ok" if abs(ratio(report) - 1) <= BAR else "off"
    figures = [
        f"{state / _GB:.3f}/{arguments / _GB:.3f}",
        *(f"{part / _GB:.2f}" for part in parts),
        f"{sum(parts) / _GB:.2f}/{(needed_bytes(report) - arguments) / _GB:.2f}",
        f"{estimate.total_bytes / _GB:.2f}/{needed_bytes(report) / _GB:.2f}",
        f"{ratio(report):.3f}",
        f"{estimate.total_bytes / total:.3f}",
    ]
    columns = zip(figures, (15, 7, 6, 6, 13, 13, 6, 6), strict=True)
    return f"{verdict:4}" + " ".join(f"{text:>{w}}" for text, w in columns) + f"  {cell}"


def explanation(cell: Cell, report: CompileReport) -> list[str]:
    """Where the memory of a cell is, by the compiled schedule."""
    lines = [f"\nthe worst is {cell}: estimated {ratio(report):.3f} of what is compiled"]
    if report.timeline is not None:
        lines.append("the largest buffers at the peak of the compiled schedule:")
        for name, size, source in report.timeline.memory.peak_names[:_LARGEST]:
            lines.append(f"  {size / _GB:8.3f} GB  {name}  {source}")
    return lines


def run(title: str, cells: Sequence[Cell], cache: bool) -> int:
    """Print the table of some cells; how many are within the bar."""
    print(f"\n{title}")
    print(
        f"{'':4}{'state':>15} {'activ.':>7} {'grad.':>6} {'gather':>6} {'temporaries':>13} "
        f"{'peak, GB':>13} {'ratio':>6} {'to sum':>6}  cell"
    )
    reports = []
    for cell in cells:
        reports.append(measure(cell, cache))
        print(row(cell, reports[-1]), flush=True)
    within = sum(abs(ratio(report) - 1) <= BAR for report in reports)
    print(f"{within} of {len(cells)} within {BAR:.0%}")
    if cells:
        worst = max(zip(cells, reports, strict=True), key=lambda pair: abs(ratio(pair[1]) - 1))
        print("\n".join(explanation(*worst)))
    return within


def main() -> None:
    """Print both tables; the exit status says whether the bar is met."""
    parser = argparse.ArgumentParser(description="Estimated memory beside compiled.")
    parser.add_argument("--cells", default="", help="only those with this in their name")
    parser.add_argument("--no-cache", action="store_true", help="compile all again")
    options = parser.parse_args()
    chosen, held_out = (
        [cell for cell in cells if options.cells in str(cell)] for cells in (CELLS, HELD_OUT)
    )
    within = run("cells (estimated/compiled)", chosen, not options.no_cache)
    run("held out (estimated/compiled)", held_out, not options.no_cache)
    if len(chosen) == len(CELLS) and within < NEEDED:
        raise SystemExit(f"fewer than {NEEDED} cells are within {BAR:.0%}")


if __name__ == "__main__":
    main()
