"""Charts as values: what plotly.js draws, and the words for who cannot see it.

A figure is plotly's own JSON. Colours of text and grid follow the reader's light or dark setting,
so they are set in the page by `page.js`; colours of series are here.
"""

import dataclasses
import html
from collections.abc import Mapping
from typing import Any

from autoshard.html_report.markup import clean

# Told apart by people with the common kinds of colour blindness, on white and on black
# (after Okabe and Ito, 2008, "Color Universal Design").
BLUE = "#4a90d9"
ORANGE = "#e69f00"
GREEN = "#2aa876"
VERMILION = "#d55e00"
PURPLE = "#b07cc6"
SKY = "#7cc4ea"
GREY = "#8b95a1"
BROWN = "#a57c52"
PINK = "#e08fb0"
SLATE = "#5f7488"

_BY_KIND = {
    "matmul": BLUE,
    "convolution": BLUE,
    "kernel": PURPLE,
    "fusion": SKY,
    "elementwise": SKY,
    "copy": GREY,
    "wait": VERMILION,
    "loop": BROWN,
    "all-reduce": ORANGE,
    "all-gather": GREEN,
    "reduce-scatter": VERMILION,
    "all-to-all": PINK,
    "collective-permute": PURPLE,
    "send-recv": BROWN,
}
_OTHERS = (SKY, PINK, BROWN, GREY, GREEN, PURPLE)


@dataclasses.dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
      name: what the page knows it by; `element_id` is its place.
      title: its heading.
      description: what it shows, with its main figures, in a sentence or two.
      traces: plotly's traces.
      layout: plotly's layout.
      height_px: its height.
    """

    name: str
    title: str
    description: str
    traces: tuple[Mapping[str, Any], ...]
    layout: Mapping[str, Any]
    height_px: int

    @property
    def element_id(self) -> str:
        """The id of the element that it is drawn into; sections have ids of their own."""
        return f"chart-{self.name}"


def label(text: str, limit: int = 120) -> str:
    """A user's string for plotly, which reads a few HTML tags in labels and hover texts."""
    text = clean(text)
    return html.escape(text if len(text) <= limit else f"{text[: limit - 1]}…", quote=False)


def hover(*lines: str) -> str:
    """Hover text of several lines, each escaped; empty ones are left out."""
    return "<br>".join(label(line) for line in lines if line)


def kind_color(kind: str) -> str:
    """The colour of a kind of operation; of an unknown one, always the same by its letters."""
    return _BY_KIND.get(kind, _OTHERS[sum(map(ord, kind)) % len(_OTHERS)])


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """An axis with a title; `settings` are plotly's."""
    return {"title": {"text": title}, "automargin": True, **settings}


def legend_below(height_px: int) -> dict[str, Any]:
    """A legend just below the title of the horizontal axis, in a chart of that height."""
    return {"orientation": "h", "y": -62 / max(80, height_px - 100), "traceorder": "normal"}


def vertical_line(x: float, text: str, color: str = VERMILION) -> dict[str, Any]:
    """Layout entries of a dashed line across the chart at `x`, with a label above it."""
    line = {
        "type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1,
        "line": {"color": color, "width": 2, "dash": "dash"},
    }  # fmt: skip
    note = {
        "xref": "x", "yref": "paper", "x": x, "y": 1, "yanchor": "bottom", "showarrow": False,
        "text": text,
    }  # fmt: skip
    return {"shapes": [line], "annotations": [note]}


def scale_of(seconds: float) -> tuple[float, str]:
    """(seconds, name) of the unit that suits a duration: `(1e-3, "ms")`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return scale, unit
    return 1e-6, "µs"


GIB = 2**30


def byte_scale(size: float) -> tuple[float, str]:
    """(bytes, name) of the unit that suits a size: `(2**30, "GiB")`."""
    for scale, unit in ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if size >= scale:
            return scale, unit
    return 1.0, "bytes"
