"""Seconds and memory of the planner's search, nothing compiled.

  python -m benchmarks.search_time

Llama-3-70B on 64 chips, layers unrolled, with 8 and with 80 of them: depth must not count once the
program is traced. A dense decoder of a trillion parameters on 6,144 chips. Each in a process of its
own, for its peak memory. Tracing, rolling and searching are told apart.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import autoshard
import models
from autoshard import planning, recipe

_UNROLLED = {"scan_layers": False, "remat": "none"}
CASES: dict[str, tuple[str, str, int, int, dict[str, Any]]] = {
    "8 layers": ("llama3_70b", "v5p:4x4x4", 64, 4096, {**_UNROLLED, "num_layers": 8}),
    "80 layers": ("llama3_70b", "v5p:4x4x4", 64, 4096, {**_UNROLLED, "num_layers": 80}),
    "70B": ("llama3_70b", "v5p:4x4x4", 64, 4096, {}),
    "1T": ("dense_1t", "v5p:16x16x24", 6144, 2048, {"dropout_rate": 0.0}),
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One search.

    Attributes:
      trace_s: tracing and rolling.
      search_s: the rest, to the plan.
      cpu_s: of the search, seconds of CPU time.
      layouts: that were costed.
      peak_bytes: of the process.
      plan: mesh and rules.
    """

    trace_s: float
    search_s: float
    cpu_s: float
    layouts: int
    peak_bytes: int
    plan: str


def measure(name: str) -> Measured:
    """Search in this process."""
    model, topology, batch_size, seq_len, overrides = CASES[name]
    spec = models.get(model, dtype="bfloat16", **overrides)
    begun: dict[str, float] = {}
    make = planning.make

    def timed(*arguments: Any) -> Any:
        begun["wall"], begun["cpu"] = time.monotonic(), time.process_time()
        return make(*arguments)

    recipe.planning.make = timed  # type: ignore[attr-defined]  # between tracing and searching
    start = time.monotonic()
    compiled: Any = autoshard.compile(
        spec.build(), topology, batch=spec.example_batch(batch_size, seq_len), rules="auto",
        dtype="bfloat16", passes="auto", search=autoshard.SearchOptions(verify=0),
    )  # fmt: skip
    end, cpu = time.monotonic(), time.process_time()
    plan = compiled.plan
    return Measured(
        trace_s=begun["wall"] - start,
        search_s=end - begun["wall"],
        cpu_s=cpu - begun["cpu"],
        layouts=plan.search.evaluated,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        plan=f"{plan.mesh.shape} {'+'.join(plan.rules)}",
    )


def main() -> None:
    """Each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="", choices=["", *CASES])
    options = parser.parse_args()
    if options.case:
        print(json.dumps(dataclasses.asdict(measure(options.case))))
        return
    print("     case  trace s  search s  (cpu s)  layouts  peak GiB  plan")
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.search_time", f"--case={name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        one = Measured(**json.loads(done.stdout.splitlines()[-1]))
        print(
            f"{name:>9} {one.trace_s:8.1f} {one.search_s:9.1f} {one.cpu_s:9.1f} {one.layouts:8d} "
            f"{one.peak_bytes / 2**30:9.2f}  {one.plan}",
            flush=True,
        )


if __name__ == "__main__":
    main()
