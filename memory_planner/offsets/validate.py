"""Whether a packing is one, by looking at every pair of buffers. Shares nothing with the solver."""

import itertools

from memory_planner.offsets.problem import Buffer, OffsetProblem, OffsetSolution


class InvalidPackingError(ValueError):
    """A packing breaks a constraint of its problem."""


def _is_live(buffer: Buffer, time: int) -> bool:
    in_gap = any(begin <= time < end for begin, end in buffer.gaps)
    return buffer.begin <= time < buffer.end and not in_gap


def _meet(a: Buffer, b: Buffer) -> bool:
    """Whether there is a time at which both are live: if so, one of them becomes live there."""
    times = [a.begin, b.begin, *(end for _, end in (*a.gaps, *b.gaps))]
    return any(_is_live(a, time) and _is_live(b, time) for time in times)


def validate(problem: OffsetProblem, solution: OffsetSolution, capacity_bytes: int) -> None:
    """Check a packing by brute force, in time quadratic in the number of buffers.

    A buffer of no bytes, or that is never live, only has to keep to its fixed offset and alignment.
    For a best effort, pass its `height_bytes` as the capacity.

    Raises:
      InvalidPackingError: an offset is missing, negative, misaligned or not the fixed one; a buffer
        ends above the capacity or above the height that the solution states; two buffers that are
        live at one time share a byte.
    """
    if len(solution.offsets_bytes) != len(problem.buffers):
        raise InvalidPackingError(
            f"{len(solution.offsets_bytes)} offsets for {len(problem.buffers)} buffers"
        )
    placed = list(zip(problem.buffers, solution.offsets_bytes, strict=True))
    for buffer, offset in placed:
        where = f"buffer {buffer.name!r} of {buffer.size_bytes} bytes at offset {offset}"
        if offset < 0 or offset % buffer.alignment:
            raise InvalidPackingError(f"{where} is off its alignment {buffer.alignment}")
        if buffer.offset is not None and offset != buffer.offset:
            raise InvalidPackingError(f"{where} is fixed at {buffer.offset}")
        for bound in (capacity_bytes, solution.height_bytes):
            if buffer.size_bytes and _meet(buffer, buffer) and offset + buffer.size_bytes > bound:
                raise InvalidPackingError(f"{where} ends above {bound}")
    for (a, low), (b, high) in itertools.combinations(placed, 2):
        apart = low + a.size_bytes <= high or high + b.size_bytes <= low
        if not apart and a.size_bytes and b.size_bytes and _meet(a, b):
            raise InvalidPackingError(
                f"buffers {a.name!r} at [{low}, {low + a.size_bytes}) and {b.name!r} at "
                f"[{high}, {high + b.size_bytes}) share bytes while both are live"
            )
