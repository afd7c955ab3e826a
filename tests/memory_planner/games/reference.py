"""The rules of the games in plain Python: lists, sets and loops, written from the rules alone.

Slow and obvious, for the tests to hold the JAX games against.
"""

import dataclasses

from memory_planner.problem import MemoryProblem, Stay


@dataclasses.dataclass
class Fast:
    """A stay being built, in units."""

    buffer: int
    begin: int
    end: int
    offset: int
    is_copied: bool
    uses: list[int]


class Rules:
    """Fast memory and HBM's free time, and what may be done about a use."""

    def __init__(self, problem: MemoryProblem, units: int, unit_bytes: int) -> None:
        self.problem = problem
        self.units = units
        self.unit_bytes = unit_bytes
        self.left = [o.free_ns for o in problem.operations]
        self.saved = [0] * len(problem.operations)
        self.stays: list[Fast] = []
        # Buffer -> the stay that served its last decided use.
        self.serving: dict[int, Fast] = {}
        # Buffers born in fast memory and not written back; and when those that were, were.
        self.unwritten: dict[int, Fast] = {}
        self.written: dict[int, int] = {}

    def size(self, buffer: int) -> int:
        """Units of a buffer."""
        size_bytes = self.problem.buffers[buffer].size_bytes
        return max(1, (size_bytes + self.unit_bytes - 1) // self.unit_bytes)

    def taken(self, time: int) -> set[int]:
        """Units that are taken in an operation."""
        reserved = self.problem.operations[time].reserved_bytes
        usable = max(0, self.problem.capacity_bytes - reserved) // self.unit_bytes
        units = set(range(usable, self.units))
        for stay in self.stays:
            if stay.begin <= time < stay.end:
                units |= set(range(stay.offset, stay.offset + self.size(stay.buffer)))
        return units

    def lowest(self, buffer: int, begin: int, end: int) -> int | None:
        """The lowest offset that is free in all of [begin, end)."""
        if end > len(self.left):
            return None
        taken = set().union(*(self.taken(t) for t in range(begin, end)))
        for offset in range(self.units - self.size(buffer) + 1):
            if not taken & set(range(offset, offset + self.size(buffer))):
                return offset
        return None

    def is_free(self, buffer: int, offset: int, begin: int, end: int) -> bool:
        """Whether a buffer's place is free in all of [begin, end)."""
        place = set(range(offset, offset + self.size(buffer)))
        return all(not place & self.taken(t) for t in range(begin, end))

    def take(self, operations: list[int], copy_ns: int) -> None:
        """Takes time from operations, the first of the list first."""
        for time in operations:
            taken = min(copy_ns, self.left[time])
            self.left[time] -= taken
            copy_ns -= taken
        assert copy_ns == 0

    def write_back_end(self, buffer: int) -> int | None:
        """Operation before which a write-back that begins now ends."""
        begin = self.problem.buffers[buffer].begin + 1
        for end in range(begin + 1, len(self.left) + 1):
            if sum(self.left[begin:end]) >= self.problem.buffers[buffer].copy_ns:
                return end
        return None

    def latest_start(self, time: int, copy_ns: int) -> int | None:
        """Latest start from which a copy has its time before `time`."""
        for start in range(time - 1, -1, -1):
            if sum(self.left[start:time]) >= copy_ns:
                return start
        return None

    def nocopy(self, buffer: int, use: int) -> tuple[int, int, bool] | None:
        """(offset, end, whether it is written back) of NOCOPY if that is legal."""
        value = self.problem.buffers[buffer]
        end = value.uses[use].time + 1
        is_new = use == 0
        serving = self.serving.get(buffer)
        if (is_new and value.starts_in_hbm) or (not is_new and serving is None):
            return None
        is_result = value.ends_in_hbm and use == len(value.uses) - 1
        writes = is_result and (is_new or buffer in self.unwritten)
        if writes:
            written = self.write_back_end(buffer)
            if written is None:
                return None
            end = max(end, written)
        if is_new:
            born = value.uses[use].time + 1
            offset = self.lowest(buffer, value.begin, born)
            if offset is None or not self.is_free(buffer, offset, born, end):
                return None
            return offset, end, writes
        assert serving is not None
        if not self.is_free(buffer, serving.offset, serving.end, end):
            return None
        return serving.offset, end, writes

    def can_leave(self, buffer: int, use: int) -> int | None:
        """Operation from which the value is in HBM for a COPY or DROP; None if it cannot be."""
        value = self.problem.buffers[buffer]
        if buffer not in self.unwritten:
            ready = value.begin if value.starts_in_hbm else value.begin + 1
            return self.written.get(buffer, ready)
        stay = self.unwritten[buffer]
        end = self.write_back_end(buffer)
        if end is None or end > value.uses[use].time:
            return None
        return end if self.is_free(buffer, stay.offset, stay.end, end) else None

    def copy(self, buffer: int, use: int, eagerness: str) -> tuple[int, int] | None:
        """(start, offset) of COPY if that is legal."""
        value = self.problem.buffers[buffer]
        time = value.uses[use].time
        ready = self.can_leave(buffer, use)
        latest = self.latest_start(time, value.copy_ns)
        if ready is None or latest is None or latest < ready:
            return None
        starts = [latest]
        if eagerness == "earliest":
            starts = list(range(ready, latest + 1))
        elif eagerness == "default":
            twice = self.latest_start(time, 2 * value.copy_ns)
            starts = list(range(ready if twice is None else max(ready, twice), latest + 1))
        for start in starts:
            offset = self.lowest(buffer, start, time + 1)
            if offset is not None:
                return start, offset
        return None

    def write_back(self, buffer: int) -> None:
        """Writes a born buffer back, in which its stay ends no earlier than that."""
        value = self.problem.buffers[buffer]
        end = self.write_back_end(buffer)
        assert end is not None
        self.take(list(range(value.begin + 1, end)), value.copy_ns)
        stay = self.unwritten.pop(buffer)
        stay.end = max(stay.end, end)
        self.written[buffer] = end

    def play_nocopy(self, buffer: int, use: int) -> None:
        """NOCOPY, which must be legal."""
        value = self.problem.buffers[buffer]
        found = self.nocopy(buffer, use)
        assert found is not None
        offset, end, writes = found
        if use == 0:
            stay = Fast(buffer, value.begin, end, offset, False, [])
            self.stays.append(stay)
            self.serving[buffer] = self.unwritten[buffer] = stay
            self.saved[value.begin] += value.benefit_ns
        self.serving[buffer].uses.append(use)
        self.serving[buffer].end = end
        self.saved[value.uses[use].time] += value.uses[use].benefit_ns
        if writes:
            self.write_back(buffer)

    def play_copy(self, buffer: int, use: int, eagerness: str) -> None:
        """COPY, which must be legal."""
        value = self.problem.buffers[buffer]
        found = self.copy(buffer, use, eagerness)
        assert found is not None
        start, offset = found
        time = value.uses[use].time
        if buffer in self.unwritten:
            self.write_back(buffer)
        operations = list(range(start, time))
        self.take(operations[::-1] if eagerness == "latest" else operations, value.copy_ns)
        stay = Fast(buffer, start, time + 1, offset, True, [use])
        self.stays.append(stay)
        self.serving[buffer] = stay
        self.saved[time] += value.uses[use].benefit_ns

    def play_drop(self, buffer: int, use: int) -> None:
        """DROP: the use reads from HBM; what cannot be there is as if it had always been."""
        value = self.problem.buffers[buffer]
        if buffer in self.unwritten:
            if self.can_leave(buffer, use) is not None:
                self.write_back(buffer)
            else:
                stay = self.unwritten.pop(buffer)
                self.stays.remove(stay)
                self.saved[value.begin] -= value.benefit_ns
                for lost in stay.uses:
                    self.saved[value.uses[lost].time] -= value.uses[lost].benefit_ns
        self.serving.pop(buffer, None)

    def step_ns(self) -> int:
        """Duration of a step."""
        return sum(
            o.repeats * max(o.floor_ns, o.slow_ns - s)
            for o, s in zip(self.problem.operations, self.saved, strict=True)
        )

    def mapping(self) -> set[Stay]:
        """The stays in bytes."""
        return {
            Stay(s.buffer, s.begin, s.end, s.offset * self.unit_bytes, s.is_copied, tuple(s.uses))
            for s in self.stays
        }


class ReferenceMapping(Rules):
    """The mapping game."""

    def __init__(self, problem: MemoryProblem, units: int, unit_bytes: int) -> None:
        super().__init__(problem, units, unit_bytes)
        self.moves = [
            (number, k)
            for time in range(len(problem.operations))
            for number, buffer in enumerate(problem.buffers)
            for k, use in enumerate(buffer.uses)
            if use.time == time
        ]
        self.next = 0

    def legal(self) -> list[bool]:
        """Of NOCOPY, COPY, DROP."""
        if self.is_over():
            return [True, True, True]
        buffer, use = self.moves[self.next]
        can_copy = self.copy(buffer, use, "latest") is not None
        return [self.nocopy(buffer, use) is not None, can_copy, True]

    def step(self, action: int) -> int:
        """The gain."""
        before = self.step_ns()
        if not self.is_over():
            legal = self.legal()
            buffer, use = self.moves[self.next]
            if action == 0 and legal[0]:
                self.play_nocopy(buffer, use)
            elif action == 1 and legal[1]:
                self.play_copy(buffer, use, "latest")
            else:
                self.play_drop(buffer, use)
            self.next += 1
        return before - self.step_ns()

    def is_over(self) -> bool:
        """Whether all is decided."""
        return self.next == len(self.moves)


class ReferenceOrder(Rules):
    """The order game."""

    def __init__(
        self, problem: MemoryProblem, units: int, unit_bytes: int, padded_buffers: int
    ) -> None:
        super().__init__(problem, units, unit_bytes)
        self.open = {n for n, b in enumerate(problem.buffers) if b.uses}
        self.padded_buffers = padded_buffers

    def legal(self) -> list[bool]:
        """Of each buffer with each eagerness."""
        return [self.is_over() or n in self.open for n in range(self.padded_buffers) for _ in "DEL"]

    def step(self, action: int) -> int:
        """The gain."""
        before = self.step_ns()
        buffer, eagerness = action // 3, ("default", "earliest", "latest")[action % 3]
        if buffer in self.open:
            self.open.remove(buffer)
            for use in range(len(self.problem.buffers[buffer].uses)):
                if self.nocopy(buffer, use) is not None:
                    self.play_nocopy(buffer, use)
                elif self.copy(buffer, use, eagerness) is not None:
                    self.play_copy(buffer, use, eagerness)
                else:
                    self.play_drop(buffer, use)
        return before - self.step_ns()

    def is_over(self) -> bool:
        """Whether every buffer has been placed."""
        return not self.open
