"""The layouts that the planner considered: memory against time, choices, what was compiled."""

from typing import Any

from autoshard.compile_report import CompileReport
from autoshard.explain import format_bytes
from autoshard.html_report import charts
from autoshard.html_report.charts import Chart
from autoshard.html_report.formats import NOTHING, format_seconds, format_share
from autoshard.html_report.markup import Node, element, paragraph, table, tag
from autoshard.html_report.section import Section, chart_frame, remark
from autoshard.plan import Alternative, Plan
from autoshard.search_record import Verified

HEIGHT_PX = 460
_GIB = 2**30
_COLORS = {
    "chosen": charts.VERMILION,
    "best for its memory": charts.GREEN,
    "fits": charts.BLUE,
    "does not fit": charts.GREY,
}


def candidates_section(report: CompileReport) -> Section | None:
    """Layouts that the planner considered; nothing where there was one only."""
    plan = report.plan
    if not plan.alternatives:
        return None
    body: list[Node] = []
    drawn: tuple[Chart, ...] = ()
    if any(other.score_s is not None for other in plan.alternatives):
        drawn = (pareto_chart(plan),)
        body.append(chart_frame(drawn[0]))
    if plan.verified:
        body.append(_verified(plan))
    if plan.search is not None and plan.search.runner_ups:
        body.append(_runner_ups(plan))
    body.append(_considered(plan))
    return Section("candidates", "Candidates considered", tuple(body), drawn)


def pareto_chart(plan: Plan) -> Chart:
    """Memory against step time of the candidates, estimated; those that were compiled, too."""
    groups: dict[str, list[Alternative]] = {}
    for other in plan.alternatives:
        if other.score_s is not None:
            groups.setdefault(other.verdict or "fits", []).append(other)
    traces = [_dots(name, members) for name, members in groups.items()]
    compiled = [one for one in plan.verified if one.simulated_s is not None]
    if compiled:
        traces.append(_crosses(compiled))
    layout: dict[str, Any] = {
        "xaxis": charts.axis("memory of a device, GiB", type="log"),
        "yaxis": charts.axis("step, ms", type="log"),
        "legend": charts.legend_below(HEIGHT_PX),
        "margin": {"t": 10},
        "hovermode": "closest",
    }
    record = plan.search
    if record is not None and record.limit_bytes is not None:
        limit = record.limit_bytes / _GIB
        layout["shapes"] = [
            {"type": "line", "x0": limit, "x1": limit, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"color": charts.VERMILION, "dash": "dash"}}
        ]  # fmt: skip
    words = (
        f"{sum(map(len, groups.values()))} of the layouts considered. Dots are estimates, crosses "
        "what the compiler made of the best; nothing is both quicker and smaller than a dot that "
        "is best for its memory."
    )
    return Chart("pareto", "Memory against time", words, tuple(traces), layout, HEIGHT_PX)


def _dots(name: str, members: list[Alternative]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": charts.label(name),
        "x": [(other.memory_bytes or 0) / _GIB for other in members],
        "y": [(other.score_s or 0.0) * 1e3 for other in members],
        "marker": {
            "color": _COLORS.get(name, charts.SKY), "size": 13 if name == "chosen" else 8,
        },
        "hovertext": [
            charts.hover("+".join(other.rules), other.mesh, other.kept,
                         f"{format_seconds(other.score_s or 0.0)} a step",
                         format_bytes(other.memory_bytes or 0))
            for other in members
        ],
        "hoverinfo": "text",
    }  # fmt: skip


def _crosses(compiled: list[Verified]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": "compiled",
        "x": [one.compiled_bytes / _GIB for one in compiled],
        "y": [(one.simulated_s or 0.0) * 1e3 for one in compiled],
        "marker": {"symbol": "x", "size": 11, "color": charts.PURPLE},
        "hovertext": [
            charts.hover(
                one.rules, one.mesh,
                f"compiled: {format_seconds(one.simulated_s or 0.0)} a step, simulated",
                format_bytes(one.compiled_bytes),
            )
            for one in compiled
        ],
        "hoverinfo": "text",
    }  # fmt: skip


def _verified(plan: Plan) -> Node:
    rows = [
        (
            one.rules,
            one.mesh,
            format_seconds(one.estimated_s),
            NOTHING if one.simulated_s is None else format_seconds(one.simulated_s),
            format_bytes(one.estimated_bytes),
            format_bytes(one.compiled_bytes),
            one.verdict,
        )
        for one in plan.verified
    ]
    columns = ("rules and passes", "mesh", "step, estimated", "simulated", "memory, estimated",
               "compiled", "verdict")  # fmt: skip
    return element(
        "div",
        element("h3", "The best, compiled ", tag("compiled"), tag("simulated")),
        table("Layouts that were compiled, best first", columns, rows, numbers=range(2, 6)),
    )


def _runner_ups(plan: Plan) -> Node:
    record = plan.search
    assert record is not None
    rows = [
        (
            one.choice,
            one.chosen,
            one.other,
            format_seconds(one.slower_s),
            format_bytes(one.memory_bytes),
            "" if one.fits else "does not fit",
        )
        for one in record.runner_ups
    ]
    gap = format_share(record.gap)
    return element(
        "div",
        element("h3", "What the choices are worth ", tag("estimated")),
        table(
            "For each choice, the best layout that has another",
            ("choice", "chosen", "runner-up", "slower by", "memory", "verdict"),
            rows,
            numbers=(3, 4),
        ),
        paragraph(
            f"{record.evaluated} layouts were costed. The chosen step is {gap} above what no "
            f"layout can beat by the same estimate ({format_seconds(record.bound_s)}: all products "
            "shared evenly, nothing sent)."
        ),
    )


def _considered(plan: Plan) -> Node:
    rows = [
        (
            "+".join(other.rules),
            other.mesh,
            other.kept,
            NOTHING if other.memory_bytes is None else format_bytes(other.memory_bytes),
            NOTHING if other.moved_bytes is None else format_bytes(other.moved_bytes),
            NOTHING if other.score_s is None else format_seconds(other.score_s),
            other.verdict,
        )
        for other in plan.alternatives
    ]
    return element(
        "div",
        element("h3", "Layouts considered ", tag("estimated")),
        table(
            "Layouts considered, best first",
            ("rules", "mesh", "saved", "memory", "moved", "step", "verdict"),
            rows,
            numbers=(3, 4, 5),
            class_="tall",
        ),
        remark("Per device and step; moved: what a device sends."),
    )
