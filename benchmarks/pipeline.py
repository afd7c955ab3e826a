"""Pipeline schedules, compiled for `v5p:2x2x2` without a TPU: memory and time beside closed forms.

  python -m benchmarks.pipeline

A Llama of 24 layers, 4 stages, 2 ways of data, 16 microbatches; the step is loss and gradients.
Temporaries are the compiler's, times those of its schedule on the simulated machine. `waits` is
1 - ideal / all ticks, where the ideal is 16 microbatches in ticks in which all stages are busy;
`closed` is the closed form of `passes.pipelining.closed_forms` with the simulated times of a
stage's work, `plain` that with equal times and no epilogue. Afterwards the balance of 256k words,
split over the stages: what a tick takes over the mean of the stages' work.
"""

import dataclasses
import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from jax.sharding import NamedSharding, PartitionSpec

import models
from autoshard.adapters import adapt
from autoshard.compiling import compile_program
from autoshard.losses import default_loss
from autoshard.mesh_shape import SplitMesh
from autoshard.precision import Precision
from autoshard.target import resolve
from autoshard.trace import trace_model
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate
from passes.hlo.timeline import Span, Timeline
from passes.ir import Var
from passes.pass_pipeline import run_passes
from passes.pipeline import Pipeline
from passes.pipelining.closed_forms import ScheduleName, TickCosts, bubble
from passes.precision import MixedPrecision
from passes.program import Placement, Program, Role
from passes.spec import Spec

TOPOLOGY = "v5p:2x2x2"
MESH = "stage=4,data=2"
MICROBATCHES = 16
VOCABULARY = 2048
LARGE_VOCABULARY = 256 * 1024
SCHEDULES: tuple[ScheduleName, ...] = ("gpipe", "1f1b", "interleaved", "zero_bubble")
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
      temporaries_bytes: of a device.
      timeline: simulated.
      text: scheduled HLO.
    """

    temporaries_bytes: int
    timeline: Timeline
    text: str


def program_of(vocabulary: int, rows: int = 4, length: int = 1024, **overrides: Any) -> Program:
    """A Llama's loss, its layers a loop; `rows` rows a microbatch."""
    sizes = {"num_layers": 24, "d_model": 1024, "num_heads": 8, "num_kv_heads": 8, "d_ff": 2816}
    spec = models.get(
        "llama3_tiny",
        **{**sizes, **overrides},
        vocab_size=vocabulary,
        max_seq_len=length,
        scan_layers=True,
        remat="full",
    )
    batch = spec.example_batch(rows * MICROBATCHES, length)
    traced = trace_model(adapt(spec.build()), default_loss, batch, True, Precision())
    return MixedPrecision().apply(traced.program)


def compiled(program: Program, one: Pipeline, mesh_text: str = MESH) -> Compiled:
    """Loss and gradients of a program in stages, compiled and simulated."""
    target = resolve(f"{TOPOLOGY} {mesh_text}")
    shape = target.shapes[0]
    split = SplitMesh(shape, tuple((n,) for n in shape.names), tuple((s,) for s in shape.sizes))
    mesh, machine = target.mesh(split), target.machine(split)
    placed = dataclasses.replace(program, placement=Placement(mesh, machine, row_specs))
    result, _ = run_passes(placed, [one])
    wrt = result.with_role(Role.PARAMETER)
    shardings = [NamedSharding(mesh, spec_of(result, i, one)) for i in range(len(result.inputs))]

    def step(*inputs: Any) -> tuple[Any, Any]:
        assert result.gradient is not None
        outputs, gradients = result.gradient(inputs, wrt, [None] * len(inputs))
        return outputs[0], gradients

    arguments = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)
        for aval, sharding in zip(result.jaxpr.in_avals, shardings, strict=True)
    ]
    whole = NamedSharding(mesh, PartitionSpec())
    results = (whole, [shardings[i] for i in wrt])
    lowered = jax.jit(step, out_shardings=results).lower(*arguments)
    made = compile_program(
        lowered, topology=TOPOLOGY, devices=tuple(mesh.devices.flat), cache=False
    )
    assert made.memory is not None, made.out_of_memory
    return Compiled(
        made.memory.temporaries_bytes, simulate(parse(made.hlo_text), machine), made.hlo_text
    )


def spec_of(program: Program, place: int, one: Pipeline) -> PartitionSpec:
    """Layers and vocabulary over the stages, rows over `data`."""
    leaf = program.inputs[place]
    if leaf.role is Role.BATCH:
        return PartitionSpec("data")
    if leaf.path.startswith("layers/"):
        return PartitionSpec(one.axis)
    if one.split_vocabulary and leaf.path == "embed/embedding":
        return PartitionSpec(one.axis)
    if one.split_vocabulary and leaf.path == "lm_head/kernel":
        return PartitionSpec(None, one.axis)
    return PartitionSpec()


def row_specs(program: Program) -> dict[Var, Spec]:
    """Rows of the batch over `data`."""
    inputs = zip(program.jaxpr.jaxpr.invars, program.inputs, strict=True)
    return {
        var: (("data",), *((),) * (len(leaf.shape) - 1))
        for var, leaf in inputs
        if leaf.role is Role.BATCH
    }


@dataclasses.dataclass(frozen=True)
class Waits:
    """How long stages wait.

    Attributes:
      costs: seconds of a stage's work on a microbatch, of the simulated loops.
      simulated: 1 - ideal / all ticks; the ideal has only ticks in which every stage is busy.
      closed: the closed form with `costs`.
      plain: the closed form of equal costs, without an epilogue.
    """

    costs: TickCosts
    simulated: float
    closed: float
    plain: float


def loops(timeline: Timeline) -> list[Span]:
    """The outermost loops, in order: the phases of the schedule."""
    found = [span for span in timeline.spans if span.kind == "loop" and span.depth == 0]
    return sorted(found, key=lambda span: span.start_s)


def waits(timeline: Timeline, one: Pipeline, stages: int) -> Waits:
    """How long stages wait in a simulated step, gradients' sums over data left out."""
    phases = loops(timeline)
    seconds = [span.end_s - span.start_s for span in phases]
    idle, chunks, m = stages - 1, one.chunks, one.microbatches
    if one.schedule == "interleaved":
        rest = stages * (chunks - 1)
        warm, groups, pause = seconds[1] / rest, seconds[2] / (m // stages - 1), seconds[4] / rest
        always = groups / stages - chunks * (warm + pause)
        costs = TickCosts(chunks * warm, chunks * pause, 0.0, always)
        ideal = groups * (m // stages)
    elif one.schedule == "gpipe":
        busy = (seconds[1] + seconds[2]) / m
        forward, back = seconds[0] / idle, seconds[3] / idle
        costs = TickCosts(forward, back, 0.0, busy - forward - back)
        ideal = busy * m
    elif one.schedule == "zero_bubble":
        forward, both, back = seconds[0] / idle, seconds[1] / idle, seconds[3] / idle
        busy = seconds[2] / (m - stages + 1)
        always = busy - forward - back
        inputs = both - forward - always
        costs = TickCosts(forward, inputs, back - inputs, always)
        ideal = busy * m
    else:
        forward, back, ideal = seconds[0] / idle, seconds[2] / idle, seconds[1]
        costs = TickCosts(forward, back, 0.0, ideal / m - forward - back)
    total = phases[-1].end_s - phases[0].start_s
    plain = bubble(one.schedule, stages, m, chunks)
    return Waits(costs, 1 - ideal / total, bubble(one.schedule, stages, m, chunks, costs), plain)


def imbalance(split: Waits, whole: Waits, stages: int) -> float:
    """By how much a tick exceeds a stage's mean work, the vocabulary being split.

    The mean is the layers' time and an S-th of what the vocabulary takes unsplit.
    """
    layers = split.costs.forward + split.costs.inputs + split.costs.weights
    return (layers + split.costs.always) / (layers + whole.costs.always / stages) - 1


def row(name: ScheduleName, made: Compiled, stages: int) -> str:
    """A line of the table."""
    found = waits(made.timeline, Pipeline(schedule=name, microbatches=MICROBATCHES), stages)
    return (
        f"{name:12} {made.temporaries_bytes / MIB:8.0f} {made.timeline.step_s * 1e3:8.2f} "
        f"{found.simulated:9.2%} {found.closed:9.2%} {found.plain:9.2%}"
    )


def main() -> None:
    """Print the table, then the balance of a vocabulary of 256k words."""
    stages = 4
    print(f"{'schedule':12} {'temp MiB':>8} {'step ms':>8} {'waits':>9} {'closed':>9} {'plain':>9}")
    program = program_of(VOCABULARY)
    for name in SCHEDULES:
        one = Pipeline(schedule=name, microbatches=MICROBATCHES)
        print(row(name, compiled(program, one), stages), flush=True)
    large = program_of(LARGE_VOCABULARY)
    found = []
    for split in (True, False):
        one = Pipeline(microbatches=MICROBATCHES, split_vocabulary=split)
        found.append(waits(compiled(large, one).timeline, one, stages))
        vocabulary = found[-1].costs.always
        print(f"split_vocabulary={split}: a tick's vocabulary takes {vocabulary * 1e3:.2f} ms")
    print(f"imbalance of stages, split: {imbalance(found[0], found[1], stages):.2%}")


if __name__ == "__main__":
    main()
