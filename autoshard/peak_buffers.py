"""What fills the memory of a compiled program at its peak, read from what the compiler dumps.

Asked to (`xla_dump_to`), XLA writes these beside the program, also when it then refuses it:

    *after_optimizations-buffer-assignment.txt   allocations, and the values that share them
    *after_optimizations-live-range.txt          the values alive at the peak
    *after_optimizations.txt                     the scheduled program, with its sources

A value is often several in one place (a loop's state before, in and after the loop), so places are
counted, not values.
"""

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
_PEAK = re.compile(r"\s+Live ranges at \d+ \(peak\):")
_LIVE = re.compile(r"\s+([^\s{]+)(\{[\d,]*\}): (\d+) bytes")
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
    alive = _alive_at_peak(_lines(assignment.with_name(f"{stem}-live-range.txt")))
    by_place = _largest_places(values, alive)
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


def _alive_at_peak(lines: Iterable[str]) -> set[tuple[str, str]]:
    """(name, index) of the values alive at the peak."""
    alive = set()
    at_peak = False
    for line in lines:
        match = _LIVE.match(line) if at_peak else None
        if match is not None:
            alive.add((match[1], match[2]))
        elif at_peak:
            break
        at_peak = at_peak or bool(_PEAK.match(line))
    return alive


def _largest_places(
    values: Iterable[_Value], alive: set[tuple[str, str]]
) -> Mapping[_Place, _Value]:
    """The places of the largest values at the peak, largest first; all count if none is known."""
    largest: dict[_Place, _Value] = {}
    for value in values:
        known = largest.get(value.place)
        if (not alive or (value.name, value.index) in alive) and (
            known is None or value.size_bytes > known.size_bytes
        ):
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
    op_name, source = max(candidates, key=lambda origin: (bool(origin[1]), bool(origin[0])))
    return LargeBuffer(largest.size_bytes, shape, op_name or largest.name, source)
