"""An episode as a picture: fast memory's addresses over time, each stay a rectangle.

address ^
capacity|- - - - - - - - - - - -      grey: what operations reserve for themselves
        |      +-----+
        |      |/////|   +---+        hatched: the copy that fills the stay is under way
        |  +---+--+--+---+   |
        |  |      |  |       |
        +----------------------> operation
"""

import dataclasses
import html
import zlib
from pathlib import Path

from memory_planner.errors import MemoryPlannerError
from memory_planner.problem import Buffer, MemoryMapping, MemoryProblem
from memory_planner.validate import duration_ns

# Kind of a buffer -> colour, told apart by the colour-blind, too, on white and on black.
COLOURS = {"input": "#4477aa", "intermediate": "#66bb77", "result": "#dd8833"}
RESERVED_COLOUR = "#999999"
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 62, 12, 44, 40
MEBIBYTE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Rectangle:
    """A stay, or what operations reserve.

    Attributes:
      begin, end: operations.
      low_bytes, high_bytes: addresses.
      kind: a key of `COLOURS`, or "reserved".
      filled: operation before which the copy that fills it is done; `begin` if there is none.
      label: what it holds.
    """

    begin: int
    end: int
    low_bytes: int
    high_bytes: int
    kind: str
    filled: int
    label: str


def rectangles(problem: MemoryProblem, mapping: MemoryMapping) -> tuple[Rectangle, ...]:
    """What there is to draw: the stays, then what runs of operations reserve."""
    drawn = []
    for stay in mapping.stays:
        buffer = problem.buffers[stay.buffer]
        first = min((buffer.uses[use].time for use in stay.uses), default=stay.begin)
        drawn.append(
            Rectangle(
                begin=stay.begin,
                end=stay.end,
                low_bytes=stay.offset_bytes,
                high_bytes=stay.offset_bytes + buffer.size_bytes,
                kind=kind(buffer),
                filled=first if stay.is_copied else stay.begin,
                label=f"{buffer.name}, {buffer.size_bytes} bytes",
            )
        )
    return (*drawn, *_reserved(problem))


def kind(buffer: Buffer) -> str:
    """Key of `COLOURS`."""
    if buffer.starts_in_hbm:
        return "input"
    return "result" if buffer.ends_in_hbm else "intermediate"


def title(problem: MemoryProblem, mapping: MemoryMapping) -> str:
    """The program, and what the mapping gains."""
    slow_ns, after_ns = problem.slow_ns, duration_ns(problem, mapping)
    gain = (slow_ns - after_ns) / max(slow_ns, 1)
    return (
        f"{problem.name}: {slow_ns / 1e3:,.1f} µs with all in HBM, {after_ns / 1e3:,.1f} µs with "
        f"this mapping ({gain:.1%} less; estimated, not run on hardware)"
    )


def draw_png(problem: MemoryProblem, mapping: MemoryMapping, path: str | Path) -> None:
    """Writes the picture as PNG.

    Raises:
      MemoryPlannerError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
        from matplotlib.patches import Rectangle as Box
    except ModuleNotFoundError as error:
        raise MemoryPlannerError(
            "A picture as PNG needs matplotlib: pip install 'autoshard[experiments]', or take "
            "draw_svg, which needs nothing."
        ) from error
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for box in rectangles(problem, mapping):
        low, height = box.low_bytes / MEBIBYTE, (box.high_bytes - box.low_bytes) / MEBIBYTE
        colour = COLOURS.get(box.kind, RESERVED_COLOUR)
        edge = colour if box.kind == "reserved" else "black"
        width = box.end - box.begin
        axes.add_patch(Box((box.begin, low), width, height, fc=colour, ec=edge, lw=0.4, alpha=0.85))
        if box.filled > box.begin:
            width = box.filled - box.begin
            axes.add_patch(Box((box.begin, low), width, height, fc="none", hatch="////", lw=0))
    axes.axhline(problem.capacity_bytes / MEBIBYTE, color="#bb3333", lw=1.2, ls="--")
    axes.set_xlim(0, max(1, len(problem.operations)))
    axes.set_ylim(0, problem.capacity_bytes / MEBIBYTE * 1.03)
    axes.set_xlabel("operation of the schedule")
    axes.set_ylabel("address in fast memory, MiB")
    axes.set_title(title(problem, mapping), fontsize=10)
    handles = [Patch(fc=colour, ec="black", label=name) for name, colour in COLOURS.items()]
    handles.append(Patch(fc=RESERVED_COLOUR, label="reserved"))
    handles.append(Patch(fc="white", ec="black", hatch="////", label="copy under way"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.savefig(path, dpi=110)


def draw_svg(
    problem: MemoryProblem, mapping: MemoryMapping, width: int = 900, height: int = 420
) -> str:
    """The picture as one `<svg>` element for a page of HTML: no scripts, styles or other files.

    Text takes the page's colour. Each rectangle has its label as a tooltip.
    """
    text = title(problem, mapping)
    # Two pictures of a page must not share the name of their hatching.
    hatch = f"copy-{zlib.crc32(repr((problem.name, mapping)).encode()):08x}"
    canvas = _Canvas(problem, width, height, hatch)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="sans-serif" font-size="11" fill="currentColor">',
        f"<title>{html.escape(text)}</title>",
        f'<defs><pattern id="{hatch}" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><line y2="6" stroke="#000" stroke-width="2" /></pattern>'
        "</defs>",
        f'<text x="{MARGIN_LEFT}" y="16">{html.escape(text)}</text>',
        *(canvas.box(box) for box in rectangles(problem, mapping)),
        canvas.axes(),
        canvas.legend(),
        "</svg>",
    ]
    return "\n".join(parts)


@dataclasses.dataclass(frozen=True)
class _Canvas:
    """Places what is drawn in the picture."""

    problem: MemoryProblem
    width: int
    height: int
    hatch: str

    def x(self, operation: int) -> float:
        """Of an operation's beginning."""
        inner = self.width - MARGIN_LEFT - MARGIN_RIGHT
        return MARGIN_LEFT + inner * operation / max(1, len(self.problem.operations))

    def y(self, address_bytes: int) -> float:
        """Of an address; the capacity is at the top."""
        inner = self.height - MARGIN_TOP - MARGIN_BOTTOM
        return MARGIN_TOP + inner * (1 - address_bytes / self.problem.capacity_bytes)

    def box(self, box: Rectangle) -> str:
        """A rectangle, hatched while it is filled."""
        colour = COLOURS.get(box.kind, RESERVED_COLOUR)
        stroke = "none" if box.kind == "reserved" else "#000"
        label = html.escape(f"{box.label}, {box.kind}, operations {box.begin} to {box.end}")
        drawn = (
            f"<rect {self._place(box, box.end)} fill="
            f'"{colour}" stroke="{stroke}" stroke-width="0.5"><title>{label}</title></rect>'
        )
        if box.filled > box.begin:
            place = self._place(box, box.filled)
            drawn += f'<rect {place} fill="url(#{self.hatch})" pointer-events="none" />'
        return drawn

    def _place(self, box: Rectangle, end: int) -> str:
        left, top = self.x(box.begin), self.y(box.high_bytes)
        width, height = self.x(end) - left, self.y(box.low_bytes) - top
        return f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'

    def axes(self) -> str:
        """The capacity, the two axes and what they count."""
        left, right = self.x(0), self.x(len(self.problem.operations))
        top, bottom = self.y(self.problem.capacity_bytes), self.y(0)
        capacity = f"{self.problem.capacity_bytes / MEBIBYTE:,.1f} MiB"
        count = len(self.problem.operations)
        return (
            f'<line x1="{left:.1f}" y1="{top:.1f}" x2="{right:.1f}" y2="{top:.1f}" '
            'stroke="#bb3333" stroke-dasharray="6 4" />'
            f'<path d="M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}" fill="none" '
            'stroke="currentColor" />'
            f'<text x="{left - 4:.1f}" y="{top + 4:.1f}" text-anchor="end">{capacity}</text>'
            f'<text x="{left - 4:.1f}" y="{bottom:.1f}" text-anchor="end">0</text>'
            f'<text x="{right:.1f}" y="{bottom + 14:.1f}" text-anchor="end">'
            f"operation {count}</text>"
        )

    def legend(self) -> str:
        """Colours and hatching, in a row below."""
        fills = {**COLOURS, "reserved": RESERVED_COLOUR, "copy under way": f"url(#{self.hatch})"}
        row = self.height - 12
        parts = []
        for number, (name, fill) in enumerate(fills.items()):
            left = MARGIN_LEFT + 130 * number
            parts.append(
                f'<rect x="{left}" y="{row - 9}" width="12" height="10" fill="#fff" />'
                f'<rect x="{left}" y="{row - 9}" width="12" height="10" fill="{fill}" '
                f'stroke="currentColor" stroke-width="0.5" />'
                f'<text x="{left + 17}" y="{row}">{name}</text>'
            )
        return "".join(parts)


def _reserved(problem: MemoryProblem) -> list[Rectangle]:
    """A rectangle at the top for each run of operations that reserve as much."""
    runs: list[Rectangle] = []
    for time, operation in enumerate(problem.operations):
        low_bytes = max(0, problem.capacity_bytes - operation.reserved_bytes)
        if operation.reserved_bytes <= 0:
            continue
        if runs and runs[-1].end == time and runs[-1].low_bytes == low_bytes:
            runs[-1] = dataclasses.replace(runs[-1], end=time + 1)
            continue
        label = f"{operation.reserved_bytes} bytes"
        capacity = problem.capacity_bytes
        runs.append(Rectangle(time, time + 1, low_bytes, capacity, "reserved", time, label))
    return runs
