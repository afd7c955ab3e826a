"""From a plan and what the compiler made of it to a `CompileReport`."""

import collections
import dataclasses
from collections.abc import Mapping

from autoshard.compile_report import CollectiveRow, Comparison, CompileReport
from autoshard.compiled_program import CompiledProgram
from autoshard.errors import CompileError
from autoshard.plan import Plan
from autoshard.topology import Topology
from passes.hlo.errors import HloError
from passes.hlo.machine import MachineModel
from passes.hlo.module import HloModule
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate
from passes.hlo.shapes import arrays
from passes.hlo.timeline import Timeline

_HLO_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}


@dataclasses.dataclass(frozen=True)
class ReportInputs:
    """What a report is made of, besides the compiler's result.

    Attributes:
      plan: the plan.
      topology: the machine.
      machine: its model, devices in the order of the program's mesh.
      model_flops: of one step over all devices.
      compute_dtype: dtype of the matrix products, as in `Precision`; empty for the program's own.
      command: how to make the report again; empty if unknown.
    """

    plan: Plan
    topology: Topology
    machine: MachineModel
    model_flops: float
    compute_dtype: str
    command: str = ""


def make_report(inputs: ReportInputs, program: CompiledProgram) -> CompileReport:
    """Read, simulate and compare.

    Raises:
      CompileError: the compiler's program cannot be read.
    """
    timeline: Timeline | None = None
    comparisons: tuple[Comparison, ...] = ()
    rows: tuple[CollectiveRow, ...] = ()
    if program.memory is not None:
        try:
            module = parse(program.hlo_text)
            timeline = simulate(module, inputs.machine)
        except HloError as error:
            raise CompileError(
                f"the program compiled for {program.topology} cannot be read: {error}"
            ) from error
        comparisons = _comparisons(inputs, program, module, timeline)
        rows = _collective_rows(inputs.plan, timeline)
    else:
        comparisons = (_predicted_total(inputs.plan, program),)
    dtype = _HLO_DTYPES.get(inputs.compute_dtype, inputs.compute_dtype or "f32")
    return CompileReport(
        plan=inputs.plan,
        topology=inputs.topology,
        memory=program.memory,
        out_of_memory=program.out_of_memory,
        timeline=timeline,
        model_flops=inputs.model_flops,
        peak_flops=inputs.machine.flops_per_s(dtype),
        comparisons=comparisons,
        collectives=rows,
        compile_s=program.compile_s,
        cached=program.cached,
        versions=program.versions,
        command=inputs.command,
    )


def _predicted_total(plan: Plan, program: CompiledProgram) -> Comparison:
    verdict = program.out_of_memory
    needed = None if verdict is None else float(verdict.needed_bytes)
    return Comparison("memory, total", "bytes", float(plan.cost.memory.total_bytes), needed)


def _comparisons(
    inputs: ReportInputs, program: CompiledProgram, module: HloModule, timeline: Timeline
) -> tuple[Comparison, ...]:
    memory, cost = program.memory, inputs.plan.cost
    assert memory is not None
    estimate = cost.memory
    given = _argument_bytes(module)
    state = estimate.parameters_bytes + estimate.optimizer_bytes + estimate.other_bytes
    sent: dict[str, float] = collections.defaultdict(float)
    for collective in timeline.collectives:
        sent[collective.kind] += float(collective.payload_bytes) * collective.repeats
    rows = [
        ("parameters", "bytes", estimate.parameters_bytes, given.get("params")),
        ("optimizer state", "bytes", estimate.optimizer_bytes, given.get("opt_state")),
        ("model state and batch", "bytes", estimate.other_bytes, given.get("other")),
        ("temporaries", "bytes", estimate.total_bytes - state, memory.temporaries_bytes),
        ("memory, total", "bytes", estimate.total_bytes, memory.total_bytes),
        ("memory, at the peak", "bytes", estimate.total_bytes, memory.needed_bytes),
        ("matrix FLOPs a device", "flops", cost.flops, timeline.flops),
        ("collective payload a device", "bytes", None, sum(sent.values())),
        ("step time", "seconds", None, timeline.step_s),
    ]
    return tuple(
        Comparison(name, unit, *(None if v is None else float(v) for v in (predicted, compiled)))
        for name, unit, predicted, compiled in rows
    )


def _argument_bytes(module: HloModule) -> Mapping[str, int]:
    """Bytes of the program's inputs by the part of the training state that they belong to."""
    found: dict[str, int] = collections.defaultdict(int)
    for parameter in module.entry_computation.parameters.values():
        path = parameter.op_name.replace("[", ".").split(".")
        part = path[1] if path[0] == "state" and len(path) > 1 else "other"
        kind = part if part in ("params", "opt_state") else "other"
        found[kind] += sum(a.padded_bytes for a in arrays(parameter.shape) if a.space == 0)
    return found


def _collective_rows(plan: Plan, timeline: Timeline) -> tuple[CollectiveRow, ...]:
    del plan
    rows: dict[tuple[str, str], list[int]] = {}
    for c in timeline.collectives:
        row = rows.setdefault((c.kind, c.source or c.op_name), [0, 0])
        row[0] += c.repeats
        row[1] += c.payload_bytes * c.repeats
    return tuple(
        CollectiveRow(kind, source, 0, count, 0, size)
        for (kind, source), (count, size) in sorted(rows.items(), key=lambda item: -item[1][1])
    )
