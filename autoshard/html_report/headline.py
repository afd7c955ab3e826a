"""The head of the page: what was compiled for what, and the verdict."""

from xml.etree import ElementTree

from autoshard.compile_report import CompileReport
from autoshard.explain import axis_uses, format_bytes
from autoshard.html_report.figures import Figure, fits, hbm_capacity, hbm_needed, headline
from autoshard.html_report.markup import Node, element, paragraph, tag
from autoshard.html_report.section import Section


def title_of(report: CompileReport) -> str:
    """`llama3_8b on v5p:4x4x4`."""
    return f"{report.plan.program.name} on {report.topology}"


def verdict(report: CompileReport) -> str:
    """Whether it fits, in a sentence."""
    needed, capacity = hbm_needed(report), hbm_capacity(report)
    if needed is None:
        return "Nothing is known of its memory: the program was not compiled."
    if not fits(report):
        assert capacity is not None
        return (
            f"Does not fit: a device needs {format_bytes(needed)} of HBM and has "
            f"{format_bytes(capacity)}, {format_bytes(needed - capacity)} too little."
        )
    if not capacity:
        return f"A device needs {format_bytes(needed)}; the capacity of this machine is unknown."
    return (
        f"Fits: a device needs {format_bytes(needed)} of its {format_bytes(capacity)} of HBM, "
        f"{format_bytes(capacity - needed)} are free."
    )


def headline_section(report: CompileReport) -> Section:
    """Model, machine, mesh, verdict and the figures that matter most."""
    plan = report.plan
    facts = [
        ("model", plan.program.name),
        ("task", plan.task),
        ("topology", f"{report.topology} ({report.topology.device_count} devices)"),
        ("mesh", str(plan.mesh.shape)),
        ("rules", "+".join(plan.rules)),
        ("compilation", _compilation(report)),
    ]
    facts += [(f"axis {axis}", use) for axis, use in axis_uses(plan).items()]
    body: list[Node] = [
        verdict_line(verdict(report), report),
        element("div", *(card(figure) for figure in headline(report)), class_="cards"),
        element(
            "dl",
            *(node for name, text in facts for node in (element("dt", name), element("dd", text))),
            class_="facts",
        ),
    ]
    return Section("headline", "At a glance", tuple(body))


def verdict_line(text: str, report: CompileReport) -> ElementTree.Element:
    """The verdict, green or red; neither where the capacity is unknown."""
    if not fits(report):
        return paragraph(text, class_="verdict bad")
    return paragraph(text, class_="verdict good" if hbm_capacity(report) else "verdict")


def card(figure: Figure) -> ElementTree.Element:
    """One figure, large, with its label."""
    return element(
        "div",
        element("div", figure.name, " ", tag(figure.basis.value), class_="card-name"),
        element("div", figure.text, class_="card-value"),
        element("div", figure.remark, class_="card-remark") if figure.remark else None,
        class_="card",
    )


def _compilation(report: CompileReport) -> str:
    taken = f"{report.compile_s:.1f} s"
    return f"{taken} when it ran; this result came from the cache" if report.cached else taken
