"""Problems and packings as MiniMalloc's files have them.

    id,lower,upper,size          with optional columns alignment, gaps, offset, in any order
    b1,0,3,4

A column `upper` is exclusive. Older files call it `end`, and there it is inclusive, in `gaps`, too.
Other names: `lower` may be `begin` or `start`; `id` may be `buffer` or `buffer_id`. Gaps are
"begin-end" pairs with spaces between. An `offset` is a fixed one; empty where there is none.
"""

import dataclasses
from pathlib import Path

from memory_planner.offsets.problem import Buffer, OffsetError, OffsetProblem, OffsetSolution

_SYNONYMS = {
    "begin": "lower",
    "start": "lower",
    "end": "upper",
    "buffer": "id",
    "buffer_id": "id",
}
_REQUIRED = ("id", "lower", "upper", "size")
_OPTIONAL = ("alignment", "gaps", "offset")


@dataclasses.dataclass(frozen=True)
class _Header:
    """Names of the columns, and what to add to an upper time to make it exclusive."""

    columns: tuple[str, ...]
    upper_addend: int


def _header(line: str) -> _Header:
    named = [name.strip() for name in line.split(",")]
    columns = tuple(_SYNONYMS.get(name, name) for name in named)
    for name in columns:
        if name not in (*_REQUIRED, *_OPTIONAL):
            raise OffsetError(f"no column is called {name!r}: {', '.join(_REQUIRED + _OPTIONAL)}")
        if columns.count(name) > 1:
            raise OffsetError(f"two columns mean {name!r}: {line}")
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise OffsetError(f"the header lacks {', '.join(missing)}: {line}")
    return _Header(columns, 1 if "end" in named else 0)


def _integer(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise OffsetError(f"{what} is {text!r}, not an integer") from error


def _gap(text: str, upper_addend: int) -> tuple[int, int]:
    if "@" in text:
        raise OffsetError(
            f"gap {text!r} keeps a window of the buffer in memory, which is not supported: leave "
            "the window out to free all of it, or the gap to free none"
        )
    begin, dash, end = text.partition("-")
    if not dash:
        raise OffsetError(f"gap {text!r} is not of the form begin-end")
    return _integer(begin, "a gap's begin"), _integer(end, "a gap's end") + upper_addend


def _buffer(line: str, header: _Header) -> Buffer:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(header.columns):
        raise OffsetError(f"{len(fields)} fields for {len(header.columns)} columns: {line}")
    row = dict(zip(header.columns, fields, strict=True))
    offset = row.get("offset", "")
    return Buffer(
        name=row["id"],
        begin=_integer(row["lower"], "lower"),
        end=_integer(row["upper"], "upper") + header.upper_addend,
        size_bytes=_integer(row["size"], "size"),
        alignment=_integer(row.get("alignment", "1"), "alignment"),
        offset=_integer(offset, "offset") if offset else None,
        gaps=tuple(_gap(gap, header.upper_addend) for gap in row.get("gaps", "").split()),
    )


def parse_csv(text: str, source: str = "text") -> OffsetProblem:
    """A problem from the text of a file; empty lines are passed over.

    Args:
      source: name of the file, for errors.

    Raises:
      OffsetError: what is wrong with which line.
    """
    header: _Header | None = None
    lines: dict[str, int] = {}
    buffers = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            if header is None:
                header = _header(line)
                continue
            buffer = _buffer(line, header)
            if buffer.name in lines:
                raise OffsetError(f"{buffer.name!r} is in line {lines[buffer.name]} already")
        except OffsetError as error:
            raise OffsetError(f"{source}, line {number}: {error}") from error
        lines[buffer.name] = number
        buffers.append(buffer)
    if header is None:
        raise OffsetError(f"{source} is empty: its first line names the columns")
    return OffsetProblem(tuple(buffers))


def read_csv(path: str | Path) -> OffsetProblem:
    """A problem from a file.

    Raises:
      OffsetError: as `parse_csv`; or the file is no text.
      OSError: it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OffsetError(f"{path} is not a text file: {error}") from error
    return parse_csv(text, str(path))


def format_csv(problem: OffsetProblem, solution: OffsetSolution | None = None) -> str:
    """The text of a file; with a solution, its offsets; columns that say nothing are left out.

    Raises:
      OffsetError: a name would break its line.
    """
    buffers = problem.buffers
    offsets = [b.offset for b in buffers] if solution is None else solution.offsets_bytes
    columns: dict[str, list[str]] = {
        "id": [b.name for b in buffers],
        "lower": [str(b.begin) for b in buffers],
        "upper": [str(b.end) for b in buffers],
        "size": [str(b.size_bytes) for b in buffers],
    }
    if any(b.alignment != 1 for b in buffers):
        columns["alignment"] = [str(b.alignment) for b in buffers]
    if any(b.gaps for b in buffers):
        columns["gaps"] = [" ".join(f"{a}-{b}" for a, b in buffer.gaps) for buffer in buffers]
    if any(offset is not None for offset in offsets):
        columns["offset"] = ["" if offset is None else str(offset) for offset in offsets]
    for name in columns["id"]:
        if name != name.strip() or {",", "\n", "\r"} & set(name):
            raise OffsetError(f"{name!r} cannot be an id: no commas, line ends, or outer spaces")
    rows = zip(*columns.values(), strict=True)
    return "".join(",".join(row) + "\n" for row in [tuple(columns), *rows])


def write_csv(
    path: str | Path, problem: OffsetProblem, solution: OffsetSolution | None = None
) -> None:
    """Write what `format_csv` makes.

    Raises:
      OffsetError: as `format_csv`.
      OSError: the file cannot be written.
    """
    Path(path).write_text(format_csv(problem, solution), encoding="utf-8")
