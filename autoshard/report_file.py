"""A `CompileReport` as a JSON file: what `report.json` is.

Every dataclass becomes an object of its fields, enums their value, tuples lists. Reading goes by
the types that the dataclasses declare, so that a damaged file is found where it is damaged.
"""

import dataclasses
import enum
import functools
import json
import os
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from autoshard.compile_report import CompileReport
from autoshard.errors import PlanError, ReportError
from autoshard.plan import Plan

FORMAT = "autoshard.report"
VERSION = 1


def to_json(report: CompileReport) -> dict[str, Any]:
    """A JSON-able dict; `from_json` reverses it."""
    return {"format": FORMAT, "version": VERSION, **_plain(report)}


def from_json(data: Any, source: str = "report") -> CompileReport:
    """Read what `to_json` made.

    Raises:
      ReportError: it is not a report, of another version, or damaged.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise ReportError(
            f"{source} is not an autoshard report: make one with experiments.plan --out=DIR, which "
            "writes DIR/report.json"
        )
    if data.get("version") != VERSION:
        raise ReportError(
            f"{source} has report version {data.get('version')!r} and this autoshard reads "
            f"{VERSION}: make the report again with this version"
        )
    try:
        return _read(CompileReport, data, "report")
    except (_DamageError, PlanError) as error:
        raise ReportError(
            f"{source} is damaged ({error}): make the report again, or restore the file from a "
            "backup"
        ) from error


def save_report(report: CompileReport, path: str | os.PathLike[str]) -> None:
    """Write a report as JSON, replacing the file at once.

    Raises:
      ReportError: it cannot be written.
    """
    target = pathlib.Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    text = json.dumps(to_json(report), separators=(",", ":"))
    try:
        temporary.write_text(f"{text}\n", encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ReportError(
            f"cannot write the report to {target}: {error.strerror or error}. Choose a directory "
            "that exists and has room"
        ) from error


def load_report(path: str | os.PathLike[str]) -> CompileReport:
    """Read a report that `save_report` wrote.

    Raises:
      ReportError: the file is missing, not JSON, not a report, or damaged.
    """
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"cannot read the report {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(
            f"the report {path} is not JSON ({error}): it may have been cut off; make it again"
        ) from error
    return from_json(data, str(path))


def is_report(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is a report, damaged or not."""
    try:
        with open(path, encoding="utf-8") as file:
            return re.search(rf'"format"\s*:\s*"{FORMAT}"', file.read(200)) is not None
    except (OSError, UnicodeDecodeError):
        return False


class _DamageError(Exception):
    """A value is not of the type that its field declares."""


def _plain(value: Any) -> Any:
    if isinstance(value, Plan):
        return value.to_json()
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _fields(kind: type) -> Mapping[str, Any]:
    """Field name -> type of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _read(hint: Any, data: Any, where: str) -> Any:
    """`data` as the type that `hint` declares.

    Raises:
      _DamageError: it is of another type.
    """
    if hint is Plan:
        return Plan.from_json(data, where)
    if isinstance(hint, types.UnionType):
        return _read_union(hint, data, where)
    if typing.get_origin(hint) is tuple:
        return _read_tuple(typing.get_args(hint), data, where)
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(hint, data, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(data)
        except ValueError as error:
            raise _DamageError(f"{where}: {error}") from error
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, hint) or (isinstance(data, bool) and hint is not bool):
        raise _DamageError(f"{where} is {data!r:.60}, not {hint.__name__}")
    return data


def _read_union(hint: types.UnionType, data: Any, where: str) -> Any:
    """One of several types, None among them or not."""
    problems = []
    for option in typing.get_args(hint):
        if option is type(None):
            if data is None:
                return None
            continue
        try:
            return _read(option, data, where)
        except _DamageError as error:
            problems.append(str(error))
    raise _DamageError("; ".join(problems))


def _read_tuple(items: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _DamageError(f"{where} is {data!r:.60}, not a list")
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_read(items[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if len(items) != len(data):
        raise _DamageError(f"{where} has {len(data)} entries, not {len(items)}")
    pairs = zip(items, data, strict=True)
    return tuple(_read(item, value, f"{where}[{i}]") for i, (item, value) in enumerate(pairs))


def _read_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise _DamageError(f"{where} is {data!r:.60}, not an object")
    fields = _fields(kind)
    values = {
        name: _read(hint, data[name], f"{where}.{name}")
        for name, hint in fields.items()
        if name in data
    }
    missing = [f.name for f in dataclasses.fields(kind) if f.name not in data and _required(f)]
    if missing:
        raise _DamageError(f"{where} has no {', '.join(missing)}")
    try:
        return kind(**values)
    except ValueError as error:
        raise _DamageError(f"{where}: {error}") from error


def _required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field must be in a file: those with a default came later."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
