"""Buffers to be packed into one memory, and what comes of it.

capacity  +-----------------------------+
          |      +-------+   +------+   |      a buffer is a rectangle whose place in time
  offset  |      |   b   |   |      |   |      (begin to end) and height (size) are given;
    ^     |  +---+---+---+   |  d   |   |      its offset is to be found, so that no two
    |     |  |   a   |  +----+---+  |   |      rectangles overlap
    0     +--+-------+--+---c----+--+---+--> time
"""

import dataclasses
import enum
import functools


class OffsetError(ValueError):
    """A problem, a file or an argument that makes no sense."""


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One buffer.

    Attributes:
      name: unique in its problem.
      begin: first time at which it is live, in any integer unit.
      end: the interval is half-open: at `end` its bytes are free again. With `end == begin` it is
        never live.
      size_bytes: 0 or more.
      alignment: its offset is a multiple of this.
      offset: fixed offset in bytes, or None to have one found.
      gaps: half-open intervals within its life in which it needs no memory; in order, apart.

    Raises:
      OffsetError: one of these makes no sense.
    """

    name: str
    begin: int
    end: int
    size_bytes: int
    alignment: int = 1
    offset: int | None = None
    gaps: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        who = f"buffer {self.name!r}"
        if self.end < self.begin:
            raise OffsetError(f"{who} ends at {self.end}, before it begins at {self.begin}")
        if self.size_bytes < 0:
            raise OffsetError(f"{who} has a size of {self.size_bytes} bytes: at least 0")
        if self.alignment < 1:
            raise OffsetError(f"{who} has an alignment of {self.alignment}: at least 1")
        if self.offset is not None and (self.offset < 0 or self.offset % self.alignment):
            raise OffsetError(
                f"{who} is fixed at offset {self.offset}, which is no multiple of its alignment "
                f"{self.alignment} from 0 up"
            )
        at = self.begin
        for begin, end in self.gaps:
            if not at <= begin < end <= self.end:
                raise OffsetError(
                    f"{who}, live [{self.begin}, {self.end}), has a gap [{begin}, {end}): gaps "
                    "lie within its life, in order, and do not overlap"
                )
            at = end

    @functools.cached_property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """The half-open intervals in which it occupies memory: its life without its gaps."""
        if not self.size_bytes:
            return ()
        starts = (self.begin, *(end for _, end in self.gaps))
        ends = (*(begin for begin, _ in self.gaps), self.end)
        return tuple((a, b) for a, b in zip(starts, ends, strict=True) if a < b)


@dataclasses.dataclass(frozen=True)
class OffsetProblem:
    """Buffers that share one memory.

    Raises:
      OffsetError: two buffers have one name.
    """

    buffers: tuple[Buffer, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for buffer in self.buffers:
            if buffer.name in seen:
                raise OffsetError(f"two buffers are named {buffer.name!r}")
            seen.add(buffer.name)


class Outcome(enum.Enum):
    """What an `OffsetSolution` is worth."""

    FITS = "fits the capacity"
    BEST_EFFORT = "best effort: the limit came before a packing within the capacity or a proof"


@dataclasses.dataclass(frozen=True)
class OffsetSolution:
    """A packing: valid in any case, within the capacity if `outcome` is `FITS`.

    Attributes:
      offsets_bytes: in the order of the problem's buffers.
      height_bytes: the highest byte used, plus one.
      nodes: partial packings that the search tried.
      seconds: spent.
    """

    offsets_bytes: tuple[int, ...]
    height_bytes: int
    outcome: Outcome = Outcome.FITS
    nodes: int = 0
    seconds: float = dataclasses.field(default=0.0, compare=False)


@dataclasses.dataclass(frozen=True)
class Section:
    """An interval of time in which the same buffers are live.

    Attributes:
      begin: of the half-open interval.
      end: of it.
      load_bytes: sum of their sizes.
      buffers: their names, in the order of the problem.
    """

    begin: int
    end: int
    load_bytes: int
    buffers: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.buffers[:8]) + (", ..." if len(self.buffers) > 8 else "")
        return (
            f"time [{self.begin}, {self.end}), where {self.load_bytes} bytes are live in "
            f"{len(self.buffers)} buffers ({names})"
        )


class Proof(enum.Enum):
    """Why there is no packing."""

    LOAD = "a section holds more than the capacity"
    FIXED = "fixed offsets overlap, or end above the capacity"
    SEARCH = "every canonical packing was ruled out"


@dataclasses.dataclass(frozen=True)
class Infeasible:
    """No packing within the capacity exists.

    Attributes:
      binding: the section that cannot be packed; after a search, the fullest of the stretch of
        time for which the search found no packing.
      nodes: as in `OffsetSolution`.
      seconds: as in it.
    """

    capacity_bytes: int
    proof: Proof
    binding: Section
    nodes: int = 0
    seconds: float = dataclasses.field(default=0.0, compare=False)

    def __str__(self) -> str:
        return (
            f"no packing within {self.capacity_bytes} bytes: {self.proof.value}; binding is "
            f"{self.binding}"
        )
