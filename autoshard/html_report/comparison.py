"""Two reports side by side: figures with their ratio, and what is sharded otherwise."""

from collections.abc import Sequence
from typing import Any

from autoshard.compile_report import CompileReport
from autoshard.explain import ArrayRow, array_rows
from autoshard.html_report import charts, communication, memory
from autoshard.html_report.charts import Chart
from autoshard.html_report.document import document
from autoshard.html_report.figures import Figure, headline
from autoshard.html_report.formats import (
    NOTHING,
    format_by_unit,
    format_ratio,
    format_seconds,
)
from autoshard.html_report.headline import title_of, verdict, verdict_line
from autoshard.html_report.markup import Node, code, element, paragraph, table, tag
from autoshard.html_report.memory_kinds import memory_kinds
from autoshard.html_report.section import Section, chart_frame, remark
from passes.hlo.timeline import Timeline

Names = tuple[str, str]
Reports = tuple[CompileReport, CompileReport]


def comparison_page(first: CompileReport, second: CompileReport, names: Names) -> str:
    """The page as text."""
    reports = (first, second)
    parts = [
        _headline(reports, names),
        _time(reports, names),
        _memory(reports, names),
        _collectives(reports, names),
        _operations(reports, names),
        _sharding(reports, names),
        _provenance(reports, names),
    ]
    lead = f"{names[0]}: {describe(first)}. {names[1]}: {describe(second)}."
    title = f"{title_of(first)} beside {title_of(second)}"
    return document(title, lead, [part for part in parts if part is not None])


def describe(report: CompileReport) -> str:
    """Model, machine, mesh and rules in a phrase."""
    plan = report.plan
    return f"{title_of(report)}, mesh {plan.mesh.shape}, rules {'+'.join(plan.rules)}"


def _columns(what: str, names: Names) -> tuple[str, ...]:
    return (what, *names, f"{names[1]} / {names[0]}")


def _headline(reports: Reports, names: Names) -> Section:
    sides = [{figure.name: figure for figure in headline(report)} for report in reports]
    rows: list[tuple[Node, ...]] = []
    for name in dict.fromkeys(name for side in sides for name in side):
        first, second = (side.get(name) for side in sides)
        known = first or second
        assert known is not None
        rows.append(
            (
                element("span", name, " ", tag(known.basis.value)),
                first.text if first else NOTHING,
                second.text if second else NOTHING,
                _ratio(first, second),
            )
        )
    verdicts = (
        verdict_line(f"{name}: {verdict(report)}", report)
        for name, report in zip(names, reports, strict=True)
    )
    return Section(
        "headline",
        "At a glance",
        (
            *verdicts,
            table("Headline figures side by side", _columns("figure", names), rows, (1, 2, 3)),
        ),
    )


def _ratio(first: Figure | None, second: Figure | None) -> Node:
    """The ratio, green where the second is better."""
    if first is None or second is None or first.unit != second.unit:
        return NOTHING
    text = format_ratio(second.value, first.value)
    if first.value == second.value or text == NOTHING:
        return text
    better = (second.value < first.value) == first.lower_is_better
    return element("span", text, class_="good" if better else "bad")


def _labelled(reports: Reports, names: Names) -> list[tuple[str, Timeline]]:
    return [
        (name, report.timeline)
        for name, report in zip(names, reports, strict=True)
        if report.timeline is not None
    ]


def _time(reports: Reports, names: Names) -> Section | None:
    timelines = _labelled(reports, names)
    if not timelines:
        return None
    scale, unit = charts.scale_of(max(t.step_s for _, t in timelines))
    parts = (
        ("computing", charts.BLUE, lambda t: t.compute_s),
        ("exposed communication", charts.VERMILION, lambda t: t.exposed_communication_s),
        ("exposed copies", charts.GREY, lambda t: t.exposed_copy_s),
        ("other waits", charts.SKY, other_s),
    )
    traces = tuple(
        {
            "type": "bar", "orientation": "h", "name": part, "marker": {"color": color},
            "y": [charts.label(name) for name, _ in timelines],
            "x": [seconds(t) / scale for _, t in timelines],
            "hovertext": [charts.hover(name, f"{part}: {format_seconds(seconds(t))}")
                          for name, t in timelines],
            "hoverinfo": "text",
        }
        for part, color, seconds in parts
    )  # fmt: skip
    layout: dict[str, Any] = {
        "barmode": "stack",
        "xaxis": charts.axis(f"time in the step, {unit}", rangemode="tozero"),
        "yaxis": charts.axis("", autorange="reversed"),
        "legend": charts.legend_below(250),
        "margin": {"t": 10},
    }
    words = "; ".join(f"{name}: {format_seconds(t.step_s)}" for name, t in timelines)
    chart = Chart("step-time", "Where the step's time goes", f"{words}. Simulated.", traces, layout,
                  250)  # fmt: skip
    return Section("time", "Time", (chart_frame(chart),), (chart,))


def other_s(timeline: Timeline) -> float:
    """Seconds of the step in which the device neither computes nor waits for a known reason."""
    known = timeline.compute_s + timeline.exposed_communication_s + timeline.exposed_copy_s
    return max(0.0, timeline.step_s - known)


def _memory(reports: Reports, names: Names) -> Section:
    labelled = list(zip(names, reports, strict=True))
    bars = memory.kinds_chart("memory-kinds", labelled)
    drawn = [bars]
    body: list[Node] = [chart_frame(bars), _kinds_table(reports, names)]
    if any(t.memory.times_s for _, t in _labelled(reports, names)):
        curve = memory.curve_chart("memory-curve", labelled)
        drawn.append(curve)
        body.append(chart_frame(curve))
    return Section("memory", "Memory", tuple(body), tuple(drawn))


def _kinds_table(reports: Reports, names: Names) -> Node:
    sides = [{kind.kind: kind for kind in memory_kinds(report)} for report in reports]
    rows = []
    for basis in ("estimated", "compiled"):
        for kind in dict.fromkeys(name for side in sides for name in side):
            sizes = [
                getattr(side[kind], f"{basis}_bytes") if kind in side else None for side in sides
            ]
            if any(sizes):
                texts = (format_by_unit(size, "bytes") for size in sizes)
                rows.append((f"{kind}, {basis}", *texts, format_ratio(sizes[1], sizes[0])))
    return table("Bytes on one device, by kind", _columns("kind", names), rows, (1, 2, 3))


def _collectives(reports: Reports, names: Names) -> Section | None:
    timelines = _labelled(reports, names)
    if not any(t.collectives for _, t in timelines):
        return None
    chart = communication.kinds_chart("collectives", timelines)
    sides = [
        {row.kind: row for row in communication.by_kind(report.timeline)} if report.timeline else {}
        for report in reports
    ]
    rows = []
    for kind in sorted({name for side in sides for name in side}):
        for field, unit in (
            ("count", "count"),
            ("payload_bytes", "bytes"),
            ("seconds", "seconds"),
            ("exposed_s", "seconds"),
        ):
            values = [getattr(side[kind], field) if kind in side else 0 for side in sides]
            name = {"payload_bytes": "payload", "seconds": "time", "exposed_s": "exposed"}
            rows.append(
                (
                    f"{kind}: {name.get(field, field)}",
                    *(format_by_unit(value, unit) for value in values),
                    format_ratio(values[1], values[0]),
                )
            )
    return Section(
        "collectives",
        "Collectives",
        (
            chart_frame(chart),
            table("Collectives by kind", _columns("figure", names), rows, (1, 2, 3), "tall"),
        ),
        (chart,),
    )


def _operations(reports: Reports, names: Names) -> Section | None:
    """Busy time by kind of operation."""
    sides: list[dict[str, float]] = []
    for report in reports:
        side: dict[str, float] = {}
        for op in report.timeline.operations if report.timeline else ():
            side[op.kind] = side.get(op.kind, 0.0) + op.seconds
        sides.append(side)
    kinds = sorted({k for s in sides for k in s}, key=lambda k: -max(s.get(k, 0) for s in sides))
    if not kinds:
        return None
    rows = [
        (
            kind,
            *(format_seconds(side.get(kind, 0.0)) for side in sides),
            format_ratio(sides[1].get(kind, 0.0), sides[0].get(kind, 0.0)),
        )
        for kind in kinds
    ]
    return Section(
        "operations",
        "Operations by kind",
        (
            table("Busy time a step by kind", _columns("kind", names), rows, (1, 2, 3)),
            remark("Simulated, all repeats; kinds overlap in time."),
        ),
    )


def _sharding(reports: Reports, names: Names) -> Section:
    """Arrays that the two lay out in different ways."""
    sides = [
        {(row.role, row.path, row.shape): row for row in array_rows(report.plan)}
        for report in reports
    ]
    keys = dict.fromkeys(key for side in sides for key in side)
    rows: list[tuple[Node, ...]] = []
    for key in keys:
        first, second = (_layout(side.get(key)) for side in sides)
        if first != second:
            shape = "×".join(map(str, key[2])) or "scalar"
            rows.append((code(key[1] or "batch"), shape, first, second))
    same = len(keys) - len(rows)
    body: list[Node] = [paragraph(f"{same} of {len(keys)} rows are the same, {len(rows)} differ.")]
    if rows:
        columns = ("array", "shape", *names)
        body.append(table("Arrays laid out differently", columns, rows, class_="tall"))
        body.append(remark("Used as; then, where it differs, stored as."))
    return Section("sharding", "Sharding", tuple(body))


def _layout(row: ArrayRow | None) -> str:
    if row is None:
        return "not there"
    return row.used if row.stored == "=" else f"{row.used}, stored {row.stored}"


def _provenance(reports: Reports, names: Names) -> Section:
    sides: Sequence[Node] = [
        element(
            "div",
            element("h3", f"{name}: {title_of(report)}"),
            element("pre", report.command) if report.command else paragraph("No command is known."),
            table(f"Versions of {name}", ("package", "version"), report.versions),
        )
        for name, report in zip(names, reports, strict=True)
    ]
    pair = element("div", *sides, class_="pair")
    return Section("provenance", "Commands and versions", (pair,))
