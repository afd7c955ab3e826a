"""A `CompileReport` for people: one HTML file, two side by side, and a text for the terminal.

figures       the headline's numbers, each with its basis      formats, memory_kinds
sections      headline, no_fit, memory, memory_mapping, communication, roofline, schedule, sharding,
              predictions, provenance: a report's part -> text, tables and charts
document      sections -> one HTML file without network        markup, charts, page.css, page.js
"""

import os
import pathlib

from autoshard.compile_report import CompileReport
from autoshard.html_report.comparison import comparison_page
from autoshard.html_report.document import check_plotly, write_file
from autoshard.html_report.single import page
from autoshard.html_report.text_summary import summary

__all__ = ["check_plotly", "compare", "save", "summary"]


def save(report: CompileReport, path: str | os.PathLike[str]) -> None:
    """Write a report as one HTML file that needs nothing else, replacing the file at once.

    Links to `trace.json` if that lies in the same directory.

    Raises:
      ReportError: plotly is not installed, or the file cannot be written.
    """
    write_file(page(report, pathlib.Path(path).parent), path)


def compare(
    first: CompileReport,
    second: CompileReport,
    path: str | os.PathLike[str],
    names: tuple[str, str] = ("A", "B"),
) -> None:
    """Write two reports side by side, with the ratio of every figure that both have.

    Args:
      first, second: the reports.
      path: the HTML file.
      names: what the page calls them.

    Raises:
      ReportError: plotly is not installed, or the file cannot be written.
    """
    write_file(comparison_page(first, second, names), path)
