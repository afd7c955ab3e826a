"""HBM by kind: what the plan estimated and what the compiler allotted, in the same colours."""

import dataclasses

from autoshard.compile_report import CompileReport
from autoshard.html_report import charts


@dataclasses.dataclass(frozen=True)
class KindBytes:
    """Bytes a device of one kind; None where that side does not tell this kind apart."""

    kind: str
    color: str
    estimated_bytes: int | None
    compiled_bytes: int | None


def memory_kinds(report: CompileReport) -> tuple[KindBytes, ...]:
    """The kinds, those that stay between steps first.

    The compiler knows inputs and temporaries, not parameters and gradients. Its inputs are the
    training state and the batch: where `report.comparisons` has their compiled bytes (padded to
    tiles), those are shown, else the plan's, and what is left of the inputs is a kind of its own.
    Gradients, gathered parameters and activations are its temporaries, of which those count that
    are in HBM at the peak.
    """
    estimate, memory = report.plan.cost.memory, report.memory
    compiled = {row.name: row.compiled for row in report.comparisons if row.unit == "bytes"}
    inputs = (
        ("parameters", charts.BLUE, estimate.parameters_bytes),
        ("optimizer state", charts.PURPLE, estimate.optimizer_bytes),
        ("model state and batch", charts.SKY, estimate.other_bytes),
    )
    step = (
        ("gradients", charts.GREEN, estimate.gradients_bytes),
        ("parameters gathered for use", charts.BROWN, estimate.gathered_bytes),
        ("activations", charts.ORANGE, estimate.activations_bytes),
    )
    if memory is None:
        return tuple(KindBytes(*row, None) for row in (*inputs, *step))
    rows, left = [], memory.arguments_bytes
    for kind, color, size in inputs:
        found = compiled.get(kind)
        share = min(size if found is None else int(found), left)
        rows.append(KindBytes(kind, color, size, share))
        left -= share
    rows.append(KindBytes("other inputs and padding", charts.GREY, None, left))
    rows.extend(KindBytes(*row, None) for row in step)
    new_outputs = memory.outputs_bytes - memory.aliased_bytes
    rows.append(KindBytes("outputs that reuse no input", charts.SLATE, None, new_outputs))
    temporaries = "temporaries (gradients, gathered parameters, activations, workspace)"
    at_peak = max(0, memory.needed_bytes - memory.arguments_bytes - new_outputs)
    rows.append(KindBytes(temporaries, charts.PINK, None, at_peak))
    return tuple(row for row in rows if row.estimated_bytes or row.compiled_bytes)
