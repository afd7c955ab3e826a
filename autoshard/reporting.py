"""From a plan and what the compiler made of it to a `CompileReport`."""

import collections
import dataclasses
from collections.abc import Mapping

from autoshard.collective_rows import collective_rows
from autoshard.compile_report import CollectiveRow, Comparison, CompileReport
from autoshard.compiled_program import CompiledMemory, CompiledProgram
from autoshard.errors import CompileError
from autoshard.plan import Plan
from autoshard.topology import Topology
from passes.hlo.errors import HloError
from passes.hlo.machine import MachineModel, hlo_dtype
from passes.hlo.module import HloModule
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate
from passes.hlo.shapes import arrays
from passes.hlo.timeline import Timeline


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
        comparisons = _comparisons(inputs, program.memory, module, timeline)
        rows = collective_rows(inputs.plan.cost.collectives, module)
    else:
        comparisons = (_predicted_total(inputs.plan, program),)
    return CompileReport(
        plan=inputs.plan,
        topology=inputs.topology,
        memory=program.memory,
        out_of_memory=program.out_of_memory,
        timeline=timeline,
        model_flops=inputs.model_flops,
        peak_flops=inputs.machine.flops_per_s(_hlo_dtype(inputs)),
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


def _hlo_dtype(inputs: ReportInputs) -> str:
    return hlo_dtype(inputs.compute_dtype or "float32")


def _comparisons(
    inputs: ReportInputs, memory: CompiledMemory, module: HloModule, timeline: Timeline
) -> tuple[Comparison, ...]:
    cost, given = inputs.plan.cost, _argument_bytes(module)
    estimate = cost.memory
    step = cost.time
    state = estimate.parameters_bytes + estimate.optimizer_bytes + estimate.other_bytes
    payload = sum(c.payload_bytes * c.repeats for c in timeline.collectives)
    predicted_payload = sum(c.payload_bytes * c.count for c in cost.collectives)
    products_s = sum(o.seconds for o in timeline.operations if o.kind == "matmul")
    collectives_s = sum(c.seconds for c in timeline.collectives)
    rows = [
        ("parameters", "bytes", estimate.parameters_bytes, given.get("params")),
        ("optimizer state", "bytes", estimate.optimizer_bytes, given.get("opt_state")),
        ("model state and batch", "bytes", estimate.other_bytes, given.get("other")),
        ("temporaries", "bytes", estimate.total_bytes - state, memory.temporaries_bytes),
        ("memory, total", "bytes", estimate.total_bytes, memory.total_bytes),
        ("memory, at the peak", "bytes", estimate.total_bytes, memory.needed_bytes),
        ("matrix FLOPs a device", "flops", cost.flops, timeline.flops),
        ("collective payload a device", "bytes", predicted_payload, payload),
        ("time in products", "seconds", step.products_s, products_s),
        ("time in collectives", "seconds", step.communication_s, collectives_s),
        (
            "time that collectives are waited for",
            "seconds",
            step.exposed_s,
            timeline.exposed_communication_s,
        ),
        ("step time", "seconds", step.total_s, timeline.step_s),
    ]
    return tuple(
        Comparison(name, unit, *(None if v is None else float(v) for v in (predicted, compiled)))
        for name, unit, predicted, compiled in rows
    )


def _argument_bytes(module: HloModule) -> Mapping[str, int]:
    """Bytes of the program's inputs: parameters, optimizer's state, others."""
    found: dict[str, int] = collections.defaultdict(int)
    for parameter in module.entry_computation.parameters.values():
        path = parameter.op_name.replace("[", ".").split(".")
        part = path[1] if path[0] == "state" and len(path) > 1 else path[0]
        kind = part if part in ("params", "opt_state") else "other"
        found[kind] += sum(a.padded_bytes for a in arrays(parameter.shape) if a.space == 0)
    return found
