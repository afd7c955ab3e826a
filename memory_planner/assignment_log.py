"""What the TPU compiler's memory-space assignment says of itself, read from its log.

libtpu prints, with `TPU_VMODULE=algorithm=4,memory_space_assignment=3`, its options, the schedule
as it counts time, a table of buffers in the order in which it placed them, and a table of the
places they got. The log is no interface: what is not there is told by name, so that a caller can
go on with the compiler's own mapping.
"""

import csv
import dataclasses
import re

_LINE = re.compile(r"^[IWEF]\d{4} \S+ +\d+ (algorithm|memory_space_assignment)\.cc:\d+\] (.*)$")
_OPTION = re.compile(r"^(max_size_in_bytes|alignment_in_bytes): (\d+)$")
_STEP = re.compile(r"^ (\d+): (\S+) (\S+)$")
_RESOURCE = re.compile(r"^Initial resource\[(\d+)\] = (\S+) \((\S+)\)$")
_VALUE = re.compile(r"^<(\d+) (.+?)(?: @\d+)?>$")
_REQUIRED = re.compile(
    r"^Adding required assignment for (parameter|output) value = <(\d+) .* space = def$"
)
_BUFFERS = "buffer_id,buffer_name,alt_mem_benefit,size,definition_time,use_times,use_names"
_PLACES = "buffer_id,size,offset,start_time,end_time"


class AssignmentLogError(ValueError):
    """The log is not one that this reads: another libtpu, or the log was not asked for."""


@dataclasses.dataclass(frozen=True)
class LoggedUse:
    """A reading of a buffer.

    Attributes:
      time: when.
      operation: its name.
      operand: number of the operand.
      element: of the operand, where it is a tuple.
    """

    time: int
    operation: str
    operand: int
    element: int = 0


@dataclasses.dataclass(frozen=True)
class LoggedBuffer:
    """A value as memory-space assignment saw it.

    Attributes:
      number: the compiler's, of the buffer.
      value: the compiler's number of the value that defines it, which is another one.
      name: of the HLO position that defines it, such as `fusion.2` or `while.3{1}`.
      benefit: the compiler's priority.
      size_bytes: of it.
      time: when it is defined.
      uses: in order of time.
      is_scoped: scratch of an operation rather than a value.
    """

    number: int
    value: int
    name: str
    benefit: float
    size_bytes: int
    time: int
    uses: tuple[LoggedUse, ...]
    is_scoped: bool


@dataclasses.dataclass(frozen=True)
class LoggedPlace:
    """A stay in fast memory: buffer's number; size; offset; first and last time, both included."""

    number: int
    size_bytes: int
    offset_bytes: int
    begin: int
    last: int


@dataclasses.dataclass(frozen=True)
class AssignmentLog:
    """The log of one compilation.

    Attributes:
      capacity_bytes: of fast memory that assignment may fill.
      alignment_bytes: of offsets.
      schedule: (computation, operation) at each time.
      seconds: the compiler's own estimate of each time, 0 where it printed none.
      buffers: in the order in which they were placed.
      places: what they got.
      inputs, results: numbers of values that begin in HBM and that must end there.
    """

    capacity_bytes: int
    alignment_bytes: int
    schedule: tuple[tuple[str, str], ...]
    seconds: tuple[float, ...]
    buffers: tuple[LoggedBuffer, ...]
    places: tuple[LoggedPlace, ...]
    inputs: frozenset[int]
    results: frozenset[int]


def read_log(text: str) -> AssignmentLog:
    """Read the log of the largest program in it.

    Raises:
      AssignmentLogError: something that the log should hold is missing, named.
    """
    lines = [m[2] for m in map(_LINE.match, text.splitlines()) if m is not None]
    starts = [
        n for n, line in enumerate(lines) if line == "memory_space_assignment_options::Options:"
    ]
    if not starts:
        raise AssignmentLogError(
            "the compiler's log holds no memory-space assignment: this libtpu prints it otherwise, "
            "or the program was compiled for something that is no TPU"
        )
    ends = [*starts[1:], len(lines)]
    runs = [lines[begin:end] for begin, end in zip(starts, ends, strict=True)]
    return _read(max(runs, key=len))


def _read(lines: list[str]) -> AssignmentLog:
    options = {m[1]: int(m[2]) for m in map(_OPTION.match, lines) if m is not None}
    steps = {int(m[1]): (m[2], m[3]) for m in map(_STEP.match, lines) if m is not None}
    seconds = {int(m[1]): float(m[2]) for m in map(_RESOURCE.match, lines) if m is not None}
    required: dict[str, set[int]] = {"parameter": set(), "output": set()}
    for match in filter(None, map(_REQUIRED.match, lines)):
        required[match[1]].add(int(match[2]))
    buffers, places = _table(lines, _BUFFERS), _table(lines, _PLACES)
    missing = [
        what
        for what, there in (
            ("max_size_in_bytes", "max_size_in_bytes" in options),
            ("alignment_in_bytes", "alignment_in_bytes" in options),
            ("the flattened schedule", bool(steps)),
            ("the table of buffers", buffers is not None),
            ("the table of places", places is not None),
        )
        if not there
    ]
    if missing or buffers is None or places is None:
        raise AssignmentLogError(
            f"the compiler's log of memory-space assignment lacks {missing[0]}"
        )
    try:
        return AssignmentLog(
            capacity_bytes=options["max_size_in_bytes"],
            alignment_bytes=options["alignment_in_bytes"],
            schedule=tuple(steps[n] for n in range(len(steps))),
            seconds=tuple(seconds.get(n, 0.0) for n in range(len(steps))),
            buffers=tuple(_buffer(row) for row in buffers),
            places=tuple(LoggedPlace(*map(int, row[:5])) for row in places),
            inputs=frozenset(required["parameter"]),
            results=frozenset(required["output"]),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise AssignmentLogError(
            "a table in the compiler's log of memory-space assignment is not as expected: "
            f"{error!r}"
        ) from error


def _table(lines: list[str], head: str) -> list[list[str]] | None:
    """Rows under the last header that begins so."""
    starts = [n for n, line in enumerate(lines) if line.startswith(head)]
    if not starts:
        return None
    rows = []
    for row in csv.reader(lines[starts[-1] + 1 :]):
        if not row or not row[0].isdecimal():
            break
        rows.append(row)
    return rows


def _buffer(row: list[str]) -> LoggedBuffer:
    number, value, benefit, size, time, times, names = row[:7]
    match = _VALUE.match(value)
    uses = [
        LoggedUse(int(when), *_use_name(name))
        for when, name in zip(_split(times), _split(names), strict=True)
    ]
    return LoggedBuffer(
        number=int(number),
        value=int(match[1]) if match else -1,
        name=(match[2] if match else value).replace(" ", ""),
        benefit=float(benefit),
        size_bytes=int(size),
        time=int(time),
        uses=tuple(sorted(uses, key=lambda use: use.time)),
        is_scoped=row[7:8] == ["1"],
    )


def _split(text: str) -> list[str]:
    return [part for part in text.split(";") if part]


def _use_name(text: str) -> tuple[str, int, int]:
    """`fusion.1, operand 10` or `while.2, operand 0 {3}`."""
    operation, _, rest = text.partition(", operand ")
    operand, _, index = rest.partition(" ")
    element = index.strip("{}").split(",")[0]
    return operation, int(operand), int(element) if element.isdecimal() else 0
