"""The passes that rewrote the program, in order, what each did, and the pipeline's schedule."""

from autoshard.compile_report import CompileReport
from autoshard.html_report import charts
from autoshard.html_report.charts import Chart
from autoshard.html_report.markup import Node, bullets, code, element, table
from autoshard.html_report.section import Section, chart_frame
from autoshard.pass_registry import from_records
from autoshard.plan import Plan
from passes.pipeline import Pipeline
from passes.pipelining.picture import Cell, picture

_COLORS = {
    "forward": charts.BLUE,
    "backward": charts.GREEN,
    "inputs": charts.GREEN,
    "weights": charts.ORANGE,
}
_LABELS = {
    "forward": "forward",
    "backward": "backward",
    "inputs": "backward, by inputs",
    "weights": "backward, by weights",
}
# More cells than this are too narrow for the number of a microbatch.
_NUMBERED = 400


def passes_section(report: CompileReport) -> Section | None:
    """One row a pass; nothing where none was asked for."""
    passes = report.plan.passes
    if not passes:
        return None
    rows = [(code(str(one)), element("div", bullets(one.notes))) for one in passes]
    caption = "Passes, in the order in which they were applied"
    body: list[Node] = [table(caption, ("pass", "what it did"), rows)]
    chart = schedule_chart(report.plan)
    if chart is not None:
        body.insert(0, chart_frame(chart))
    return Section("passes", "Passes", tuple(body), () if chart is None else (chart,))


def schedule_chart(plan: Plan) -> Chart | None:
    """The pipeline's schedule, a lane a stage; None without a pipeline."""
    records = [record for record in plan.passes if record.name == "pipeline"]
    if not records:
        return None
    pipeline = from_records(records)[0]
    assert isinstance(pipeline, Pipeline)
    stages = plan.mesh.shape.size(pipeline.axis)
    cells = picture(pipeline.ticks(stages))
    end = max(cell.end for cell in cells)
    busy = sum(cell.end - cell.begin for cell in cells) / (stages * end)
    height_px = 150 + 34 * stages
    kinds = dict.fromkeys(cell.kind for cell in cells)
    lanes = [f"stage {stage}" for stage in range(stages)]
    layout = {
        "barmode": "overlay",
        "bargap": 0.12,
        "xaxis": charts.axis("time, in forward passes of a stage", range=[0, end]),
        "yaxis": charts.axis(
            "", type="category", categoryorder="array", categoryarray=lanes, fixedrange=True,
            autorange="reversed",
        ),
        "legend": charts.legend_below(height_px),
        "margin": {"t": 10},
        "dragmode": "zoom",
        "hovermode": "closest",
    }  # fmt: skip
    words = (
        f"The schedule {pipeline.schedule} of {pipeline.microbatches} microbatches on {stages} "
        f"stages, a backward pass taken as twice a forward one: stages work {busy:.0%} of the "
        "time. Numbers are microbatches. (The timeline below is one device's, simulated.)"
    )
    numbered = len(cells) <= _NUMBERED
    traces = tuple(
        _bars(kind, [cell for cell in cells if cell.kind == kind], numbered) for kind in kinds
    )
    return Chart("pipeline", "The pipeline, by stage", words, traces, layout, height_px)


def _bars(kind: str, cells: list[Cell], numbered: bool) -> dict[str, object]:
    return {
        "type": "bar", "orientation": "h", "name": _LABELS[kind],
        "base": [cell.begin for cell in cells],
        "x": [cell.end - cell.begin for cell in cells],
        "y": [f"stage {cell.stage}" for cell in cells],
        "text": [str(cell.microbatch) for cell in cells] if numbered else None,
        "textposition": "inside",
        "marker": {"color": _COLORS[kind], "line": {"width": 1, "color": "rgba(0,0,0,0.25)"}},
        "hovertext": [
            charts.hover(
                f"microbatch {cell.microbatch}, {_LABELS[kind]}",
                f"stage {cell.stage}, chunk {cell.chunk}, from {cell.begin:g} to {cell.end:g}",
            )
            for cell in cells
        ],
        "hoverinfo": "text",
    }  # fmt: skip
