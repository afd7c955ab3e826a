"""The passes that rewrote the program, in order, and what each did."""

from autoshard.compile_report import CompileReport
from autoshard.html_report.markup import bullets, code, element, table
from autoshard.html_report.section import Section


def passes_section(report: CompileReport) -> Section | None:
    """One row a pass; nothing where none was asked for."""
    passes = report.plan.passes
    if not passes:
        return None
    rows = [(code(str(one)), element("div", bullets(one.notes))) for one in passes]
    return Section(
        "passes",
        "Passes",
        (table("Passes, in the order in which they were applied", ("pass", "what it did"), rows),),
    )
