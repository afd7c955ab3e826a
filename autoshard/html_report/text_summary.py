"""A report as text for the terminal."""

import io
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from autoshard.compile_report import CompileReport
from autoshard.explain import format_bytes, mapping_table
from autoshard.html_report.communication import by_kind
from autoshard.html_report.figures import headline
from autoshard.html_report.formats import (
    NOTHING,
    format_by_unit,
    format_count,
    format_ratio,
    format_seconds,
    format_share,
)
from autoshard.html_report.headline import title_of, verdict
from autoshard.html_report.memory_kinds import memory_kinds
from autoshard.html_report.no_fit import remedies

_OPERATIONS = 8
_BUFFERS = 6


def summary(report: CompileReport, width: int = 140) -> str:
    """The report's main figures as text, `width` columns wide, without colours."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, highlight=False, markup=False)
    plan = report.plan
    console.print(
        f"{title_of(report)}, mesh {plan.mesh.shape}, rules {'+'.join(plan.rules)}", soft_wrap=True
    )
    console.print(verdict(report))
    console.print()
    for table in (_headline(report), _memory(report), _collectives(report), _operations(report)):
        if table is not None:
            console.print(table)
            console.print()
    if report.out_of_memory is not None:
        console.print(_buffers(report))
        console.print("\nWhat to change:")
        for number, remedy in enumerate(remedies(report), 1):
            console.print(f"  {number}. {remedy}")
    if report.comparisons:
        console.print(_comparisons(report))
    if plan.memory_mapping is not None:
        console.print(f"\n{mapping_table(plan.memory_mapping)}", soft_wrap=True)
    for one in plan.passes:
        console.print(f"pass {one}: {'; '.join(one.notes)}", soft_wrap=True)
    for note in plan.notes:
        console.print(f"note: {note}")
    gaps = [*plan.unmodelled, *(report.timeline.unmodelled if report.timeline else ())]
    if gaps:
        listed = ", ".join(f"{name} ({count})" for name, count in gaps)
        console.print(f"not modelled: {listed}")
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _table(*columns: str, right: Iterable[int] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    numbers = frozenset(right)
    for index, column in enumerate(columns):
        justify = "right" if index in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _headline(report: CompileReport) -> Table:
    table = _table("figure", "value", "", "basis", right=(1,))
    for figure in headline(report):
        table.add_row(figure.name, figure.text, figure.remark, figure.basis.value)
    return table


def _memory(report: CompileReport) -> Table:
    table = _table("HBM per device", "estimated", "compiled", right=(1, 2))
    for kind in memory_kinds(report):
        sizes = (format_by_unit(s, "bytes") for s in (kind.estimated_bytes, kind.compiled_bytes))
        table.add_row(kind.kind, *sizes)
    return table


def _collectives(report: CompileReport) -> Table | None:
    timeline = report.timeline
    if timeline is None or not timeline.collectives:
        return None
    table = _table(
        "collectives a step", "count", "payload", "time (simulated)", "exposed", right=(1, 2, 3, 4)
    )
    for row in by_kind(timeline):
        table.add_row(
            row.kind,
            format_count(row.count),
            format_bytes(row.payload_bytes),
            format_seconds(row.seconds),
            format_seconds(row.exposed_s),
        )
    return table


def _operations(report: CompileReport) -> Table | None:
    timeline = report.timeline
    if timeline is None or not timeline.operations:
        return None
    table = _table("costliest operations", "kind", "time (simulated)", "of step", "source line",
                   right=(2, 3))  # fmt: skip
    for op in timeline.operations[:_OPERATIONS]:
        share = format_share(op.seconds / timeline.step_s) if timeline.step_s else NOTHING
        table.add_row(op.name, op.kind, format_seconds(op.seconds), share, op.source)
    return table


def _buffers(report: CompileReport) -> Table:
    assert report.out_of_memory is not None
    table = _table("largest buffers", "shape", "source line", "operation")
    for buffer in report.out_of_memory.buffers[:_BUFFERS]:
        table.add_row(format_bytes(buffer.size_bytes), buffer.shape, buffer.source, buffer.op_name)
    return table


def _comparisons(report: CompileReport) -> Table:
    table = _table("predicted beside compiled", "predicted", "compiled", "compiled / predicted",
                   right=(1, 2, 3))  # fmt: skip
    for row in report.comparisons:
        table.add_row(
            row.name,
            format_by_unit(row.predicted, row.unit),
            format_by_unit(row.compiled, row.unit),
            format_ratio(row.compiled, row.predicted),
        )
    return table
