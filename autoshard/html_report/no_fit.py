"""When memory runs out: what takes it, and what to change."""

import math

from autoshard.compile_report import CompileReport
from autoshard.compiled_program import OutOfMemory
from autoshard.explain import format_bytes
from autoshard.html_report.markup import element, paragraph, table, tag
from autoshard.html_report.section import Section, folded

# More than this share of what is needed is worth acting on.
_WORTHWHILE = 0.1
_SHOWN_ALTERNATIVES = 3


def no_fit_section(report: CompileReport) -> Section | None:
    """The verdict in detail; None where the program fits."""
    verdict = report.out_of_memory
    if verdict is None:
        return None
    rows = [
        (format_bytes(b.size_bytes), b.shape, b.source or "not known", b.op_name or "not known")
        for b in verdict.buffers
    ]
    return Section(
        "no-fit",
        "Why it does not fit, and what to change",
        (
            paragraph(
                f"Needed on a device: {format_bytes(verdict.needed_bytes)}. Available: "
                f"{format_bytes(verdict.available_bytes)}. ",
                tag("compiled"),
            ),
            element("h3", "What to change"),
            element("ol", *(element("li", remedy) for remedy in remedies(report))),
            element("h3", "Largest buffers when memory runs out"),
            table(
                "Largest buffers, by the compiler",
                ("size", "shape", "source line", "operation"),
                rows,
                numbers=(0,),
            ),
            folded("The compiler's own words", element("pre", verdict.message)),
        ),
    )


def remedies(report: CompileReport) -> tuple[str, ...]:
    """What would take less memory, most promising first, with the plan's estimate of each."""
    verdict = report.out_of_memory
    if verdict is None:
        return ()
    found = (
        _divided_state(report, verdict),
        _smaller_step(report, verdict),
        _largest_buffer(verdict),
    )
    ranked = sorted((pair for pair in found if pair is not None), key=lambda pair: -pair[0])
    texts = [text for _, text in ranked] + list(_smaller_alternatives(report))
    texts.append(
        f"Take more devices than {report.topology.device_count}, or devices with more memory."
    )
    return tuple(texts)


def _divided_state(report: CompileReport, verdict: OutOfMemory) -> tuple[float, str] | None:
    """The least ZeRO stage that would do, or the highest."""
    plan = report.plan
    memory, devices = plan.cost.memory, plan.mesh.refined.shards(plan.data_parts)
    parts = (
        (1, "optimizer state", memory.optimizer_bytes),
        (2, "gradients", memory.gradients_bytes),
        (3, "parameters", memory.parameters_bytes),
    )
    names, saved, last = [], 0.0, 0
    for stage, what, size in parts:
        if plan.zero_stage < stage and saved < verdict.needed_bytes - verdict.available_bytes:
            names.append(what)
            saved += size * (1 - 1 / devices)
            last = stage
    if saved < _WORTHWHILE * verdict.needed_bytes:
        return None
    return saved, (
        f"Add zero{last} to the rules: {', '.join(names)} would be divided over the {devices} "
        f"devices that share the batch, which saves about {format_bytes(saved)} a device "
        "(estimated)."
    )


def _smaller_step(report: CompileReport, verdict: OutOfMemory) -> tuple[float, str] | None:
    """What is alive only during the step."""
    memory = report.plan.cost.memory
    rest = verdict.needed_bytes - memory.parameters_bytes - memory.optimizer_bytes
    if rest < _WORTHWHILE * verdict.needed_bytes:
        return None
    over = verdict.needed_bytes - verdict.available_bytes
    text = (
        f"Make the step's temporaries smaller: activations, gradients and workspace take about "
        f"{format_bytes(rest)} a device. Activations shrink with the batch and the sequence"
    )
    if rest > over:
        text += f" (about {math.ceil(rest / (rest - over))} times smaller would do)"
    text += (
        ", with a larger axis for tensor parallelism, and where layers are recomputed in the "
        "backward pass (nn.remat, jax.checkpoint)."
    )
    return rest, text


def _largest_buffer(verdict: OutOfMemory) -> tuple[float, str] | None:
    """The line of the model that makes the largest buffer, where it is a large part."""
    made = [buffer for buffer in verdict.buffers if ":" in buffer.source]
    if not made or made[0].size_bytes < _WORTHWHILE * verdict.needed_bytes:
        return None
    buffer = made[0]
    return float(buffer.size_bytes), (
        f"Look at {buffer.source}: it makes {buffer.shape}, {format_bytes(buffer.size_bytes)} on "
        "each device. Compute it in pieces, shard a dimension of it, or keep it out of HBM with a "
        "fused kernel."
    )


def _smaller_alternatives(report: CompileReport) -> tuple[str, ...]:
    """Layouts that the planner considered and estimated to need less."""
    plan = report.plan
    current = plan.cost.memory.total_bytes
    smaller = [
        other
        for other in plan.alternatives
        if other.memory_bytes is not None and other.memory_bytes < (1 - _WORTHWHILE) * current
    ]
    smaller.sort(key=lambda other: other.memory_bytes or 0)
    return tuple(
        f"Use rules {'+'.join(other.rules)} on mesh {other.mesh}: estimated at "
        f"{format_bytes(other.memory_bytes or 0)} a device, where this plan was estimated at "
        f"{format_bytes(current)}."
        for other in smaller[:_SHOWN_ALTERNATIVES]
    )
