"""report.json: what is written is read back equal, and what is damaged is named."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoshard.errors import ReportError
from autoshard.report_file import from_json, is_report, load_report, save_report, to_json
from tests.autoshard import synthetic_report


@pytest.mark.parametrize(
    "make", [synthetic_report.fitting, synthetic_report.too_large, synthetic_report.hostile]
)
def test_round_trip(make: Callable[[], Any], tmp_path: Path) -> None:
    report = make()
    save_report(report, tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == report
    assert is_report(tmp_path / "report.json")
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def change(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one entry replaced; `del` removes it."""
    data = copy.deepcopy(data)
    *outer, last = path.split(".")
    place: Any = data
    for key in outer:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if value == "del":
        del place[last]
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return data


def test_a_field_that_came_later_has_its_default() -> None:
    report = synthetic_report.fitting()
    data = change(to_json(report), "memory.host_arguments_bytes", "del")
    assert from_json(data) == report


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "x", "is not an autoshard report"),
        ("version", 99, "has report version 99"),
        ("timeline", "del", "report has no timeline"),
        ("timeline.step_s", "1", r"report.timeline.step_s is '1', not float"),
        ("timeline.spans", {}, r"timeline.spans is {}, not a list"),
        ("timeline.spans.1.repeats", 2.5, r"timeline.spans\[1\].repeats is 2.5, not int"),
        ("timeline.spans.1.repeats", True, "is True, not int"),
        ("timeline.operations.0.basis", "guess", "'guess' is not a valid Basis"),
        ("timeline.unmodelled.0", ["a"], r"unmodelled\[0\] has 1 entries, not 2"),
        ("memory.temporaries_bytes", "del", "report.memory has no temporaries_bytes"),
        ("memory", [], "report.memory is"),
        ("plan.mesh", "del", "is damaged"),
        ("command", None, "report.command is None, not str"),
    ],
)
def test_damage_is_named(path: str, value: Any, message: str) -> None:
    data = change(to_json(synthetic_report.fitting()), path, value)
    with pytest.raises(ReportError, match=message):
        from_json(data)


def test_files_that_are_no_reports(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ReportError, match="cannot read"):
        load_report(path)
    assert not is_report(path)
    save_report(synthetic_report.fitting(), path)
    path.write_text(path.read_text()[:5000])
    assert is_report(path)
    with pytest.raises(ReportError, match="not JSON"):
        load_report(path)
    path.write_text(json.dumps([1]))
    with pytest.raises(ReportError, match="not an autoshard report"):
        load_report(path)
    path.write_bytes(b"\xff\xfe")
    assert not is_report(path)
    with pytest.raises(ReportError, match="not JSON"):
        load_report(path)
    with pytest.raises(ReportError, match="cannot write"):
        save_report(synthetic_report.fitting(), tmp_path / "missing" / "report.json")
