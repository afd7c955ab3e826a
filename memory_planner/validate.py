"""`validate`: is a mapping possible, and how long does the step take with it? By brute force.

It shares nothing with the games but the problem: it counts bytes where they count units, goes over
all pairs of stays where they keep bits, and only asks whether the copies can be done in time where
they lay down when each is.
"""

import dataclasses
from collections.abc import Iterator

from memory_planner.errors import MemoryPlannerError
from memory_planner.problem import Buffer, MemoryMapping, MemoryProblem, Stay


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A copy between HBM and fast memory, which needs `left_ns` in operations of [begin, end)."""

    name: str
    begin: int
    end: int
    left_ns: int


def validate(problem: MemoryProblem, mapping: MemoryMapping) -> int:
    """Duration of a step in ns.

    Raises:
      MemoryPlannerError: a stay is misplaced in time or memory, two overlap, a use is served twice,
        or a copy or write-back cannot be done in time. It names the buffers and the operation.
    """
    for stay in mapping.stays:
        _check_stay(problem, stay)
        _check_place(problem, stay)
    _check_overlaps(problem, mapping)
    _check_served_once(problem, mapping)
    _check_copies(problem, _copies(problem, mapping))
    return duration_ns(problem, mapping)


def duration_ns(problem: MemoryProblem, mapping: MemoryMapping) -> int:
    """Duration of a step in ns, whether the mapping is possible or not."""
    saved_ns = [0] * len(problem.operations)
    for stay in mapping.stays:
        buffer = problem.buffers[stay.buffer]
        if not stay.is_copied:
            saved_ns[buffer.begin] += buffer.benefit_ns
        for use in stay.uses:
            saved_ns[buffer.uses[use].time] += buffer.uses[use].benefit_ns
    return sum(
        o.repeats * max(o.floor_ns, o.slow_ns - saved)
        for o, saved in zip(problem.operations, saved_ns, strict=True)
    )


def _check_stay(problem: MemoryProblem, stay: Stay) -> None:
    """A stay lies in time where its buffer has a value, and serves uses of that buffer."""
    if not 0 <= stay.buffer < len(problem.buffers):
        raise MemoryPlannerError(f"{problem.name} has no buffer {stay.buffer}: {stay}")
    buffer = problem.buffers[stay.buffer]
    where = f"{buffer.name} in [{stay.begin}, {stay.end})"
    if not stay.begin < stay.end <= len(problem.operations):
        raise MemoryPlannerError(f"{where}: no interval of {len(problem.operations)} operations")
    if not set(stay.uses) <= set(range(len(buffer.uses))):
        raise MemoryPlannerError(f"{where}: uses {stay.uses}, of {len(buffer.uses)} that exist")
    for use in stay.uses:
        if not stay.begin <= buffer.uses[use].time < stay.end:
            raise MemoryPlannerError(
                f"{where}: use {use}, in operation {buffer.uses[use].time}, is outside"
            )
    if not stay.is_copied:
        if buffer.starts_in_hbm:
            raise MemoryPlannerError(f"{where}: it starts in HBM, so it must be copied")
        if stay.begin != buffer.begin:
            raise MemoryPlannerError(
                f"{where}: not copied, though it is defined by operation {buffer.begin}"
            )
        return
    if stay.begin < _ready(buffer):
        raise MemoryPlannerError(
            f"{where}: copied before it is in HBM, in operation {_ready(buffer)}"
        )
    if not stay.uses:
        raise MemoryPlannerError(f"{where}: copied for no use")


def _ready(buffer: Buffer) -> int:
    """Operation from which a buffer that is not born in fast memory is in HBM."""
    return buffer.begin if buffer.starts_in_hbm else buffer.begin + 1


def _check_place(problem: MemoryProblem, stay: Stay) -> None:
    """A stay is aligned and below what the operations leave of the capacity."""
    buffer = problem.buffers[stay.buffer]
    where = f"{buffer.name} in [{stay.begin}, {stay.end}) at {stay.offset_bytes}"
    if stay.offset_bytes < 0 or stay.offset_bytes % problem.alignment_bytes:
        raise MemoryPlannerError(f"{where}: not aligned to {problem.alignment_bytes} bytes")
    end_bytes = stay.offset_bytes + buffer.size_bytes
    for time in range(stay.begin, stay.end):
        operation = problem.operations[time]
        if end_bytes > problem.capacity_bytes - operation.reserved_bytes:
            raise MemoryPlannerError(
                f"{where}: ends at {end_bytes} of {problem.capacity_bytes} bytes, of which "
                f"{operation.name} (operation {time}) reserves {operation.reserved_bytes}"
            )


def _check_overlaps(problem: MemoryProblem, mapping: MemoryMapping) -> None:
    for number, first in enumerate(mapping.stays):
        for second in mapping.stays[number + 1 :]:
            is_same_time = first.begin < second.end and second.begin < first.end
            one, other = problem.buffers[first.buffer], problem.buffers[second.buffer]
            is_same_place = (
                first.offset_bytes < second.offset_bytes + other.size_bytes
                and second.offset_bytes < first.offset_bytes + one.size_bytes
            )
            if is_same_time and is_same_place:
                raise MemoryPlannerError(
                    f"{one.name} and {other.name} overlap at {second.offset_bytes} in operation "
                    f"{max(first.begin, second.begin)}"
                )


def _check_served_once(problem: MemoryProblem, mapping: MemoryMapping) -> None:
    served = [(s.buffer, use) for s in mapping.stays for use in s.uses]
    for buffer, use in served:
        if served.count((buffer, use)) > 1:
            raise MemoryPlannerError(
                f"use {use} of {problem.buffers[buffer].name} is served by two stays"
            )
    born = [s.buffer for s in mapping.stays if not s.is_copied]
    for buffer in born:
        if born.count(buffer) > 1:
            raise MemoryPlannerError(f"{problem.buffers[buffer].name} is born twice")


def _copies(problem: MemoryProblem, mapping: MemoryMapping) -> Iterator[_Copy]:
    """Every copy that the stays need: into fast memory before their first use, and back."""
    for stay in mapping.stays:
        buffer = problem.buffers[stay.buffer]
        if stay.is_copied:
            first = min(buffer.uses[use].time for use in stay.uses)
            yield _Copy(f"the copy of {buffer.name}", stay.begin, first, buffer.copy_ns)
            continue
        # Who needs the value in HBM by when: the copies into fast memory, uses that no stay
        # serves, and the caller of the program.
        others = [s for s in mapping.stays if s.buffer == stay.buffer and s is not stay]
        served = {use for s in (stay, *others) for use in s.uses}
        needed = [s.begin for s in others]
        needed += [use.time for k, use in enumerate(buffer.uses) if k not in served]
        needed += [len(problem.operations)] if buffer.ends_in_hbm else []
        if needed:
            end = min(stay.end, *needed)
            yield _Copy(f"the write-back of {buffer.name}", buffer.begin + 1, end, buffer.copy_ns)


def _check_copies(problem: MemoryProblem, copies: Iterator[_Copy]) -> None:
    """HBM serves copies one after another; the one that ends first goes first, which is optimal.

    Horn, "Some simple scheduling algorithms", 1974: with preemption, serving the earliest deadline
    meets all deadlines if any schedule does.
    """
    waiting = sorted(copies, key=lambda c: c.end)
    for copy in waiting:
        if copy.begin >= copy.end:
            raise MemoryPlannerError(
                f"{copy.name} has no operation to run in: from {copy.begin}, before {copy.end}"
            )
    for time in range(len(problem.operations) + 1):
        for copy in waiting:
            if copy.end <= time and copy.left_ns > 0:
                raise MemoryPlannerError(
                    f"{copy.name} is not done before operation {copy.end}: {copy.left_ns} ns of it "
                    "are left, since HBM has no more free time from its start"
                )
        if time == len(problem.operations):
            return
        free_ns = problem.operations[time].free_ns
        after = []
        for copy in waiting:
            taken_ns = min(free_ns, copy.left_ns) if copy.begin <= time else 0
            free_ns -= taken_ns
            after.append(dataclasses.replace(copy, left_ns=copy.left_ns - taken_ns))
        waiting = [c for c in after if c.left_ns > 0]
