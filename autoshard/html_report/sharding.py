"""What was sharded, how, by which rule and why."""

import math

from autoshard.compile_report import CompileReport
from autoshard.explain import ArrayRow, array_rows, format_bytes
from autoshard.html_report.formats import format_count
from autoshard.html_report.markup import Node, code, element, paragraph, table
from autoshard.html_report.section import Section, remark
from passes.program import Role

COLUMNS = ("array", "n", "shape", "dimensions", "used as", "stored as", "per device", "rule", "why")


def sharding_section(report: CompileReport) -> Section:
    """One row for the arrays that differ in their layer alone."""
    rows = array_rows(report.plan)
    parameters = [row for row in rows if row.role is Role.PARAMETER]
    count = sum(row.count * math.prod(row.shape) for row in parameters)
    stored = sum(row.size_bytes for row in parameters)
    return Section(
        "sharding",
        "What is sharded how, and why",
        (
            paragraph(
                f"{format_count(count)} parameters in {sum(r.count for r in parameters)} arrays; a "
                f"device stores {format_bytes(stored)} of them."
            ),
            table(
                "Arrays, grouped by layer",
                COLUMNS,
                map(cells, rows),
                numbers=(1, 6),
                class_="tall compact",
            ),
            remark(
                "n: arrays that differ in their layer's number (*) alone, their bytes summed up. A "
                "layout has one entry a dimension, - where it is whole. Stored as =: as it is used."
            ),
        ),
    )


def cells(row: ArrayRow) -> tuple[Node, ...]:
    """A row's cells, in the order of `COLUMNS`."""
    role = "" if row.role is Role.PARAMETER else f" [{row.role.value}]"
    return (
        element("span", code(row.path or "batch"), role),
        str(row.count),
        "×".join(map(str, row.shape)) or "scalar",
        " × ".join(row.dims),
        row.used,
        row.stored,
        format_bytes(row.size_bytes),
        row.rule,
        row.why,
    )
