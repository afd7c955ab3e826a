"""What the TPU compiler does by itself, beside what autoshard has it do.

  python -m benchmarks.tpu_habits

Llama-3-8B, layouts given, rematerialised as the model is written: gathers over all of a 3-D torus
in one stage and in two (`autoshard/staged_gather.py`), scoped VMEM of 32 and 64 MiB on v6e, and
asynchronous collectives (`autoshard/compiler_options.py`). Steps are simulated from the compiler's
schedules, memory is the compiler's; nothing is run. A cold run compiles eight steps, minutes each;
results are cached.
"""

import dataclasses
import os
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import autoshard
import models
from autoshard.compiler_options import ASYNC_COLLECTIVES
from benchmarks.planner_cells import CELLS, EXPERT, SINGLE, Cell

_ASYNC = dict(ASYNC_COLLECTIVES.options)
_OWN = {"xla_tpu_scoped_vmem_limit_kib": str(32 * 1024)}  # of the compiler, for v6e


@dataclasses.dataclass(frozen=True)
class Way:
    """How a layout is compiled.

    Attributes:
      what: in words.
      options: for the compiler, above autoshard's.
      in_stages: whether gathers are made in stages where autoshard does so.
    """

    what: str
    options: dict[str, str]
    in_stages: bool = True


_ON_TORUS = (
    Way("gathers in one stage", {}, in_stages=False),
    Way("gathers in two stages", {}),
    Way("and asynchronous collectives", _ASYNC),
)
_ON_V6E = (Way("32 MiB of scoped VMEM", _OWN), Way("64 MiB", {}))
CASES = (
    ("v5p:4x4x4", "zero3", _ON_TORUS),
    ("v6e:16x16", "zero3", (*_ON_V6E, Way("and asynchronous collectives", _ASYNC))),
    ("v6e:16x16", "fsdp x tensor 4", _ON_V6E),
)


def compiled(cell: Cell, column_name: str, way: Way) -> tuple[float, int]:
    """(Simulated seconds of a step, bytes a device.)"""
    column = next(column for column in (*SINGLE, *EXPERT) if column.name == column_name)
    spec = models.get(cell.model, dtype="bfloat16", **dict(cell.overrides))
    step: Any = autoshard.compile(
        spec.build(), column.target(cell), rules=column.rules, dtype="bfloat16",
        batch=spec.example_batch(cell.batch_size, cell.seq_len),
    )  # fmt: skip
    if way.in_stages:
        report = step.compile_report(compiler_options=way.options)
    else:
        with mock.patch("autoshard.lower.inner_devices_of", return_value=1):
            report = step.compile_report(compiler_options=way.options)
    return report.timeline.step_s, report.memory.needed_bytes


def main() -> None:
    """Print all ways of each case, and each against the first."""
    for topology, column, ways in CASES:
        (cell,) = (c for c in CELLS if c.model == "llama3_8b" and c.topology == topology)
        print(f"{cell}, {column}", flush=True)
        first = None
        for way in ways:
            step_s, memory_bytes = compiled(cell, column, way)
            first = first or step_s
            print(
                f"  {step_s * 1e3:8.1f} ms ({step_s / first - 1:+6.1%}) "
                f"{memory_bytes / 2**30:6.2f} GiB  {way.what}",
                flush=True,
            )


if __name__ == "__main__":
    main()
