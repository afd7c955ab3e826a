"""What a report shows: figures with their basis, escaped names, charts that plotly accepts."""

import dataclasses
import html.parser
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoshard import html_report
from autoshard.compile_report import CompileReport
from autoshard.errors import ReportError
from autoshard.html_report import charts, communication, formats, markup, memory, schedule
from autoshard.html_report.figures import headline, step_items
from autoshard.html_report.memory_kinds import memory_kinds
from autoshard.html_report.no_fit import remedies
from autoshard.plan import Alternative
from passes.hlo.timeline import MemoryCurve, Span
from tests.autoshard import synthetic_report
from tests.autoshard.synthetic_report import GIB, HOSTILE

VOID = {"meta", "link", "br", "img", "hr", "input"}
REPORTS: dict[str, Callable[[], CompileReport]] = {
    "fitting": synthetic_report.fitting,
    "too large": synthetic_report.too_large,
    "hostile": synthetic_report.hostile,
    "busy": synthetic_report.busy,
}


class Page(html.parser.HTMLParser):
    """A page as a browser would read it: its elements, its text, its charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        (self.scripts if inside == "script" else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def charts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.scripts[0])
        return found

    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.elements if "id" in attrs]


def saved(report: CompileReport, tmp_path: Path) -> Page:
    html_report.save(report, tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", REPORTS)
def test_pages_are_well_formed_and_plotly_takes_their_charts(name: str, tmp_path: Path) -> None:
    page = saved(REPORTS[name](), tmp_path)
    assert not page.open
    assert len(page.ids()) == len(set(page.ids()))
    for chart in page.charts:
        go.Figure(chart["traces"], chart["layout"])  # raises for what plotly does not know
        assert chart["id"] in page.ids()
    drawn = [attrs for _, attrs in page.elements if attrs.get("class") == "chart"]
    assert len(drawn) == len(page.charts)
    assert all(attrs["role"] == "img" and len(str(attrs["aria-label"])) > 20 for attrs in drawn)


def test_the_page_shows_every_figure(tmp_path: Path) -> None:
    report = synthetic_report.fitting()
    text = saved(report, tmp_path).text
    for wanted in (
        "step time simulated 1.00 s",
        "model FLOP utilisation (MFU) simulated 25.0%",
        "exposed communication simulated 160 ms 16.0% of the step",
        "HBM per device compiled 62.0 GiB",
        "throughput simulated 128 tokens/s 16.0 tokens/s per device",
        "Fits: a device needs 62.0 GiB",
        "all-gather 4 2.00 GiB 200 ms 150 ms 15.0%",
        "1 of 2 rows differ.",
        "fusion.9 3.00 GiB losses.py:31 (cross_entropy)",
        "memory, total 53.0 GiB 62.0 GiB 1.17x",
        "total of memory_analysis() – 62.0 GiB",
        "custom-call Mystery, 4 times",
        "python -m experiments.plan --model=llama3_tiny",
        "libtpu 0.0.42.1",
        "layers/*/attn/q_proj/kernel",
        "rule 2: attention is independent along heads",
    ):
        assert wanted in text, wanted


def test_the_page_says_what_to_change_when_memory_runs_out(tmp_path: Path) -> None:
    text = saved(synthetic_report.too_large(), tmp_path).text
    assert (
        "Does not fit: a device needs 120 GiB of HBM and has 95.0 GiB, 25.0 GiB too little" in text
    )
    assert "40.0 GiB f32[64,4096,128256] losses.py:31 (cross_entropy)" in text
    assert "Take more devices than 8" in text
    assert "RESOURCE_EXHAUSTED" in text


def test_remedies_are_sized_by_the_plan() -> None:
    report = synthetic_report.too_large()
    assert report.out_of_memory is not None
    verdict = dataclasses.replace(
        report.out_of_memory, needed_bytes=60 * GIB, available_bytes=50 * GIB
    )
    plan = dataclasses.replace(report.plan, zero_stage=0)
    texts = remedies(dataclasses.replace(report, plan=plan, out_of_memory=verdict))
    assert "Look at losses.py:31 (cross_entropy): it makes f32[64,4096,128256]" in texts[0]
    # 36 of the 60 GiB are temporaries, 26 would fit.
    assert "about 36.0 GiB" in texts[1] and "about 2 times smaller would do" in texts[1]
    # Two devices share the batch: 8 of 16 GiB of optimizer state, 4 of 8 of gradients are enough.
    assert "Add zero2" in texts[2] and "optimizer state, gradients would" in texts[2]
    assert "saves about 12.0 GiB" in texts[2]
    assert remedies(synthetic_report.fitting()) == ()


def test_remedies_name_smaller_candidates() -> None:
    report = synthetic_report.too_large()
    other = alternative(memory_bytes=10 * GIB)
    plan = dataclasses.replace(report.plan, alternatives=(other,))
    texts = remedies(dataclasses.replace(report, plan=plan))
    assert any("rules zero3 on mesh data=8,model=1: estimated at 10.0 GiB" in t for t in texts)


def alternative(memory_bytes: int) -> Alternative:
    return Alternative(("zero3",), "data=8,model=1", 1e-3, memory_bytes, 1e9, "feasible")


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    plain, hostile = (
        saved(report, tmp_path)
        for report in (synthetic_report.fitting(), synthetic_report.hostile())
    )
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in plain.elements}
    assert not any(name.startswith("on") for _, attrs in hostile.elements for name in attrs)
    assert len(hostile.scripts) == len(plain.scripts) == 3
    for name in HOSTILE:
        assert name in hostile.text
    assert "<" not in hostile.scripts[0]
    shown = json.dumps(hostile.charts)
    assert "<img" not in shown and "<svg" not in shown and "<a " not in shown


def test_the_page_needs_no_network_and_runs_no_other_script(tmp_path: Path) -> None:
    page = saved(synthetic_report.fitting(), tmp_path)
    for tag, attrs in page.elements:
        assert "src" not in attrs and tag not in ("iframe", "base", "form")
        assert re.match(r"#|data:", str(attrs.get("href", "#")))
    (policy,) = (a["content"] for t, a in page.elements if a.get("http-equiv"))
    assert policy is not None and "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("style-src")[0] and "http" not in policy


def test_a_trace_beside_the_page_is_linked(tmp_path: Path) -> None:
    def links() -> list[str | None]:
        page = saved(synthetic_report.fitting(), tmp_path)
        return [attrs.get("href") for tag, attrs in page.elements if tag == "a"]

    assert "trace.json" not in links()
    (tmp_path / "trace.json").write_text("{}")
    assert "trace.json" in links()


def test_comparison_has_ratios_and_what_differs(tmp_path: Path) -> None:
    first = synthetic_report.fitting()
    assert first.timeline is not None
    slower = dataclasses.replace(first.timeline, step_s=2.0)
    second = dataclasses.replace(
        first, timeline=slower, plan=synthetic_report.tiny_plan("redco"), command="other command"
    )
    path = tmp_path / "compare.html"
    html_report.compare(first, second, path, names=("old", "new"))
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open and len(page.ids()) == len(set(page.ids()))
    for chart in page.charts:
        go.Figure(chart["traces"], chart["layout"])
    assert "step time simulated 1.00 s 2.00 s 2.00x" in page.text
    assert "embed/embedding 64×64 (model, -), stored (model, data) (model, -)" in page.text
    assert "other command" in page.text
    ratios = [a["class"] for t, a in page.elements if t == "span" and a.get("class") == "bad"]
    assert ratios, "a slower step is marked"


def test_a_report_beside_itself_does_not_differ(tmp_path: Path) -> None:
    report = synthetic_report.fitting()
    html_report.compare(report, report, tmp_path / "compare.html")
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert "0 differ" in page.text
    assert not [a for t, a in page.elements if t == "span" and a.get("class") in ("good", "bad")]


@pytest.mark.parametrize("swapped", [False, True])
def test_one_that_fits_beside_one_that_does_not(swapped: bool, tmp_path: Path) -> None:
    reports = [synthetic_report.fitting(), synthetic_report.too_large()]
    first, second = reversed(reports) if swapped else reports
    html_report.compare(first, second, tmp_path / "compare.html")
    text = Page((tmp_path / "compare.html").read_text(encoding="utf-8")).text
    assert "Fits" in text and "Does not fit" in text
    assert ("HBM per device compiled " + ("120 GiB 62.0 GiB" if swapped else "62.0 GiB 120 GiB")
            in text)  # fmt: skip


def test_summary_is_plain_text_of_the_width() -> None:
    text = html_report.summary(synthetic_report.fitting(), width=100)
    assert max(map(len, text.splitlines()[1:])) <= 100
    assert re.search(r"step time +1\.00 s +simulated", text)
    assert re.search(r"all-gather +4 +2\.00 GiB +200 ms +150 ms", text)
    assert "\x1b" not in text
    refused = html_report.summary(synthetic_report.too_large())
    assert "Does not fit" in refused and "losses.py:31" in refused and "What to change" in refused
    assert "[bold]" in html_report.summary(renamed("[bold]x"))


def renamed(name: str) -> CompileReport:
    report = synthetic_report.fitting()
    program = dataclasses.replace(report.plan.program, name=name)
    return dataclasses.replace(report, plan=dataclasses.replace(report.plan, program=program))


def test_missing_plotly_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "plotly" else find(name)
    )
    with pytest.raises(ReportError, match=r'pip install "autoshard\[report\]"'):
        html_report.save(synthetic_report.fitting(), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
    assert html_report.summary(synthetic_report.fitting())


def test_a_directory_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot write the report"):
        html_report.save(synthetic_report.fitting(), tmp_path / "missing" / "report.html")


def test_headline_without_timeline_or_capacity() -> None:
    report = dataclasses.replace(synthetic_report.fitting(), timeline=None)
    assert [figure.name for figure in headline(report)] == ["HBM per device"]
    assert headline(dataclasses.replace(report, memory=None)) == ()


def test_kinds_add_up_to_the_compilers_total() -> None:
    report = synthetic_report.fitting()
    assert report.memory is not None
    kinds = memory_kinds(report)
    assert sum(k.compiled_bytes or 0 for k in kinds) == report.memory.total_bytes
    assert sum(k.estimated_bytes or 0 for k in kinds) == report.plan.cost.memory.total_bytes
    peak = dataclasses.replace(report.memory, peak_bytes=50 * GIB)  # the rest is VMEM
    kinds = memory_kinds(dataclasses.replace(report, memory=peak))
    assert sum(k.compiled_bytes or 0 for k in kinds) == 50 * GIB
    smaller = dataclasses.replace(report.memory, arguments_bytes=9 * GIB)  # less than the plan has
    kinds = memory_kinds(dataclasses.replace(report, memory=smaller))
    assert sum(k.compiled_bytes or 0 for k in kinds) == smaller.total_bytes


def test_collectives_are_summed_by_kind() -> None:
    timeline = synthetic_report.tiny_timeline()
    first, second = communication.by_kind(
        dataclasses.replace(timeline, collectives=timeline.collectives * 2)
    )
    assert (first.kind, first.count, first.payload_bytes) == ("all-gather", 8, 4 * GIB)
    assert (second.kind, second.seconds, second.exposed_s) == ("all-reduce", 0.08, 0.02)


def test_text_batches_count_tokens_and_others_examples() -> None:
    report = synthetic_report.fitting()
    assert step_items(report) == (8 * 16, "tokens")
    floats = tuple(
        dataclasses.replace(a, leaf=dataclasses.replace(a.leaf, dtype="float32"))
        for a in report.plan.arrays
    )
    images = dataclasses.replace(report, plan=dataclasses.replace(report.plan, arrays=floats))
    assert step_items(images) == (8, "examples")


def test_the_first_iteration_of_a_loop_is_found() -> None:
    (loop,) = schedule.loops_of(synthetic_report.tiny_timeline())
    assert (loop.name, loop.start_s, loop.first_end_s, loop.end_s) == ("while.1", 0.0, 0.2, 0.8)
    assert loop.iterations == synthetic_report.LAYERS


def test_the_longest_spans_are_drawn_in_order_and_the_rest_counted(tmp_path: Path) -> None:
    spans = [Span(f"s{i}", "matmul", "compute", i, i + (i * 7 % 10) / 10, "", "", 1, 0)
             for i in range(10)]  # fmt: skip
    shown = schedule.choose_spans(spans, limit=3)
    assert {round(s.end_s - s.start_s, 1) for s in shown} == {0.7, 0.8, 0.9}
    assert [s.start_s for s in shown] == sorted(s.start_s for s in shown)
    assert all(s.end_s > s.start_s for s in schedule.choose_spans(spans, limit=10))
    page = saved(synthetic_report.busy(), tmp_path)
    assert "3,000 of 9,000 spans are drawn, the longest ones" in page.text
    (gantt,) = (c for c in page.charts if c["id"] == "chart-timeline")
    assert sum(len(trace["x"]) for trace in gantt["traces"]) == schedule.MAX_SPANS


def test_thinning_keeps_the_peak() -> None:
    sizes = tuple(GIB if i == 777 else i for i in range(5000))
    curve = MemoryCurve(tuple(i * 1e-6 for i in range(5000)), sizes, ())
    times, thinned = memory.thin(curve, points=100)
    assert len(times) == len(thinned) <= 100 and max(thinned) == GIB
    assert list(times) == sorted(times) and times[0] == 0
    assert memory.thin(curve, points=5000) == (curve.times_s, curve.live_bytes)
    assert memory.peak_of(curve) == (curve.times_s[777], GIB)


@pytest.mark.parametrize(("peak_gib", "drawn"), [(62, True), (10, False)])
def test_the_capacity_is_drawn_where_the_curve_stays_readable(peak_gib: int, drawn: bool) -> None:
    report = synthetic_report.fitting()
    assert report.timeline is not None
    curve = MemoryCurve((0.0, 0.5), (GIB, peak_gib * GIB), ())
    timeline = dataclasses.replace(report.timeline, memory=curve)
    chart = memory.curve_chart("curve", (("", dataclasses.replace(report, timeline=timeline)),))
    assert bool(chart.layout.get("shapes")) == drawn
    texts = [note["text"] for note in chart.layout["annotations"]]
    assert f"peak {peak_gib}.0 GiB" in texts
    assert any("capacity 95.7 GiB" in text for text in texts)


@given(st.text())
def test_any_text_survives_as_text(text: str) -> None:
    node = markup.element("p", text, markup.element("b", text), text, title=text)
    written = markup.write(node)
    written.encode("utf-8")
    page = Page(written.removeprefix("<!DOCTYPE html>\n"))
    assert [tag for tag, _ in page.elements] == ["p", "b"]
    assert page.elements[0][1]["title"] == markup.clean(text)
    assert "".join(page.texts).rstrip("\n") == (markup.clean(text) * 3).rstrip("\n")


@given(st.text())
def test_labels_of_charts_have_no_markup(text: str) -> None:
    assert "<" not in charts.label(text) and len(charts.label(text)) <= 5 * 120


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (formats.format_seconds(1.5), "1.50 s"),
        (formats.format_seconds(0.0456), "45.6 ms"),
        (formats.format_seconds(7.8e-6), "7.80 µs"),
        (formats.format_seconds(2e-9), "2.00 ns"),
        (formats.format_seconds(0), "0 s"),
        (formats.format_si(459e12, "FLOP/s"), "459 TFLOP/s"),
        (formats.format_si(3.0, "B"), "3.00 B"),
        (formats.format_count(12345.0), "12,345"),
        (formats.format_count(0.5), "0.5"),
        (formats.format_ratio(3.0, 2.0), "1.50x"),
        (formats.format_ratio(1e6, 1.0), "1e+06x"),
        (formats.format_ratio(None, 2.0), "–"),
        (formats.format_ratio(1.0, 0.0), "–"),
        (formats.format_by_unit(None, "bytes"), "–"),
        (formats.format_by_unit(2**30, "bytes"), "1.00 GiB"),
        (formats.format_by_unit(0.25, "share"), "25.0%"),
        (formats.format_by_unit(2e12, "flops"), "2.00 TFLOP"),
        (formats.format_by_unit(12345.6, "tokens/s"), "12,346 tokens/s"),
    ],
)
def test_formats(text: str, wanted: str) -> None:
    assert text == wanted
