"""`MemoryProblem`: which buffers of a program lie in fast memory when, as data.

Time is counted in operations: the schedule with the bodies of its loops inlined, as the compiler's
memory-space assignment counts it. All durations are whole nanoseconds, so that a game played in JAX
and one played in Python agree to the last bit. An operation with nothing in fast memory takes
`slow_ns`; each operand or result that lies there saves its benefit, down to `floor_ns`:

    duration = max(floor_ns, slow_ns - sum of benefits)

which is how the TPU compiler's own estimates behave: a product that streams both operands from HBM
wins less from the second one that is in VMEM, and nothing once the matrix unit is the limit.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of the schedule.

    Attributes:
      name: of the HLO instruction.
      slow_ns: of one execution, with all operands and results in HBM.
      floor_ns: of one execution, the least.
      free_ns: of one execution, time for which HBM could serve copies beside it.
      repeats: executions in a step (trip counts of the loops around it, multiplied).
      reserved_bytes: of fast memory that the operation itself needs while it runs.
    """

    name: str
    slow_ns: int
    floor_ns: int
    free_ns: int
    repeats: int = 1
    reserved_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Use:
    """One operation's reading of a buffer.

    Attributes:
      time: number of the operation.
      benefit_ns: what one execution saves if the buffer lies in fast memory then.
      operand: number of the operand.
    """

    time: int
    benefit_ns: int
    operand: int = 0


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A value of the program.

    Attributes:
      name: of the HLO instruction that defines it (with `{1}` behind it for an element of a tuple).
      size_bytes: as it is laid out.
      begin: number of the operation that writes it.
      uses: in order of time; at most one for each operation, none before `begin`.
      benefit_ns: what one execution of the writing operation saves if it writes into fast memory.
      copy_ns: to copy it between HBM and fast memory, with HBM to itself.
      starts_in_hbm: it is an input of the program (or must be written to HBM), so that it reaches
        fast memory by a copy only.
      ends_in_hbm: it is a result of the program: it must be in HBM in the end.
    """

    name: str
    size_bytes: int
    begin: int
    uses: tuple[Use, ...]
    benefit_ns: int
    copy_ns: int
    starts_in_hbm: bool = False
    ends_in_hbm: bool = False

    @property
    def end(self) -> int:
        """First operation after its life: its interval is [begin, end)."""
        return (self.uses[-1].time if self.uses else self.begin) + 1


@dataclasses.dataclass(frozen=True)
class MemoryProblem:
    """What may be decided about a program's buffers.

    Attributes:
      name: of the program.
      operations: in order; their index is time.
      buffers: in any order.
      capacity_bytes: of fast memory, for all of them.
      alignment_bytes: of an offset.
    """

    name: str
    operations: tuple[Operation, ...]
    buffers: tuple[Buffer, ...]
    capacity_bytes: int
    alignment_bytes: int = 1

    @property
    def use_count(self) -> int:
        """Uses of all buffers."""
        return sum(len(b.uses) for b in self.buffers)

    def benefit_ns(self, use: Use) -> int:
        """What a step saves if a use finds its buffer in fast memory."""
        return use.benefit_ns * self.operations[use.time].repeats

    def birth_benefit_ns(self, buffer: Buffer) -> int:
        """What a step saves if a buffer is written into fast memory."""
        return buffer.benefit_ns * self.operations[buffer.begin].repeats

    @property
    def slow_ns(self) -> int:
        """A step with everything in HBM."""
        return sum(o.slow_ns * o.repeats for o in self.operations)


@dataclasses.dataclass(frozen=True)
class Stay:
    """A stretch of time for which a buffer lies in fast memory.

    It begins where the buffer is defined there (or updated in place there, which only mappings of
    compilers do), or where a copy from HBM begins.

    Attributes:
      buffer: its number.
      begin, end: operations, half-open.
      offset_bytes: where.
      is_copied: whether it is filled by a copy from HBM, which begins with operation `begin` and
        must be done before the first use in it.
      uses: numbers of the buffer's uses that read it here.
    """

    buffer: int
    begin: int
    end: int
    offset_bytes: int
    is_copied: bool
    uses: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class MemoryMapping:
    """An answer to a `MemoryProblem`.

    Attributes:
      stays: of all buffers, in any order.
    """

    stays: tuple[Stay, ...]

    @property
    def served(self) -> frozenset[tuple[int, int]]:
        """(buffer, number of its use) of all uses that read fast memory."""
        return frozenset((stay.buffer, use) for stay in self.stays for use in stay.uses)
