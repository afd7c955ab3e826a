"""HBM: by kind against the capacity, and over the step."""

import bisect
import itertools
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from autoshard.compile_report import CompileReport
from autoshard.explain import format_bytes
from autoshard.html_report import charts
from autoshard.html_report.charts import Chart
from autoshard.html_report.figures import fits, hbm_capacity, hbm_needed
from autoshard.html_report.formats import NOTHING, format_ratio, format_seconds
from autoshard.html_report.markup import Node, element, table, tag
from autoshard.html_report.memory_kinds import KindBytes, memory_kinds
from autoshard.html_report.section import Section, chart_frame, remark
from passes.hlo.timeline import MemoryCurve

# A curve of more points is thinned: the picture has no more pixels than that.
MAX_POINTS = 4000
CURVE_HEIGHT_PX = 380
# A capacity of more than so many peaks is said, not drawn.
_FAR_ABOVE = 3


def memory_section(report: CompileReport) -> Section:
    """Bars by kind, the curve, the largest buffers at its peak."""
    bars = kinds_chart("memory-kinds", (("", report),))
    body: list[Node] = [chart_frame(bars), _kinds_table(report)]
    drawn = [bars]
    if report.timeline is not None and report.timeline.memory.times_s:
        curve = curve_chart("memory-curve", (("", report),))
        drawn.append(curve)
        body += [chart_frame(curve), _peak_table(report.timeline.memory)]
    return Section("memory", "Memory", tuple(body), tuple(drawn))


def kinds_chart(name: str, reports: Sequence[tuple[str, CompileReport]]) -> Chart:
    """Stacked bars, estimated beside compiled, for one or more (label, report)."""
    kinds = [(label, report, memory_kinds(report)) for label, report in reports]
    largest = max((s for _, _, k in kinds for s in _totals(k)), default=0)
    scale, unit = charts.byte_scale(max(largest, *(hbm_capacity(r) or 0 for _, r in reports)))
    traces: dict[str, dict[str, Any]] = {}
    for label, _, rows in kinds:
        for row in rows:
            sides = (("estimated", row.estimated_bytes), ("compiled", row.compiled_bytes))
            for side, size in sides:
                if size is None:
                    continue
                trace = traces.setdefault(row.kind, _bar(row))
                trace["y"].append(charts.label(f"{side} {label}".strip()))
                trace["x"].append(size / scale)
                trace["hovertext"].append(charts.hover(row.kind, format_bytes(size), side))
    _add_refused(reports, traces, scale)
    order = [
        f"{side} {label}".strip() for label, _ in reports for side in ("estimated", "compiled")
    ]
    layout = {
        "barmode": "stack",
        "xaxis": charts.axis(f"{unit} per device", rangemode="tozero"),
        "yaxis": charts.axis("", categoryorder="array", categoryarray=[*map(charts.label, order)],
                             autorange="reversed"),
        "legend": charts.legend_below(130 + 70 * len(order)),
        "margin": {"t": 30},
    }  # fmt: skip
    for capacity in sorted({c for _, r in reports if (c := hbm_capacity(r))}):
        line = charts.vertical_line(capacity / scale, f"capacity {format_bytes(capacity)}")
        for key, entries in line.items():
            layout.setdefault(key, [])
            layout[key] += entries
    words = "; ".join(_in_words(label, report) for label, report in reports)
    return Chart(name, "HBM by kind", words, tuple(traces.values()), layout, 200 + 70 * len(order))


def _bar(row: KindBytes) -> dict[str, Any]:
    return {
        "type": "bar", "orientation": "h", "name": row.kind, "x": [], "y": [], "hovertext": [],
        "hoverinfo": "text", "marker": {"color": row.color},
    }  # fmt: skip


def _add_refused(
    reports: Sequence[tuple[str, CompileReport]], traces: dict[str, dict[str, Any]], scale: float
) -> None:
    """A bar for what the compiler would have needed, which it does not split by kind."""
    for label, report in reports:
        needed = hbm_needed(report)
        if fits(report) or needed is None:
            continue
        kind = "needed, kinds not told apart"
        trace = traces.setdefault(kind, _bar(KindBytes(kind, charts.VERMILION, None, needed)))
        trace["y"].append(charts.label(f"compiled {label}".strip()))
        trace["x"].append(needed / scale)
        trace["hovertext"].append(charts.hover(kind, format_bytes(needed), "compiled"))


def _totals(kinds: Sequence[KindBytes]) -> tuple[int, int]:
    return (
        sum(kind.estimated_bytes or 0 for kind in kinds),
        sum(kind.compiled_bytes or 0 for kind in kinds),
    )


def _in_words(label: str, report: CompileReport) -> str:
    estimated = report.plan.cost.memory.total_bytes
    needed, capacity = hbm_needed(report), hbm_capacity(report)
    words = f"{label}: " if label else ""
    words += f"{format_bytes(estimated)} a device estimated"
    if needed is not None:
        words += f", {format_bytes(needed)} compiled"
    if capacity:
        words += f", of {format_bytes(capacity)}"
    return words


def _kinds_table(report: CompileReport) -> ElementTree.Element:
    def size(value: int | None) -> str:
        return NOTHING if value is None else format_bytes(value)

    kinds = memory_kinds(report)
    rows = [(k.kind, size(k.estimated_bytes), size(k.compiled_bytes)) for k in kinds]
    estimated, needed = report.plan.cost.memory.total_bytes, hbm_needed(report)
    rows.append(("total, at the peak", format_bytes(estimated), size(needed)))
    rows.append(("compiled / estimated", "", format_ratio(needed, estimated)))
    memory = report.memory
    if memory is not None:
        rows.append(("total of memory_analysis()", NOTHING, format_bytes(memory.total_bytes)))
        rows.append(("program code, not counted above", NOTHING, format_bytes(memory.code_bytes)))
        for name, value in (
            ("host memory: inputs", memory.host_arguments_bytes),
            ("host memory: temporaries", memory.host_temporaries_bytes),
        ):
            if value:
                rows.append((name, NOTHING, format_bytes(value)))
    return element(
        "div",
        table(
            "Bytes on one device, by kind",
            ("kind", "estimated", "compiled"),
            rows,
            numbers=(1, 2),
        ),
        remark(
            "The compiler tells inputs, outputs and temporaries apart, and pads arrays to tiles. "
            "Gradients, gathered parameters and activations are among its temporaries. What is in "
            "HBM at the peak must fit; memory_analysis() also counts what a TPU keeps in VMEM."
        ),
    )


def peak_of(curve: MemoryCurve) -> tuple[float, int]:
    """(seconds, bytes) of a curve's highest point, the first where there are several."""
    at = max(range(len(curve.live_bytes)), key=lambda i: curve.live_bytes[i])
    return curve.times_s[at], curve.live_bytes[at]


def curve_chart(name: str, reports: Sequence[tuple[str, CompileReport]]) -> Chart:
    """HBM over the step for one or more (label, report), each with a timeline."""
    timelines = [(label, r.timeline) for label, r in reports if r.timeline is not None]
    time_scale, time_unit = charts.scale_of(max((t.step_s for _, t in timelines), default=1.0))
    capacity = max((hbm_capacity(r) or 0 for _, r in reports), default=0)
    peaks = {label: peak_of(t.memory) for label, t in timelines if t.memory.times_s}
    scale, unit = charts.byte_scale(max(capacity, *(size for _, size in peaks.values())))
    colors = (charts.BLUE, charts.ORANGE)
    traces, notes = [], []
    for color, (label, timeline) in zip(colors, timelines, strict=False):
        if label not in peaks:
            continue
        times, sizes = thin(timeline.memory)
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": charts.label(label or "live HBM"),
                "x": [t / time_scale for t in (*times, timeline.step_s)],
                "y": [size / scale for size in (*sizes, sizes[-1])],
                "line": {"shape": "hv", "color": color, "width": 2},
                "fill": "tozeroy", "fillcolor": f"{color}30",
                "hovertemplate": f"%{{x:.4g}} {time_unit}: %{{y:.4g}} {unit}<extra></extra>",
            }
        )  # fmt: skip
        time, size = peaks[label]
        notes.append(
            {
                "x": time / time_scale, "y": size / scale, "showarrow": True, "arrowhead": 2,
                "ax": 0, "ay": -36,
                "text": charts.label(f"{label} peak {format_bytes(size)}".strip()),
            }
        )  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": charts.axis(f"time in the step, {time_unit}"),
        "yaxis": charts.axis(f"HBM in use, {unit} per device", rangemode="tozero"),
        "annotations": notes,
        "showlegend": len(traces) > 1,
        "legend": charts.legend_below(CURVE_HEIGHT_PX),
        "margin": {"t": 30},
    }
    if capacity:
        _show_capacity(layout, capacity, max(size for _, size in peaks.values()), scale)
    words = "; ".join(
        f"{label + ': ' if label else ''}peak of {format_bytes(size)} at {format_seconds(time)}"
        for label, (time, size) in peaks.items()
    )
    words += (
        ". Simulated from what is alive when; where the compiler places it does not enter. The "
        "first iteration of a loop stands for all."
    )
    return Chart(name, "HBM over the step", words, tuple(traces), layout, CURVE_HEIGHT_PX)


def _show_capacity(layout: dict[str, Any], capacity: int, peak: int, scale: float) -> None:
    """A line across the picture; in words where it would press the curve to the floor."""
    text = f"capacity {format_bytes(capacity)}"
    note = {"xref": "paper", "x": 1, "xanchor": "right", "yanchor": "bottom", "showarrow": False}
    if capacity > _FAR_ABOVE * peak:
        layout["yaxis"]["range"] = [0, 1.4 * peak / scale]
        above = {"yref": "paper", "y": 1, "text": f"↑ {text}, {capacity / peak:.1f} times the peak"}
        layout["annotations"].append({**note, **above})
        return
    layout["shapes"] = [
        {
            "type": "line", "xref": "paper", "x0": 0, "x1": 1,
            "y0": capacity / scale, "y1": capacity / scale,
            "line": {"color": charts.VERMILION, "width": 2, "dash": "dash"},
        }
    ]  # fmt: skip
    layout["annotations"].append({**note, "y": capacity / scale, "text": text})


def thin(curve: MemoryCurve, points: int = MAX_POINTS) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(times, bytes) of at most about `points` points, of which the highest of each stretch."""
    if len(curve.times_s) <= points:
        return curve.times_s, curve.live_bytes
    first, last = curve.times_s[0], curve.times_s[-1]
    edges = [first + (last - first) * i / points for i in range(1, points)]
    starts = [0, *(bisect.bisect_left(curve.times_s, edge) for edge in edges), len(curve.times_s)]
    times, sizes = [], []
    for begin, end in itertools.pairwise(starts):
        if begin < end:
            times.append(curve.times_s[begin])
            sizes.append(max(curve.live_bytes[begin:end]))
    return tuple(times), tuple(sizes)


def _peak_table(curve: MemoryCurve) -> ElementTree.Element:
    rows = [
        (name, format_bytes(size), source or "not known") for name, size, source in curve.peak_names
    ]
    return element(
        "div",
        element("h3", "Largest buffers at the peak ", tag("simulated")),
        table(
            "Largest buffers alive at the peak",
            ("instruction", "size", "source line"),
            rows,
            numbers=(1,),
        ),
    )
