"""Predicted beside compiled: by how much the plan's own figures were off."""

from autoshard.compile_report import CompileReport
from autoshard.html_report.formats import format_by_unit, format_ratio
from autoshard.html_report.markup import table
from autoshard.html_report.section import Section, remark


def predictions_section(report: CompileReport) -> Section | None:
    """One row for each figure that the plan predicts."""
    if not report.comparisons:
        return None
    rows = [
        (
            comparison.name,
            format_by_unit(comparison.predicted, comparison.unit),
            format_by_unit(comparison.compiled, comparison.unit),
            format_ratio(comparison.compiled, comparison.predicted),
        )
        for comparison in report.comparisons
    ]
    return Section(
        "predictions",
        "Predicted beside compiled",
        (
            table(
                "Figures of the plan beside those of the compiled program",
                ("figure", "predicted", "compiled", "compiled / predicted"),
                rows,
                numbers=(1, 2, 3),
            ),
            remark(
                "Predicted: estimated from the plan before compiling. Compiled: the compiler's, or "
                "simulated from its schedule where it is a time."
            ),
        ),
    )
