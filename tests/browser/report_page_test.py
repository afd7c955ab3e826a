"""The report's pages in headless Chromium: they draw, they keep to themselves, names stay text."""

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoshard import html_report
from autoshard.compile_report import CompileReport
from tests.autoshard import synthetic_report
from tests.autoshard.synthetic_report import HOSTILE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
FLAGS = """--no-sandbox --headless --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync""".split()

pytestmark = [
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="playwright is not installed"
    ),
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium or google-chrome: apt-get install chromium"
    ),
]

# Width and number of marks of each chart, as the browser has drawn them.
DRAWN = """() => [...document.querySelectorAll('.chart')].map(chart => ({
  id: chart.id,
  width: chart.querySelector('svg.main-svg')?.getBoundingClientRect().width ?? 0,
  marks: chart.querySelectorAll('.bars .point path, .scatterlayer .trace path').length,
  titles: [...chart.querySelectorAll('.xtitle, .ytitle')].map(title => title.textContent),
}))"""
SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
BACKGROUND = "() => getComputedStyle(document.body).backgroundColor"
TICK_COLOR = "() => getComputedStyle(document.querySelector('.xtick text')).fill"

ZOOM = "() => document.getElementById('chart-timeline').layout.xaxis.range"


@dataclasses.dataclass
class Visit:
    """An open page and everything that it did which a report must not."""

    page: Any
    errors: list[str]
    requests: list[str]
    dialogs: list[str]

    def check_quiet(self) -> None:
        assert not self.errors
        assert not self.dialogs
        assert not self.requests


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Visit]]:
    """Opens a page that `write` puts at the path it is given."""
    contexts = []

    def open_page(write: Callable[[Path], None], **settings: Any) -> Visit:
        path = tmp_path / "page.html"
        write(path)
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "offline": True, **settings}
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        result = Visit(page, [], [], [])

        def note_request(request: Any) -> None:
            if request.url != path.as_uri() and not request.url.startswith(("data:", "blob:")):
                result.requests.append(request.url)

        def note_dialog(dialog: Any) -> None:
            result.dialogs.append(dialog.message)
            dialog.dismiss()

        page.on("console", lambda message: result.errors.append(message.text))
        page.on("pageerror", lambda error: result.errors.append(str(error)))
        page.on("request", note_request)
        page.on("dialog", note_dialog)
        page.goto(path.as_uri())
        return result

    yield open_page
    for context in contexts:
        context.close()


def saving(report: CompileReport) -> Callable[[Path], None]:
    return lambda path: html_report.save(report, path)


def check_drawn(page: Any, count: int) -> None:
    drawn = page.evaluate(DRAWN)
    assert len(drawn) == count
    for chart in drawn:
        assert chart["width"] > 500 and chart["marks"] > 0 and any(chart["titles"]), chart


@pytest.mark.parametrize(
    ("make", "count"), [(synthetic_report.too_large, 1), (synthetic_report.busy, 5)]
)
def test_pages_draw_all_charts(
    visit: Callable[..., Visit], make: Callable[[], CompileReport], count: int
) -> None:
    opened = visit(saving(make()))
    check_drawn(opened.page, count)
    assert opened.page.evaluate(SIDEWAYS) <= 0
    opened.check_quiet()


def test_a_page_draws_zooms_and_follows_the_colour_scheme(visit: Callable[..., Visit]) -> None:
    opened = visit(saving(synthetic_report.fitting()), color_scheme="dark")
    page = opened.page
    check_drawn(page, 5)
    assert page.evaluate(SIDEWAYS) <= 0

    assert page.evaluate(ZOOM) == [0, 1]
    page.get_by_role("button", name="while.1, first of 4 iterations").click()
    assert page.evaluate(ZOOM) == [0, 0.2]
    page.get_by_role("button", name="whole step").click()
    assert page.evaluate(ZOOM) == [0, 1]

    dark = page.evaluate(BACKGROUND), page.evaluate(TICK_COLOR)
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"before => ({TICK_COLOR})() !== before", arg=dark[1])
    assert page.evaluate(BACKGROUND) != dark[0]
    check_drawn(page, 5)
    opened.check_quiet()


def test_hostile_names_are_shown_and_do_nothing(visit: Callable[..., Visit]) -> None:
    opened = visit(saving(synthetic_report.hostile()))
    page = opened.page
    check_drawn(page, 5)
    # plotly lays a transparent sheet over its marks, so they are never "visible" to the pointer.
    page.locator("#chart-roofline .scatterlayer .point").first.hover(force=True)
    assert HOSTILE[0] in page.locator("#chart-roofline .hoverlayer .hovertext").text_content()
    page.locator("#chart-timeline .bars .point path").nth(1).hover(force=True)
    assert page.locator("#chart-timeline .hoverlayer .hovertext").text_content()
    for name in HOSTILE:
        assert page.get_by_text(name).count() > 0
    assert page.locator("img, iframe, object, svg[onload], a[href^=javascript]").count() == 0
    assert page.locator("script").count() == 3
    page.set_viewport_size({"width": 480, "height": 800})
    assert page.evaluate(SIDEWAYS) <= 0
    opened.check_quiet()


def test_comparison_draws(visit: Callable[..., Visit]) -> None:
    first, second = synthetic_report.fitting(), synthetic_report.hostile()
    opened = visit(lambda path: html_report.compare(first, second, path, ("<b>A", HOSTILE[1])))
    check_drawn(opened.page, 4)
    assert opened.page.evaluate(SIDEWAYS) <= 0
    opened.check_quiet()


def test_comparison_with_one_that_does_not_fit_draws(visit: Callable[..., Visit]) -> None:
    first, second = synthetic_report.fitting(), synthetic_report.too_large()
    opened = visit(lambda path: html_report.compare(first, second, path))
    check_drawn(opened.page, 4)
    opened.check_quiet()


def test_without_javascript_the_tables_stand(visit: Callable[..., Visit]) -> None:
    opened = visit(saving(synthetic_report.fitting()), java_script_enabled=False)
    page = opened.page
    assert "The charts need JavaScript" in page.locator("noscript").text_content()
    assert page.get_by_role("cell", name="2.00 GiB").first.is_visible()
    assert page.get_by_role("heading", level=2).count() >= 8
    opened.check_quiet()
