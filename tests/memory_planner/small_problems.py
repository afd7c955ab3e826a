"""Problems small enough to know the answers of."""

from memory_planner.problem import Buffer, MemoryProblem, Operation, Use


def operation(
    slow_ns: int = 100, floor_ns: int = 10, free_ns: int = 40, repeats: int = 1, reserved: int = 0
) -> Operation:
    """One that gains from everything, and leaves HBM free for 40 of its 100 ns."""
    return Operation("op", slow_ns, floor_ns, free_ns, repeats, reserved)


def buffer(
    name: str,
    begin: int,
    *times: int,
    size: int = 4,
    copy_ns: int = 30,
    benefit_ns: int = 5,
    starts: bool = False,
    ends: bool = False,
) -> Buffer:
    """One whose uses gain 20 ns each."""
    uses = tuple(Use(time, 20) for time in times)
    return Buffer(name, size, begin, uses, benefit_ns, copy_ns, starts, ends)


def problem(
    *buffers: Buffer,
    operations: int | tuple[Operation, ...] = 6,
    capacity: int = 8,
    alignment: int = 1,
) -> MemoryProblem:
    """Eight bytes of fast memory, six operations."""
    if isinstance(operations, int):
        operations = (operation(),) * operations
    return MemoryProblem("small", operations, buffers, capacity, alignment)
