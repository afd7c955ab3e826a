"""What fills the memory of a compiled program at its peak, read from what the compiler dumps.

Asked to (`xla_dump_to`), XLA writes these beside the program, also when it then refuses it:

    *after_optimizations-buffer-assignment.txt   allocations, and the values that share them
    *after_optimizations-live-range.txt          from which instruction to which a value is alive
    *after_optimizations.txt                     the scheduled program, with its sources

A value is often several in one place (a loop's state before, in and after the loop), so places are
counted, not values. The peak that the second file names is not used: it leaves out what is alive
only inside a loop.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from autoshard.compiled_program import LargeBuffer
from passes.hlo.source_frames import SourceTables

KEPT_BUFFERS = 10

# In place of a source: an input of the program, whose `op_name` is its path, `state.params['w']`.
ARGUMENT = "argument"

# Of the largest; what is smaller (loop counters) tells nothing.
_SMALLEST_SHARE = 1e-3

_ASSIGNMENT = "*after_optimizations-buffer-assignment.txt"
_ALLOCATION = re.compile(r"allocation (\d+): size (\d+), (.*)")
_VALUE = re.compile(
    r" value: <\d+ ([^\s{]+)(\{[\d,]*\})?(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)"
)
_RANGE = re.compile(r"\s+([^\s{]+)(\{[\d,]*\}):(\d+)-(\d+)$")
_COLOR = re.compile(r"color (\d+)")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = ")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_LAYOUT = re.compile(r"(?<=\])\{[^{}]*\}")

# A place in memory: number of the allocation, byte in it.
_Place = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PeakMemory:
    """The device memory of a program.

    Attributes:
      total_bytes: of everything that the compiler placed there.
      buffers: the largest that are alive at the peak, largest first.
    """

    total_bytes: int
    buffers: tuple[LargeBuffer, ...]


@dataclasses.dataclass(frozen=True)
class _Value:
    name: str
    index: str
    size_bytes: int
    place: _Place
    shape: str
    is_argument: bool


def read_peak(folder: Path) -> PeakMemory | None:
    """Read a dump; None if the compiler came not far enough to write one, or writes another form.

    Args:
      folder: what `xla_dump_to` named.
    """
    found = sorted(folder.glob(_ASSIGNMENT), key=lambda path: path.stat().st_size)
    if not found:
        return None
    assignment = found[-1]  # the program; smaller ones are the compiler's helpers
    stem = assignment.name.removesuffix("-buffer-assignment.txt")
    total_bytes, values = _read_assignment(_lines(assignment))
    ranges = _read_ranges(_lines(assignment.with_name(f"{stem}-live-range.txt")))
    by_place = _largest_places(_alive_at_peak(values, ranges))
    sharing: dict[_Place, list[_Value]] = {place: [] for place in by_place}
    for value in values:
        if value.place in sharing and value.size_bytes == by_place[value.place].size_bytes:
            sharing[value.place].append(value)
    names = {value.name for group in sharing.values() for value in group}
    origins = _origins(_lines(assignment.with_name(f"{stem}.txt")), names)
    buffers = [_buffer(by_place[p], group, origins) for p, group in sharing.items()]
    floor = buffers[0].size_bytes * _SMALLEST_SHARE if buffers else 0
    return PeakMemory(total_bytes, tuple(b for b in buffers if b.size_bytes >= floor))


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from file


def _read_assignment(lines: Iterable[str]) -> tuple[int, list[_Value]]:
    """Bytes of the default memory space, and the values in it.

    The bytes of a computation that runs inside an instruction (`thread-local`) are none.
    """
    total = 0
    values = []
    number = -1
    given = False
    for line in lines:
        if allocation := _ALLOCATION.match(line):
            color = _COLOR.search(allocation[3])
            counts = color is None and "thread-local" not in allocation[3]
            number = int(allocation[1]) if counts else -1
            given = allocation[3].startswith("parameter ")
            total += int(allocation[2]) if counts else 0
        elif number >= 0 and (value := _VALUE.match(line)):
            place = (number, int(value[4]))
            index, shape = value[2] or "{}", value[5].strip()
            values.append(_Value(value[1], index, int(value[3]), place, shape, given))
    return total, values


def _read_ranges(lines: Iterable[str]) -> Mapping[tuple[str, str], tuple[int, int]]:
    """(name, index) of a value -> its first and last instruction, both included."""
    matches = (_RANGE.match(line.rstrip("\n")) for line in lines)
    return {(m[1], m[2]): (int(m[3]), int(m[4])) for m in matches if m}


def _alive_at_peak(
    values: Sequence[_Value], ranges: Mapping[tuple[str, str], tuple[int, int]]
) -> list[_Value]:
    """The values alive when the places in use are largest; all of them if no range is known."""
    known = [(ranges[v.name, v.index], v) for v in values if (v.name, v.index) in ranges]
    if not known:
        return list(values)
    events = [(first, True, value) for (first, _), value in known]
    events += [(last + 1, False, value) for (_, last), value in known]
    events.sort(key=lambda event: event[:2])  # at one instruction, what ends makes room first
    users: dict[_Place, list[int]] = collections.defaultdict(list)
    total = largest = peak = 0
    for time, begins, value in events:
        sizes = users[value.place]
        total -= max(sizes, default=0)
        if begins:
            sizes.append(value.size_bytes)
        else:
            sizes.remove(value.size_bytes)
        total += max(sizes, default=0)
        if total > largest:
            largest, peak = total, time
    return [value for (first, last), value in known if first <= peak <= last]


def _largest_places(values: Iterable[_Value]) -> Mapping[_Place, _Value]:
    """The places with the largest values, largest first."""
    largest: dict[_Place, _Value] = {}
    for value in values:
        known = largest.get(value.place)
        if known is None or value.size_bytes > known.size_bytes:
            largest[value.place] = value
    ordered = sorted(largest.items(), key=lambda item: (-item[1].size_bytes, item[0]))
    return dict(ordered[:KEPT_BUFFERS])


def _origins(lines: Iterable[str], names: set[str]) -> Mapping[str, tuple[str, str]]:
    """For each instruction of these names its `op_name` and its source; either may be empty."""
    tables = SourceTables()
    found: dict[str, tuple[str, int]] = {}
    for line in lines:
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            tables.feed(line.rstrip("\n"))
        elif instruction[1] in names:
            op_name, frame = _OP_NAME.search(line), _FRAME.search(line)
            found[instruction[1]] = (op_name[1] if op_name else "", int(frame[1]) if frame else 0)
    sources = tables.sources()
    return {
        name: (op_name.replace("\\'", "'"), sources.get(frame, ""))
        for name, (op_name, frame) in found.items()
    }


def _buffer(
    largest: _Value, sharing: Sequence[_Value], origins: Mapping[str, tuple[str, str]]
) -> LargeBuffer:
    """Told by the value that says most about where it comes from; an argument by its own name."""
    shape = _LAYOUT.sub("", largest.shape)
    if largest.is_argument:
        # Its result may share the place; the argument stands first.
        op_name, _ = origins.get(sharing[0].name, ("", ""))
        return LargeBuffer(largest.size_bytes, shape, op_name or largest.name, ARGUMENT)
    candidates = [origins.get(value.name, ("", "")) for value in (largest, *sharing)]
    op_name, source = max(candidates, key=_telling)
    return LargeBuffer(largest.size_bytes, shape, op_name or largest.name, source)


def _telling(origin: tuple[str, str]) -> tuple[bool, bool, bool]:
    """How much an (op_name, source) says; a loop less than what fills its state."""
    op_name, source = origin
    return bool(source), bool(op_name), not op_name.endswith("while")
