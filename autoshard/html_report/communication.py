"""Collectives: by kind and one by one, with their time and the part of it that is exposed."""

import dataclasses
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from autoshard.compile_report import CompileReport
from autoshard.explain import format_bytes
from autoshard.html_report import charts
from autoshard.html_report.charts import Chart
from autoshard.html_report.formats import (
    NOTHING,
    format_count,
    format_ratio,
    format_seconds,
    format_share,
)
from autoshard.html_report.markup import Node, element, paragraph, table, tag
from autoshard.html_report.section import Section, chart_frame, folded, remark
from passes.hlo.timeline import CollectiveCost, Timeline

MAX_ROWS = 60


@dataclasses.dataclass(frozen=True)
class KindOfCollective:
    """All collectives of one kind in a step, on one device.

    Attributes:
      kind: `all-reduce`, ...
      count: executions.
      payload_bytes: of all of them.
      seconds: busy time.
      exposed_s: of it, while the device computes nothing.
    """

    kind: str
    count: int
    payload_bytes: int
    seconds: float
    exposed_s: float


def by_kind(timeline: Timeline) -> tuple[KindOfCollective, ...]:
    """Sums by kind, the longest first."""
    groups: dict[str, list[CollectiveCost]] = {}
    for cost in timeline.collectives:
        groups.setdefault(cost.kind, []).append(cost)
    sums = [
        KindOfCollective(
            kind,
            sum(c.repeats for c in members),
            sum(c.repeats * c.payload_bytes for c in members),
            sum(c.seconds for c in members),
            sum(c.exposed_s for c in members),
        )
        for kind, members in groups.items()
    ]
    return tuple(sorted(sums, key=lambda s: -s.seconds))


def communication_section(report: CompileReport) -> Section | None:
    """Table and chart by kind, the costliest ones, and predicted beside compiled."""
    timeline = report.timeline
    if timeline is None:
        return None
    body: list[Node] = []
    drawn: tuple[Chart, ...] = ()
    if not timeline.collectives:
        body.append(paragraph("The compiled program has no collectives."))
    else:
        chart = kinds_chart("collectives", (("", timeline),))
        drawn = (chart,)
        body += [chart_frame(chart), _kinds_table(timeline), _each(timeline)]
    if report.collectives:
        body.append(_predicted(report))
    return Section("collectives", "Collectives", tuple(body), drawn)


def kinds_chart(name: str, timelines: Sequence[tuple[str, Timeline]]) -> Chart:
    """Hidden and exposed time by kind, for one or more (label, timeline)."""
    rows = [
        (f"{row.kind} {label}".strip(), row)
        for label, timeline in timelines
        for row in by_kind(timeline)
    ]
    rows.sort(key=lambda pair: pair[1].kind)
    scale, unit = charts.scale_of(max((row.seconds for _, row in rows), default=0))
    # A device can wait for longer than the collective is busy: for its stream to be free.
    hidden = [max(0.0, row.seconds - row.exposed_s) for _, row in rows]
    parts = (
        ("hidden behind computation", charts.SKY, hidden),
        ("exposed", charts.VERMILION, [r.exposed_s for _, r in rows]),
    )
    traces = tuple(
        {
            "type": "bar", "orientation": "h", "name": part, "marker": {"color": color},
            "y": [charts.label(name) for name, _ in rows],
            "x": [seconds / scale for seconds in values],
            "hovertext": [
                charts.hover(name, f"{part}: {format_seconds(seconds)}",
                             f"{format_count(row.count)} times, {format_bytes(row.payload_bytes)}")
                for (name, row), seconds in zip(rows, values, strict=True)
            ],
            "hoverinfo": "text",
        }
        for part, color, values in parts
    )  # fmt: skip
    height_px = 150 + 44 * len(rows)
    layout: dict[str, Any] = {
        "barmode": "stack",
        "xaxis": charts.axis(f"time a step, {unit}", rangemode="tozero"),
        "yaxis": charts.axis("", autorange="reversed"),
        "legend": charts.legend_below(height_px),
        "margin": {"t": 10},
    }
    words = "; ".join(
        f"{name} {format_seconds(row.seconds)}, of which {format_seconds(row.exposed_s)} exposed"
        for name, row in rows
    )
    return Chart(name, "Time in collectives", f"{words}. Simulated.", traces, layout, height_px)


def _kinds_table(timeline: Timeline) -> ElementTree.Element:
    rows = [
        (
            row.kind,
            format_count(row.count),
            format_bytes(row.payload_bytes),
            format_seconds(row.seconds),
            format_seconds(row.exposed_s),
            format_share(row.exposed_s / timeline.step_s) if timeline.step_s else NOTHING,
        )
        for row in by_kind(timeline)
    ]
    return element(
        "div",
        table(
            "Collectives by kind, a step and device",
            ("kind", "count", "payload", "time", "exposed", "of the step"),
            rows,
            numbers=range(1, 6),
        ),
        remark(
            "Count and payload: compiled, loops multiplied. Payload: the larger side, a gathered "
            "result or the input of a reduction. Time: simulated; exposed: the device waits for it."
        ),
    )


def _each(timeline: Timeline) -> ElementTree.Element:
    shown = sorted(timeline.collectives, key=lambda c: (-c.exposed_s, -c.seconds))[:MAX_ROWS]
    rows = [
        (
            cost.name,
            cost.kind,
            format_count(cost.repeats),
            format_bytes(cost.payload_bytes),
            f"{cost.group_size} over {', '.join(cost.axes) or 'no axis'}",
            format_seconds(cost.seconds),
            format_seconds(cost.exposed_s),
            cost.source or "not known",
            cost.op_name,
        )
        for cost in shown
    ]
    total = len(timeline.collectives)
    caption = f"{len(shown)} of {total} collectives, most exposed first"
    return folded(
        caption,
        table(
            caption,
            ("instruction", "kind", "times", "payload each", "devices", "time", "exposed",
             "source line", "operation"),
            rows,
            numbers=(2, 3, 5, 6),
            class_="tall",
        ),
    )  # fmt: skip


def _predicted(report: CompileReport) -> ElementTree.Element:
    """Predicted beside compiled; rows that differ first."""

    def differs(row: Any) -> bool:
        return (row.predicted_count, row.predicted_bytes) != (
            row.compiled_count,
            row.compiled_bytes,
        )

    ordered = sorted(report.collectives, key=lambda r: (not differs(r), -r.compiled_bytes))
    rows = [
        (
            row.kind,
            row.source or "not known",
            format_count(row.predicted_count),
            format_count(row.compiled_count),
            format_bytes(row.predicted_bytes),
            format_bytes(row.compiled_bytes),
            format_ratio(row.compiled_bytes, row.predicted_bytes),
            element("span", "differs" if differs(row) else "equal",
                    class_="bad" if differs(row) else "good"),
        )
        for row in ordered
    ]  # fmt: skip
    wrong = sum(map(differs, report.collectives))
    verdict = (
        f"{wrong} of {len(rows)} rows differ." if wrong else f"All {len(rows)} rows are equal."
    )
    return element(
        "div",
        element("h3", "Predicted beside compiled ", tag("estimated"), tag("compiled")),
        paragraph(verdict),
        table(
            "Collectives by kind and source, predicted beside compiled",
            ("kind", "source", "count predicted", "count compiled", "bytes predicted",
             "bytes compiled", "compiled / predicted", ""),
            rows,
            numbers=range(2, 7),
            class_="tall",
        ),
    )  # fmt: skip
