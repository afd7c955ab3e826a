"""Pictures of a mapping: what is drawn where, as data, as SVG and as PNG."""

import builtins
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from memory_planner.errors import MemoryPlannerError
from memory_planner.picture import Rectangle, draw_png, draw_svg, rectangles
from memory_planner.problem import MemoryMapping, MemoryProblem, Stay
from tests.memory_planner.small_problems import buffer, operation, problem

SVG = "{http://www.w3.org/2000/svg}"
MAPPING = MemoryMapping(
    (Stay(0, 0, 3, 0, False, (0,)), Stay(1, 1, 5, 4, True, (0,)), Stay(2, 3, 5, 0, False, (0,)))
)


def small() -> MemoryProblem:
    """An intermediate, an input and a result, and two operations that reserve memory."""
    operations = (*[operation()] * 5, *[operation(reserved=2)] * 2)
    return problem(
        buffer("a<b>", 0, 2),
        buffer("w", 0, 4, starts=True),
        buffer("y", 3, 4, ends=True),
        operations=operations,
    )


def test_rectangles_are_stays_and_reserved_runs() -> None:
    assert rectangles(small(), MAPPING) == (
        Rectangle(0, 3, 0, 4, "intermediate", 0, "a<b>, 4 bytes"),
        Rectangle(1, 5, 4, 8, "input", 4, "w, 4 bytes"),
        Rectangle(3, 5, 0, 4, "result", 3, "y, 4 bytes"),
        Rectangle(5, 7, 6, 8, "reserved", 5, "2 bytes"),
    )


def test_svg_has_every_stay_in_its_place_and_hatches_copies() -> None:
    root = ElementTree.fromstring(draw_svg(small(), MAPPING, width=774, height=184))
    assert root.tag == f"{SVG}svg"
    # 100 px an operation and 12.5 px a byte; the top of the drawing is at 44.
    boxes = [r for r in root.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    places = [tuple(float(r.attrib[k]) for k in ("x", "y", "width", "height")) for r in boxes]
    assert places == [
        (62, 94, 300, 50),
        (162, 44, 400, 50),
        (362, 94, 200, 50),
        (562, 44, 200, 25),
    ]
    (pattern,) = root.iter(f"{SVG}pattern")
    hatched = [r for r in root.iter(f"{SVG}rect") if pattern.attrib["id"] in r.attrib["fill"]]
    assert hatched[0].attrib["width"] == "300.0"  # the copy, from operation 1 to 4
    assert len(hatched) == 2  # and its sample below
    assert boxes[0].findtext(f"{SVG}title") == ("a<b>, 4 bytes, intermediate, operations 0 to 3")


def test_svg_is_self_contained_and_tells_the_gain() -> None:
    text = draw_svg(small(), MAPPING)
    # 5 ns for each of two births, 20 for each of three uses.
    assert "0.7 µs with all in HBM, 0.6 µs with this mapping (10.0% less" in text
    assert "not run on hardware" in text
    assert "href" not in text and "<script" not in text and "<style" not in text


def test_two_pictures_have_hatchings_of_their_own() -> None:
    names = set()
    for mapping in (MAPPING, MemoryMapping(())):
        root = ElementTree.fromstring(draw_svg(small(), mapping))
        names |= {p.attrib["id"] for p in root.iter(f"{SVG}pattern")}
    assert len(names) == 2


def test_png_is_drawn(tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw_png(small(), MAPPING, tmp_path / "full.png")
    draw_png(small(), MemoryMapping(()), tmp_path / "empty.png")
    full, empty = imread(tmp_path / "full.png"), imread(tmp_path / "empty.png")
    assert full.shape[0] > 400 and full.shape[1] > 800
    inner = (slice(100, 400), slice(150, 700))
    assert (full[inner][..., :3].min(axis=-1) < 0.9).mean() > 0.5
    assert (empty[inner][..., :3].min(axis=-1) < 0.9).mean() < 0.05


def test_without_matplotlib_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MemoryPlannerError, match=r"autoshard\[experiments\].*draw_svg"):
        draw_png(small(), MAPPING, tmp_path / "none.png")
