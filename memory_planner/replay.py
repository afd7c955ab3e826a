"""What a mapping costs: its operations, and the waits for its copies.

The same rule as `step_cycles` has for a compiled schedule, on a `MemoryProblem`: copies queue for
the bandwidth that the running operation leaves, and what is not there in time is waited for.
"""

import dataclasses

from memory_planner.problem import MemoryMapping, MemoryProblem


@dataclasses.dataclass(frozen=True)
class Replayed:
    """A step under a mapping, loops multiplied.

    Attributes:
      busy_ns: its operations.
      stall_ns: waits for copies.
      waits_ns: the same by the buffers whose copies were not done.
    """

    busy_ns: float
    stall_ns: float
    waits_ns: tuple[float, ...]

    @property
    def total_ns(self) -> float:
        """Both."""
        return self.busy_ns + self.stall_ns


@dataclasses.dataclass(frozen=True)
class _Copy:
    buffer: int
    begin: int
    needed: int
    copy_ns: int


@dataclasses.dataclass
class _Queued:
    copy: _Copy
    left_ns: float


def replay(problem: MemoryProblem, mapping: MemoryMapping) -> Replayed:
    """Play a mapping against the clock.

    Copies into fast memory begin with the operation `stay.begin` and are needed by the first use;
    values written back begin after their definition and are needed when they leave fast memory.
    """
    durations = _durations(problem, mapping)
    starts: dict[int, list[_Copy]] = {}
    for copy in _copies(problem, mapping):
        starts.setdefault(copy.begin, []).append(copy)
    queue: list[_Queued] = []  # in the order in which they were started
    busy, waits = 0.0, [0.0] * len(problem.buffers)
    for time, operation in enumerate(problem.operations):
        for copy in sorted(starts.get(time, []), key=lambda c: c.needed):
            queue.append(_Queued(copy, copy.copy_ns))
        last_due = max((n for n, c in enumerate(queue) if c.copy.needed <= time), default=-1)
        for due in queue[: last_due + 1]:
            waits[due.copy.buffer] += due.left_ns * operation.repeats
        del queue[: last_due + 1]
        free = float(min(operation.free_ns, durations[time]))
        while queue and free > 0:
            served = min(free, queue[0].left_ns)
            free -= served
            queue[0].left_ns -= served
            if queue[0].left_ns <= 0:
                queue.pop(0)
        busy += durations[time] * operation.repeats
    for left in queue:
        waits[left.copy.buffer] += left.left_ns
    return Replayed(busy, sum(waits), tuple(waits))


def _durations(problem: MemoryProblem, mapping: MemoryMapping) -> list[int]:
    saved = [0] * len(problem.operations)
    for stay in mapping.stays:
        b = problem.buffers[stay.buffer]
        if not stay.is_copied and stay.begin == b.begin:
            saved[b.begin] += b.benefit_ns
        for n in stay.uses:
            saved[b.uses[n].time] += b.uses[n].benefit_ns
    return [
        max(min(o.floor_ns, o.slow_ns), o.slow_ns - s)
        for o, s in zip(problem.operations, saved, strict=True)
    ]


def _copies(problem: MemoryProblem, mapping: MemoryMapping) -> list[_Copy]:
    found = []
    for stay in mapping.stays:
        b = problem.buffers[stay.buffer]
        if stay.is_copied:
            if stay.uses:
                found.append(_Copy(stay.buffer, stay.begin, b.uses[stay.uses[0]].time, b.copy_ns))
        elif b.ends_in_hbm or len(stay.uses) < len(b.uses):
            begin = stay.begin + 1
            found.append(_Copy(stay.buffer, begin, max(stay.end - 1, begin), b.copy_ns))
    return found
