"""What stack_layers does to compile time and memory: narrow Llamas, unrolled and rolled.

    python -m benchmarks.stacking [--topology=v5p:4x4x4] [--deep=80] [--memory_layers=16]

Two tables. Compilation: seconds in the target's compiler for 4 layers unrolled and for `--deep`
layers rolled, whose ratio is what counts (absolute seconds depend on the machine; run it on an idle
one). Memory: temporaries that the compiler reports, unrolled, rolled with the loop's default remat,
and rolled without. Nothing is taken from the compile cache.
"""

import dataclasses
from typing import Any

import optax
from absl import app, flags

import autoshard
import models
from experiments.devices import stay_on_cpu

_TOPOLOGY = flags.DEFINE_string("topology", "v5p:4x4x4", "Machine to compile for.")
_MESH = flags.DEFINE_string("mesh", "data=16,model=4", "Axes over it.")
_DEEP = flags.DEFINE_integer("deep", 80, "Layers of the rolled model.", lower_bound=4)
_MEMORY_LAYERS = flags.DEFINE_integer(
    "memory_layers", 16, "Layers of the models whose memory is compared.", lower_bound=4
)

_NARROW = {
    "d_model": 256,
    "num_heads": 8,
    "num_kv_heads": 4,
    "d_ff": 768,
    "vocab_size": 2048,
    "max_seq_len": 512,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One compilation.

    Attributes:
      layers: of the model.
      passes: that it went through; None for the model as it is.
      compile_s: seconds in the compiler.
      temporaries_bytes: a device's, as compiled.
      step_s: simulated.
    """

    layers: int
    passes: str | None
    compile_s: float
    temporaries_bytes: int
    step_s: float

    def __str__(self) -> str:
        return (
            f"{self.layers:6}  {self.passes or 'unrolled':32} {self.compile_s:9.1f} s "
            f"{self.temporaries_bytes / 2**20:9.1f} MiB {self.step_s * 1e3:9.3f} ms (simulated)"
        )


def measure(layers: int, passes: str | None) -> Row:
    """Compile one training step, printing it."""
    spec = models.get("llama3_tiny", num_layers=layers, **_NARROW)
    compiled: Any = autoshard.compile(
        spec.build(),
        f"{_TOPOLOGY.value} {_MESH.value}",
        batch=spec.example_batch(64),
        rules="zero3+redco",
        optimizer=optax.adamw(1e-3),
        dtype="bfloat16",
        passes=passes,
    )
    report = compiled.compile_report(cache=False)
    row = Row(
        layers,
        passes,
        report.compile_s,
        report.memory.temporaries_bytes,
        report.timeline.step_s,
    )
    print(row, flush=True)
    return row


def main(argv: list[str]) -> None:
    """Both tables."""
    del argv
    stay_on_cpu()
    print(f"Llama of width {_NARROW['d_model']} on {_TOPOLOGY.value}, {_MESH.value}, zero3+redco\n")
    shallow = measure(4, None)
    deep = measure(_DEEP.value, "stack_layers")
    ratio = deep.compile_s / shallow.compile_s
    print(f"compile time, {deep.layers} layers rolled / 4 unrolled: {ratio:.2f} (bar: 1.30)\n")
    unrolled = measure(_MEMORY_LAYERS.value, None)
    rolled = measure(_MEMORY_LAYERS.value, "stack_layers")
    measure(_MEMORY_LAYERS.value, "stack_layers(remat='none')")
    share = rolled.temporaries_bytes / unrolled.temporaries_bytes
    print(f"temporaries, rolled / unrolled: {share:.2f} (bar: 1.00)")


if __name__ == "__main__":
    app.run(main)
