"""Optimizer state on the host: memory of the compiled step with it and without, TPU and GPU.

  python -m benchmarks.offload [--cells=SUBSTRING]

Each cell is a training step of a scanned model with AdamW and clipping by the global norm, compiled
for a machine that need not be here: once with all state in the device's memory, once with the
optimizer's on the host, fetched layer by layer (`autoshard.optimizer_offload`), and, to show why,
once fetched all at once. The bar: the device's memory, both what `memory_analysis()` adds up to and
the compiler's peak, falls by at least 80% of the bytes on the host. (That peak counts what is on
the host, too, which is taken off here.)
"""

import argparse
import dataclasses
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import optax

import autoshard
import models
from autoshard import lower
from autoshard.compiled_program import CompiledMemory, CompiledProgram
from autoshard.compiling import compile_program
from autoshard.machine import machine_model
from autoshard.optimizer_offload import (
    Offload,
    make_update,
    on_device,
    plan_offload,
    state_memories,
)
from autoshard.target import resolve
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate

BAR = 0.8
_MB = 1e6


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model on a machine.

    Attributes:
      model: name in the registry; its layers are scanned, each computed again in the backward pass.
      topology: the machine, all of whose devices share the parameters (ZeRO-3).
      batch_size: examples, over all devices.
      seq_len: tokens an example.
      overrides: fields of the model's configuration.
    """

    model: str
    topology: str
    batch_size: int
    seq_len: int
    overrides: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        changed = ",".join(f"{name}={value}" for name, value in self.overrides)
        return f"{self.model} {changed} {self.topology}".replace("  ", " ")


_NARROW = (("num_layers", 16), ("d_model", 1024), ("d_ff", 3584), ("vocab_size", 16384))
CELLS = (
    Cell("llama3_8b", "v5e:2x4", 8, 512, _NARROW),
    Cell("llama3_8b", "h100:8", 8, 512, _NARROW),
    Cell("llama3_8b", "v5p:2x2x2", 8, 2048),
    Cell("llama3_8b", "h100:8", 8, 2048),
)


def fetched_at_once(optimizer: Any, offload: Offload) -> Callable[..., tuple[Any, Any]]:
    """The update that a first attempt would write."""

    def run(gradients: Any, state: Any, params: Any, **_: Any) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(state)
        fetched = [
            _moved(x, h, jax.memory.Space.Device)
            for x, h in zip(leaves, offload.on_host, strict=True)
        ]
        state = jax.tree.unflatten(structure, fetched)
        updates, state = optimizer.update(gradients, state, params)
        made = [
            _moved(x, h, jax.memory.Space.Host)
            for x, h in zip(jax.tree.leaves(state), offload.on_host, strict=True)
        ]
        return optax.apply_updates(params, updates), jax.tree.unflatten(structure, made)

    return run


def _moved(x: Any, moves: bool, space: Any) -> Any:
    return jax.device_put(x, space) if moves else x


@dataclasses.dataclass(frozen=True)
class Measured:
    """A compiled step: its memory, its simulated time and what was planned for the host.

    GPUs' programs read the host's memory from within kernels, which the simulator does not see: no
    time is given for them.
    """

    memory: CompiledMemory
    step_s: float | None
    offload: Offload


def measure(cell: Cell, kind: str) -> Measured:
    """Compile a step: `device`, `streamed` or `at once`."""
    spec = models.get(
        cell.model, dtype="bfloat16", scan_layers=True, remat="full", **dict(cell.overrides)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    batch = spec.example_batch(cell.batch_size, cell.seq_len)
    compiled: Any = autoshard.compile(
        spec.build(), cell.topology, batch=batch, rules="zero3", optimizer=optimizer
    )
    state, shardings = compiled.abstract_state, compiled.shardings
    stacked = [
        "layers" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)
    ]
    offload = plan_offload(state.params, state.opt_state, shardings.state.opt_state, stacked)
    places = shardings.state
    if kind != "device":
        places = dataclasses.replace(
            on_device(places), opt_state=state_memories(places.opt_state, offload)
        )
    makers = {"device": lower.plain_update(optimizer), "streamed": make_update(optimizer, offload),
              "at once": fetched_at_once(optimizer, offload)}  # fmt: skip
    step = lower.make_step(compiled.traced, shardings, makers[kind])
    program = _compile(cell, step, compiled, places)
    assert program.memory is not None, program.out_of_memory
    machine = machine_model(resolve(cell.topology).topology)
    step_s = None
    if machine.platform == "tpu":
        step_s = simulate(parse(program.hlo_text), machine).step_s
    return Measured(program.memory, step_s, offload)


def _compile(cell: Cell, step: Callable[..., Any], compiled: Any, places: Any) -> CompiledProgram:
    batch_places = on_device(compiled.batch_sharding)
    jitted = jax.jit(
        step,
        in_shardings=(places, batch_places),
        out_shardings=(places, places.rng),
        donate_argnums=0,
    )
    arguments = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        (compiled.abstract_state, compiled.abstract_batch),
        (places, batch_places),
    )
    with jax.set_mesh(compiled.mesh):
        lowered = jitted.lower(*arguments)
    devices = tuple(compiled.mesh.devices.flat)
    return compile_program(lowered, topology=cell.topology, devices=devices)


def run(cell: Cell) -> bool:
    """Print a cell's figures; whether the bar is met."""
    found = {kind: measure(cell, kind) for kind in ("device", "streamed", "at once")}
    host_bytes = found["streamed"].offload.host_bytes
    print(f"\n{cell}: {host_bytes / _MB:.0f} MB of state for the host")
    print(
        f"{'':10}{'arguments':>10}{'temporaries':>12}{'sum':>8}{'peak':>8}{'host':>8}   (MB)"
        f"{'simulated step':>18}"
    )
    for kind, one in found.items():
        memory = one.memory
        columns = (
            memory.arguments_bytes,
            memory.temporaries_bytes,
            memory.total_bytes,
            memory.needed_bytes,
            memory.host_arguments_bytes,
        )
        widths = (10, 12, 8, 8, 8)
        figures = (f"{x / _MB:>{w}.0f}" for x, w in zip(columns, widths, strict=True))
        step = "" if one.step_s is None else f"{one.step_s * 1e3:21.1f} ms"
        print(f"{kind:10}{''.join(figures)}{step}")
    before, after = found["device"].memory, found["streamed"].memory
    falls = (before.total_bytes - after.total_bytes, before.needed_bytes - after.needed_bytes)
    shares = [fall / after.host_arguments_bytes for fall in falls]
    print(
        f"of what is on the host, the sum falls by {shares[0]:.0%} and the peak by {shares[1]:.0%}"
    )
    return min(shares) >= BAR


def main() -> None:
    """Print all cells; the exit status says whether the bar is met."""
    parser = argparse.ArgumentParser(description="Optimizer state on the host.")
    parser.add_argument("--cells", default="", help="only those with this in their name")
    options = parser.parse_args()
    met = [run(cell) for cell in CELLS if options.cells in str(cell)]
    if not all(met):
        raise SystemExit(f"{met.count(False)} cells are below {BAR:.0%}")


if __name__ == "__main__":
    main()
