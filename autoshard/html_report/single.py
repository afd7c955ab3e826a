"""The page of one report."""

import pathlib

from autoshard.compile_report import CompileReport
from autoshard.html_report.candidates import candidates_section
from autoshard.html_report.communication import communication_section
from autoshard.html_report.document import document
from autoshard.html_report.headline import headline_section, title_of
from autoshard.html_report.memory import memory_section
from autoshard.html_report.memory_mapping import memory_mapping_section
from autoshard.html_report.no_fit import no_fit_section
from autoshard.html_report.passes_section import passes_section
from autoshard.html_report.predictions import predictions_section
from autoshard.html_report.provenance import gaps_section, provenance_section
from autoshard.html_report.roofline import roofline_section
from autoshard.html_report.schedule import schedule_section
from autoshard.html_report.section import Section
from autoshard.html_report.sharding import sharding_section

TRACE_FILE = "trace.json"


def page(report: CompileReport, folder: pathlib.Path) -> str:
    """The page as text; it links to the trace if `folder` has it."""
    trace_file = TRACE_FILE if (folder / TRACE_FILE).is_file() else None
    parts: list[Section | None] = [
        headline_section(report),
        no_fit_section(report),
        memory_section(report),
        memory_mapping_section(report.plan, report.memory_pictures),
        communication_section(report),
        roofline_section(report),
        passes_section(report),
        schedule_section(report, trace_file),
        sharding_section(report),
        predictions_section(report),
        candidates_section(report),
        gaps_section(report),
        provenance_section(report),
    ]
    lead = (
        f"How {report.plan.program.name} runs on {report.topology} with rules "
        f"{'+'.join(report.plan.rules)} and mesh {report.plan.mesh.shape}."
    )
    return document(title_of(report), lead, [part for part in parts if part is not None])
