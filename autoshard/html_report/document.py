"""Sections to one HTML file that needs nothing but itself.

The page forbids itself the network and every script but its own (a content security policy with
the scripts' hashes), so that nothing a model is named after can run, whatever it is.
"""

import base64
import hashlib
import importlib.resources
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

from autoshard.errors import ReportError
from autoshard.html_report.charts import Chart
from autoshard.html_report.markup import Node, element, paragraph, verbatim, write
from autoshard.html_report.provenance import legend
from autoshard.html_report.section import Section


def check_plotly() -> None:
    """Raises ReportError where pages cannot be made, before anything long is begun."""
    if importlib.util.find_spec("plotly") is None:
        raise ReportError(
            "report.html draws its charts with plotly, which is not installed here: "
            'pip install "autoshard[report]" (or: pip install plotly). The text summary and '
            "report.json do without it"
        )


def plotly_script() -> str:
    """The source of plotly.js, from the `plotly` package.

    Raises:
      ReportError: it is not installed.
    """
    check_plotly()
    from plotly.offline import get_plotlyjs  # Slow, and of no use where no page is made.

    return str(get_plotlyjs())


def document(title: str, lead: str, sections: Sequence[Section]) -> str:
    """A whole page.

    Args:
      title: its heading.
      lead: a sentence below it.
      sections: its parts, in order.

    Raises:
      ReportError: plotly is not installed.
    """
    charts = [chart for section in sections for chart in section.charts]
    scripts = (plotly_script(), _resource("page.js"))
    links = (element("li", element("a", s.title, href=f"#{s.name}")) for s in sections)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        verbatim("style", _resource("page.css")),
    )
    body = element(
        "body",
        element(
            "header",
            element("h1", title),
            paragraph(lead),
            legend(),
            element("nav", element("ul", *links), aria_label="Sections"),
            element(
                "noscript",
                paragraph(
                    "The charts need JavaScript; tables and text are complete without it.",
                    class_="verdict",
                ),
            ),
        ),
        element("main", *map(_section, sections)),
        verbatim("script", chart_json(charts), type="application/json", id="charts"),
        *(verbatim("script", script) for script in scripts),
    )
    return write(element("html", head, body, lang="en"))


def chart_json(charts: Iterable[Chart]) -> str:
    """Charts as JSON that can stand within `<script>`: no `<` can end it or open a comment."""
    rows = [{"id": c.element_id, "traces": c.traces, "layout": c.layout} for c in charts]
    text = json.dumps(rows, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_file(text: str, path: str | os.PathLike[str]) -> None:
    """Write a page, replacing the file at once.

    Raises:
      ReportError: it cannot be written.
    """
    target = pathlib.Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ReportError(
            f"cannot write the report to {target}: {error.strerror or error}. Choose a directory "
            "that exists and has room"
        ) from error


def _section(section: Section) -> Node:
    heading = f"{section.name}-heading"
    return element(
        "section",
        element("h2", section.title, id=heading),
        *section.body,
        id=section.name,
        aria_labelledby=heading,
    )


def _resource(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Iterable[str]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; form-action 'none'; base-uri 'none'"
    )
