"""A part of the page: a heading, what stands below it, and its charts."""

import dataclasses
from xml.etree import ElementTree

from autoshard.html_report.charts import Chart
from autoshard.html_report.markup import Node, element, paragraph


@dataclasses.dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
      name: its id, for links within the page.
      title: its heading.
      body: what stands below the heading, the frames of the charts among it.
      charts: what to draw into the frames.
    """

    name: str
    title: str
    body: tuple[Node, ...]
    charts: tuple[Chart, ...] = ()


def chart_frame(chart: Chart) -> ElementTree.Element:
    """Where a chart is drawn: heading, picture, and the same in words."""
    return element(
        "figure",
        element("h3", chart.title),
        element(
            "div",
            class_="chart",
            id=chart.element_id,
            role="img",
            aria_label=f"{chart.title}. {chart.description}",
            style=f"height:{chart.height_px}px",
        ),
        element("figcaption", chart.description),
    )


def folded(summary: str, *body: Node) -> ElementTree.Element:
    """Details that open at a click, closed at first."""
    return element("details", element("summary", summary), *body)


def remark(text: str) -> ElementTree.Element:
    """A sentence in small print."""
    return paragraph(text, class_="remark")
