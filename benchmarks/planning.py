"""Seconds and memory of planning models that this machine could not hold.

  python -m benchmarks.planning [model ...]

Each model is planned in a process of its own, for 64 devices, on a given mesh and on an open one.
Layers are unrolled, which makes the largest program; scanned, Llama-3-70B is planned in a second.
Bar: for llama3_70b under 60 s and 4 GB, tracing included, with nothing materialised. Seconds
depend on the machine; they are printed beside the seconds that building the abstract model alone
takes in Flax.
"""

import json
import subprocess
import sys

PROGRAM = """
import json, resource, sys, time
import jax
from flax import nnx
import autoshard, models

name, mesh = sys.argv[1:]
spec = models.get(name, scan_layers=False, remat="none")
began = time.perf_counter()
built = spec.build()
if spec.family == "llama":
    nnx.eval_shape(lambda: built(rngs=nnx.Rngs(0)))
else:
    jax.eval_shape(built.init, jax.random.key(0), jax.numpy.zeros((1, 8), "int32"))
abstract_s = time.perf_counter() - began
began = time.perf_counter()
compiled = autoshard.compile(built, mesh, batch=spec.example_batch(64, min(4096,
    spec.config.max_seq_len)))
planning_s = time.perf_counter() - began
print(json.dumps({
    "model": name, "mesh": mesh, "parameters": spec.num_params,
    "operations": compiled.plan.program.operation_count,
    "abstract_model_s": abstract_s, "planning_s": planning_s,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "live_arrays": len(jax.live_arrays()),
    "chosen": "+".join(compiled.plan.rules), "candidates": max(1, len(compiled.plan.alternatives)),
}))
"""


def measure(model: str, mesh: str) -> dict[str, object]:
    """Plan one model in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, model, mesh], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(names: list[str]) -> None:
    """Print a row a model and mesh."""
    print(
        f"{'model':12} {'mesh':16} {'operations':>10} {'layouts':>8} {'Flax alone':>11} "
        f"{'planning':>9} {'peak':>8}  chosen"
    )
    for name in names or ["gpt2_xl", "llama3_8b", "llama3_70b"]:
        for mesh in ("data=8,model=8", "cpu:64"):
            row = measure(name, mesh)
            assert row["live_arrays"] == 0, row
            print(
                f"{name:12} {mesh:16} {row['operations']:>10} {row['candidates']:>8} "
                f"{row['abstract_model_s']:>9.1f} s {row['planning_s']:>7.1f} s "
                f"{float(str(row['peak_bytes'])) / 1e9:>5.2f} GB  {row['chosen']}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
