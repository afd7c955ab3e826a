"""The simulated step as a Gantt chart, one lane a stream."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from autoshard.compile_report import CompileReport
from autoshard.html_report import charts
from autoshard.html_report.charts import Chart
from autoshard.html_report.formats import format_count, format_seconds
from autoshard.html_report.markup import Node, element, paragraph
from autoshard.html_report.section import Section, chart_frame
from passes.hlo.timeline import Span, Timeline

# Enough to fill a screen at any zoom, few enough to be drawn at once.
MAX_SPANS = 3000
LOOP_LANE = "loops"
_MAX_LOOP_BUTTONS = 8
# Shading of more than this share of the step has room for its label.
_LABELLED = 0.12


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop's place in the picture: its first iteration and the rest of them.

    Attributes:
      name: the instruction.
      start_s, first_end_s, end_s: begin, end of the first iteration, end.
      iterations: how many there are.
      source: as in `Span`.
    """

    name: str
    start_s: float
    first_end_s: float
    end_s: float
    iterations: int
    source: str


def loops_of(timeline: Timeline) -> tuple[Loop, ...]:
    """The outermost loops, longest first."""
    found = []
    for span in timeline.spans:
        if span.kind != "loop" or span.depth:
            continue
        inside = [
            s
            for s in timeline.spans
            if s.depth == 1 and span.start_s <= s.start_s and s.end_s <= span.end_s
        ]
        iterations = max((s.repeats for s in inside), default=span.repeats) // max(1, span.repeats)
        first_end = max((s.end_s for s in inside), default=span.end_s)
        found.append(Loop(span.name, span.start_s, first_end, span.end_s, iterations, span.source))
    return tuple(sorted(found, key=lambda loop: loop.start_s - loop.end_s))


def schedule_section(report: CompileReport, trace_file: str | None) -> Section | None:
    """The chart, buttons that zoom into loops, and the link to the trace."""
    timeline = report.timeline
    if timeline is None or not timeline.spans:
        return None
    chart = gantt_chart("timeline", timeline)
    body: list[Node] = [zoom_buttons(chart, timeline), chart_frame(chart)]
    if trace_file is not None:
        body.append(
            paragraph(
                "The whole of it, in a file that ",
                element("code", "ui.perfetto.dev"),
                " and ",
                element("code", "chrome://tracing"),
                " open: ",
                element("a", trace_file, href=trace_file, download=trace_file),
            )
        )
    return Section("timeline", "Timeline", tuple(body), (chart,))


def zoom_buttons(chart: Chart, timeline: Timeline) -> Node:
    """Buttons for the whole step and the first iteration of its longest loops."""
    scale, _ = charts.scale_of(timeline.step_s)

    def button(text: str, start: float, end: float) -> Node:
        return element(
            "button",
            text,
            type="button",
            data_chart=chart.element_id,
            data_from=repr(start / scale),
            data_to=repr(end / scale),
        )

    loops = [
        button(
            f"{loop.name}, first of {loop.iterations} iterations", loop.start_s, loop.first_end_s
        )
        for loop in loops_of(timeline)[:_MAX_LOOP_BUTTONS]
    ]
    return element(
        "div", button("whole step", 0.0, timeline.step_s), *loops, class_="buttons needs-script"
    )


def choose_spans(spans: Sequence[Span], limit: int = MAX_SPANS) -> tuple[Span, ...]:
    """The longest spans, in order of their begin; those of no length cannot be seen."""
    visible = [span for span in spans if span.end_s > span.start_s]
    longest = sorted(visible, key=lambda span: span.start_s - span.end_s)[:limit]
    return tuple(sorted(longest, key=lambda span: span.start_s))


def lane_of(span: Span) -> str:
    """Where a span is drawn: loops contain what other lanes show, so they have their own."""
    return LOOP_LANE if span.kind == "loop" else span.stream


def gantt_chart(name: str, timeline: Timeline) -> Chart:
    """Bars along the time of the step, coloured by kind."""
    scale, unit = charts.scale_of(timeline.step_s)
    shown = choose_spans(timeline.spans)
    kinds: dict[str, list[Span]] = {}
    for span in shown:
        kinds.setdefault(span.kind, []).append(span)
    traces = tuple(_bars(kind, members, scale) for kind, members in kinds.items())
    lanes = list(dict.fromkeys(lane_of(span) for span in shown))
    lanes.sort(key=lambda lane: (lane != "compute", lane == LOOP_LANE, lane))
    repeated = [loop for loop in loops_of(timeline) if loop.iterations > 1]
    height_px = 190 + 46 * len(lanes)
    layout: dict[str, Any] = {
        "barmode": "overlay",
        "bargap": 0.25,
        "xaxis": charts.axis(f"time in the step, {unit}", range=[0, timeline.step_s / scale]),
        "yaxis": charts.axis(
            "", type="category", categoryorder="array", fixedrange=True,
            categoryarray=[charts.label(lane) for lane in lanes], autorange="reversed",
        ),
        "shapes": [_rest(loop, scale) for loop in repeated],
        "annotations": [
            _rest_label(loop, scale)
            for loop in repeated
            if loop.end_s - loop.first_end_s > _LABELLED * timeline.step_s
        ],
        "legend": charts.legend_below(height_px),
        "margin": {"t": 10},
        "dragmode": "zoom",
        "hovermode": "closest",
    }  # fmt: skip
    words = (
        f"One step of {format_seconds(timeline.step_s)}, simulated from the compiler's schedule; "
        "drag to zoom, double-click to go back. "
        f"{_how_many(shown, timeline)} A loop shows its first iteration; the shaded stretch behind "
        "it stands for the others."
    )
    return Chart(name, "One step, by stream", words, traces, layout, height_px)


def _how_many(shown: Sequence[Span], timeline: Timeline) -> str:
    total = len(timeline.spans)
    if len(shown) == total:
        return f"All {format_count(total)} spans are drawn."
    left = sum(s.end_s - s.start_s for s in timeline.spans)
    left -= sum(s.end_s - s.start_s for s in shown)
    return (
        f"{format_count(len(shown))} of {format_count(total)} spans are drawn, the longest ones; "
        f"the others take {format_seconds(max(0.0, left))} together."
    )


def _bars(kind: str, spans: Sequence[Span], scale: float) -> dict[str, Any]:
    return {
        "type": "bar", "orientation": "h", "name": charts.label(kind),
        "base": [span.start_s / scale for span in spans],
        "x": [(span.end_s - span.start_s) / scale for span in spans],
        "y": [charts.label(lane_of(span)) for span in spans],
        "marker": {"color": charts.kind_color(kind), "line": {"width": 0}},
        "hovertext": [
            charts.hover(
                f"{span.name} ({kind})",
                f"{format_seconds(span.end_s - span.start_s)} from "
                f"{format_seconds(span.start_s)}",
                f"{format_count(span.repeats)} times a step" if span.repeats > 1 else "",
                span.source, span.op_name,
            )
            for span in spans
        ],
        "hoverinfo": "text",
    }  # fmt: skip


def _rest(loop: Loop, scale: float) -> dict[str, Any]:
    """Shading over the iterations that are not drawn."""
    return {
        "type": "rect", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
        "x0": loop.first_end_s / scale, "x1": loop.end_s / scale,
        "fillcolor": charts.GREY, "opacity": 0.18, "line": {"width": 0},
    }  # fmt: skip


def _rest_label(loop: Loop, scale: float) -> dict[str, Any]:
    """What the shading stands for."""
    more = loop.iterations - 1
    return {
        "xref": "x", "yref": "paper", "x": (loop.first_end_s + loop.end_s) / 2 / scale, "y": 0.5,
        "showarrow": False, "text": f"{more} more {'iteration' if more == 1 else 'iterations'}",
    }  # fmt: skip
