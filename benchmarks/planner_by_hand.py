"""The planner against shardings written by hand, for a small Llama-style step.

  python -m benchmarks.planner_by_hand

Two layers, width 2048, hidden 5632, 16 heads of 128, 32,000 words, one sequence of 1,024 tokens a
chip, Adam, full rematerialisation, bfloat16 computation on float32 parameters. By hand: plain
`jax.jit` (`hand_written_llama.py`), fully sharded times tensor = 1, 2, 4, 8, of the same program;
beside it with attention kernels that have dimensions for heads, as MaxText's have, and with all
activations saved, which an expert may ask for where memory allows it as the planner does with
`passes="auto"`; and both with asynchronous collectives, which the planner tries, too.

Columns, from the compiler's schedule, loops multiplied: the compiler's own `estimated_cycles`; all
computation in cycles, that of a roofline where the compiler gives none (it gives none for products
that are fused with nothing, so the first column alone favours whom the compiler fuses less for);
and the simulated step, which adds what collectives are waited for. Pure tensor parallelism
(fsdp=1) has little to compute and much to wait for, and is no fully sharded layout: it is printed,
and compared with apart. The bars are against the fully sharded rows of the same program, with full
rematerialisation, by the compiler's cycles.
"""

import dataclasses
import enum
import itertools
import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import optax

import autoshard
import models
from autoshard import target
from autoshard.compiler_options import ASYNC_COLLECTIVES
from autoshard.compiling import compile_program
from autoshard.mesh_shape import SplitMesh
from benchmarks.hand_written_llama import HandWritten, lowered_step
from models.llama import LlamaConfig
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate
from passes.hlo.timeline import Basis, Timeline

MACHINES = (("v5e:2x4", 8), ("v5p:4x4x4", 64))
# The bars: no more cycles than by hand on both, and so much fewer on the second.
BARS = (0.0, -0.095)


def spec(devices: int) -> tuple[models.ModelSpec, dict[str, Any]]:
    """The model, and its batch of one sequence a chip."""
    found = models.get(
        "llama3_8b", d_model=2048, d_ff=5632, num_layers=2, num_heads=16, num_kv_heads=16,
        vocab_size=32000, scan_layers=False, remat="full", dtype="bfloat16",
    )  # fmt: skip
    return found, found.example_batch(devices, 1024)


class Form(enum.Enum):
    """How a step is written by hand."""

    SAME = "the same program"
    SPLIT_HEADS = "kernels with heads"
    ALL_SAVED = "all saved"
    ASYNC = "asynchronous collectives"
    ALL_SAVED_ASYNC = "all saved, asynchronous collectives"

    @property
    def remat(self) -> bool:
        """Whether layers are made again in the backward pass."""
        return self not in (Form.ALL_SAVED, Form.ALL_SAVED_ASYNC)

    @property
    def options(self) -> dict[str, str]:
        """Compiler options, which the planner may give, too."""
        given = self in (Form.ASYNC, Form.ALL_SAVED_ASYNC)
        return dict(ASYNC_COLLECTIVES.options) if given else {}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A compiled step.

    Attributes:
      what: mesh and rules.
      cycles: trip-weighted, of what the compiler gives cycles for.
      computed: all computation, in cycles.
      step_s: simulated.
      memory_bytes: compiled.
      fully_sharded: whether it is no pure tensor parallelism.
      form: of a step by hand.
    """

    what: str
    cycles: float
    computed: float
    step_s: float
    memory_bytes: int
    fully_sharded: bool = True
    form: Form | None = None


def outcome(what: str, timeline: Timeline, clock_hz: float, memory_bytes: int) -> Outcome:
    """What a schedule comes to."""
    cycles = {
        basis: clock_hz * sum(o.seconds for o in timeline.operations if o.basis is basis)
        for basis in (Basis.CYCLES, Basis.ROOFLINE)
    }
    given, all_s = cycles[Basis.CYCLES], sum(cycles.values())
    return Outcome(what, given, all_s, timeline.step_s, memory_bytes)


def by_hand(topology: str, devices: int, tensor: int, form: Form) -> Outcome:
    """Plain `jax.jit` with shardings written down."""
    model, batch = spec(devices)
    wanted = target.resolve(f"{topology} fsdp={devices // tensor},tensor={tensor}")
    shape = wanted.shapes[0]
    split = SplitMesh(shape, tuple((n,) for n in shape.names), tuple((s,) for s in shape.sizes))
    mesh, machine = wanted.mesh(split), wanted.machine(split)
    assert isinstance(model.config, LlamaConfig)
    written = HandWritten(model.config, mesh, form.remat, form is Form.SPLIT_HEADS)
    lowered = lowered_step(written, batch["tokens"].shape)
    compiled = compile_program(
        lowered,
        topology=topology,
        devices=tuple(mesh.devices.flat),
        compiler_options=form.options,
    )
    assert compiled.memory is not None
    timeline = simulate(parse(compiled.hlo_text), machine)
    memory_bytes = compiled.memory.needed_bytes
    found = outcome(f"by hand, {shape}, {form.value}", timeline, machine.clock_hz, memory_bytes)
    return dataclasses.replace(found, fully_sharded=tensor < devices, form=form)


def searched(topology: str, devices: int, passes: str | None) -> Outcome:
    """The planner's own."""
    model, batch = spec(devices)
    compiled: Any = autoshard.compile(
        model.build(), topology, batch=batch, optimizer=optax.adam(3e-4), rules="auto",
        dtype="bfloat16", passes=passes, search=autoshard.SearchOptions(progress=_say),
    )  # fmt: skip
    report, plan = compiled.report, compiled.plan
    machine = target.resolve(topology).planning_machine(plan.mesh.shape)
    names = " ".join((*plan.rules, *map(str, plan.passes)))
    what = f"searched, {plan.mesh.shape} {names}"
    return outcome(what, report.timeline, machine.clock_hz, report.memory.needed_bytes)


def _say(line: str) -> None:
    print(f"    {line}", flush=True)


def _row(one: Outcome) -> str:
    figures = (one.cycles / 1e6, one.computed / 1e6, one.step_s * 1e3, one.memory_bytes / 2**30)
    words = "{:8.2f} M cycles {:8.2f} M computed {:8.3f} ms {:6.2f} GiB".format(*figures)
    return f"{words}  {one.what}"


def _compared(found: Outcome, hand: Sequence[Outcome]) -> str:
    """A plan's figures, each against the best by hand."""
    shares = [
        getattr(found, name) / min(getattr(one, name) for one in hand) - 1
        for name in ("cycles", "computed", "step_s")
    ]
    return "cycles {:+.1%}, computed {:+.1%}, simulated step {:+.1%}".format(*shares)


def main() -> None:
    """Print both sides on both machines."""
    good = True
    for (topology, devices), bar in zip(MACHINES, BARS, strict=True):
        print(topology, flush=True)
        hand = []
        for form, tensor in itertools.product(Form, (1, 2, 4, 8)):
            hand.append(by_hand(topology, devices, tensor, form))
            print(_row(hand[-1]), flush=True)
        sides = {
            f"{form.value}, {name}": [one for one in hand if one.form is form and taken(one)]
            for form in Form
            for name, taken in (("fsdp > 1", lambda o: o.fully_sharded), ("all", lambda _: True))
        }
        for passes in (None, "auto"):
            found = searched(topology, devices, passes)
            print(_row(found), flush=True)
            for name, side in sides.items():
                print(f"  passes={passes}, against {name}: {_compared(found, side)}", flush=True)
        best = min(one.cycles for one in sides[f"{Form.SAME.value}, fsdp > 1"])
        good = good and found.cycles / best - 1 <= bar
    if not good:
        raise SystemExit("a bar is missed")


if __name__ == "__main__":
    main()
