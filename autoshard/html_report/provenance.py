"""What the reader needs to trust and repeat the report: gaps, versions, command."""

from autoshard.compile_report import CompileReport
from autoshard.html_report.formats import format_count
from autoshard.html_report.markup import Node, bullets, element, paragraph, table, tag
from autoshard.html_report.section import Section


def gaps_section(report: CompileReport) -> Section:
    """What the planner and the simulator did not know, and the plan's notes."""
    plan, timeline = report.plan, report.timeline
    body: list[Node] = [element("h3", "Notes of the plan")]
    body.append(bullets(plan.notes) if plan.notes else paragraph("None."))
    body.append(element("h3", "Primitives without a sharding rule"))
    if plan.unmodelled:
        body.append(paragraph("Treated as if they needed whole arrays:"))
        body.append(bullets(f"{name}, {format_count(n)} times" for name, n in plan.unmodelled))
    else:
        body.append(paragraph("None."))
    if timeline is not None:
        body.append(element("h3", "Constructs of the compiled program that got no time"))
        if timeline.unmodelled:
            body.append(
                bullets(f"{name}, {format_count(n)} times" for name, n in timeline.unmodelled)
            )
        else:
            body.append(paragraph("None."))
    return Section("gaps", "Notes and what is not modelled", tuple(body))


def provenance_section(report: CompileReport) -> Section:
    """The command that makes the report again, and the versions that made it."""
    body: list[Node] = [element("h3", "Make it again")]
    if report.command:
        body.append(element("pre", report.command, class_="command"))
    else:
        body.append(paragraph("The report was made from code, no command is known."))
    versions = [*report.versions]
    if all(name != "jax" for name, _ in versions):
        versions.append(("jax, when planned", report.plan.jax_version))
    fingerprint = report.plan.program.fingerprint
    body.append(table("Versions", ("package", "version"), versions))
    body.append(
        paragraph("Fingerprint of the program: ", element("code", fingerprint), class_="remark")
    )
    return Section("provenance", "Command and versions", tuple(body))


def legend() -> Node:
    """What the small labels mean."""
    return paragraph(
        tag("compiled"),
        " the target's own compiler says so. ",
        tag("simulated"),
        " from the compiler's schedule on a model of the machine; nothing was measured. ",
        tag("estimated"),
        " the plan's, before compiling. ",
        tag("datasheet"),
        " the maker of the hardware says so.",
        class_="remark",
    )
