"""The costliest operations against the machine's peaks.

Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
Architectures", Communications of the ACM 52(4), 2009.
"""

from typing import Any
from xml.etree import ElementTree

from autoshard.compile_report import CompileReport
from autoshard.html_report import charts
from autoshard.html_report.charts import Chart
from autoshard.html_report.figures import hbm_bandwidth
from autoshard.html_report.formats import (
    NOTHING,
    format_count,
    format_number,
    format_seconds,
    format_share,
    format_si,
)
from autoshard.html_report.markup import Node, element, paragraph, table, tag
from autoshard.html_report.section import Section, chart_frame, remark
from passes.hlo.timeline import Basis, OperationCost

MAX_DOTS = 200
MAX_ROWS = 40
HEIGHT_PX = 480


def roofline_section(report: CompileReport) -> Section | None:
    """The scatter and the table of the costliest operations."""
    timeline = report.timeline
    if timeline is None or not timeline.operations:
        return None
    body: list[Node] = []
    drawn: tuple[Chart, ...] = ()
    dots = placeable(timeline.operations)
    if dots:
        chart = roofline_chart(report, dots)
        drawn = (chart,)
        body.append(chart_frame(chart))
    else:
        body.append(
            paragraph("No operation has both a count of FLOPs and of bytes, so none can be placed.")
        )
    body.append(_operations_table(report))
    return Section("roofline", "Operations and roofline", tuple(body), drawn)


def placeable(operations: tuple[OperationCost, ...]) -> tuple[OperationCost, ...]:
    """The costliest operations that have a place on a logarithmic plot."""
    able = [op for op in operations if op.seconds > 0 and op.flops > 0 and op.hbm_bytes > 0]
    return tuple(able[:MAX_DOTS])


def roofline_chart(report: CompileReport, dots: tuple[OperationCost, ...]) -> Chart:
    """Arithmetic intensity against achieved FLOP/s; a dot's area goes with its time."""
    groups: dict[str, list[OperationCost]] = {}
    for op in dots:
        groups.setdefault(op.kind, []).append(op)
    longest = max(op.seconds for op in dots)
    traces = [_dots(kind, members, longest) for kind, members in groups.items()]
    intensities = [op.flops / op.hbm_bytes for op in dots]
    traces += _roofs(report, min(intensities), max(intensities))
    layout: dict[str, Any] = {
        "xaxis": charts.axis("arithmetic intensity, FLOP per byte of HBM", type="log"),
        "yaxis": charts.axis("achieved FLOP/s", type="log", exponentformat="SI"),
        "legend": charts.legend_below(HEIGHT_PX),
        "margin": {"t": 10},
        "hovermode": "closest",
    }
    top = dots[0]
    words = (
        f"{len(dots)} operations; the costliest, {top.name}, takes {format_seconds(top.seconds)} a "
        f"step at {format_si(top.flops / top.seconds, 'FLOP/s')}. FLOPs and bytes are counted from "
        "the compiled program, times are simulated."
    )
    return Chart("roofline", "Roofline", words, tuple(traces), layout, HEIGHT_PX)


def _dots(kind: str, members: list[OperationCost], longest: float) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": charts.label(kind),
        "x": [op.flops / op.hbm_bytes for op in members],
        "y": [op.flops / op.seconds for op in members],
        "marker": {
            "color": charts.kind_color(kind), "opacity": 0.75, "line": {"width": 1},
            "size": [5 + 22 * (op.seconds / longest) ** 0.5 for op in members],
        },
        "hovertext": [
            charts.hover(
                op.name, op.source, op.op_name,
                f"{format_seconds(op.seconds)} a step, {format_count(op.repeats)} times",
                f"{format_si(op.flops / op.seconds, 'FLOP/s')} at "
                f"{format_number(op.flops / op.hbm_bytes)} FLOP/byte; time by {op.basis.value}",
            )
            for op in members
        ],
        "hoverinfo": "text",
    }  # fmt: skip


def _roofs(report: CompileReport, least: float, most: float) -> list[dict[str, Any]]:
    """The lines that no operation can be above: peak FLOP/s, and bandwidth times intensity."""
    peak, bandwidth = report.peak_flops, hbm_bandwidth(report)
    ridge = peak / bandwidth if bandwidth else least
    left, right = min(least, ridge) / 2, max(most, ridge) * 2

    def line(name: str, x: list[float], y: list[float], color: str) -> dict[str, Any]:
        return {
            "type": "scatter", "mode": "lines", "name": name, "x": x, "y": y,
            "line": {"color": color, "width": 2, "dash": "dash"}, "hoverinfo": "name",
        }  # fmt: skip

    start = ridge if bandwidth else left
    name = f"peak {format_si(peak, 'FLOP/s')}"
    lines = [line(name, [start, right], [peak, peak], charts.VERMILION)]
    if bandwidth:
        name = f"HBM {format_si(bandwidth, 'B/s')}"
        lines.append(line(name, [left, ridge], [left * bandwidth, peak], charts.GREY))
    return lines


def _operations_table(report: CompileReport) -> ElementTree.Element:
    timeline = report.timeline
    assert timeline is not None
    shown = timeline.operations[:MAX_ROWS]
    rows = [
        (
            op.name,
            op.kind,
            format_count(op.repeats),
            format_seconds(op.seconds),
            format_share(op.seconds / timeline.step_s) if timeline.step_s else NOTHING,
            format_si(op.flops / op.seconds, "FLOP/s") if op.seconds and op.flops else NOTHING,
            _share_of_peak(op, report.peak_flops),
            format_number(op.flops / op.hbm_bytes) if op.flops and op.hbm_bytes else NOTHING,
            "not timed" if op.basis is Basis.UNKNOWN else op.basis.value,
            op.source or "not known",
            op.op_name,
        )
        for op in shown
    ]
    caption = f"{len(shown)} of {len(timeline.operations)} operations, costliest first"
    return element(
        "div",
        element("h3", "Costliest operations ", tag("simulated")),
        table(
            caption,
            ("instruction", "kind", "times", "time a step", "of the step", "achieved", "of peak",
             "FLOP/byte", "time by", "source line", "operation"),
            rows,
            numbers=range(2, 8),
            class_="tall",
        ),
        remark(
            "Times are those of the step, all repeats. Operations overlap with copies and "
            "collectives, so shares need not add up to the whole."
        ),
    )  # fmt: skip


def _share_of_peak(op: OperationCost, peak: float) -> str:
    return format_share(op.flops / op.seconds / peak) if op.seconds and op.flops else NOTHING
