"""A `MemoryProblem` as arrays of fixed sizes, so that one compiled game plays many programs.

Memory is counted in units: capacity divided by `PaddedShape.units`, rounded up to the alignment.
Sizes are rounded up, so that what fits in units fits in bytes. Times are whole nanoseconds in
int32, and every sum that a game forms stays below 2**31; `pad` refuses a problem for which it would
not.

        operations  0   1   2   3   4 | 5   6   7   padding
    buffers     0   [===x=======x===) |             valid, two uses
                1           [===x)    |
                2       - - - - - - - | - - - -     padding: no uses, size 0
"""

import dataclasses
from collections.abc import Sequence

import chex
import jax
import numpy as np
from flax import struct

from memory_planner.errors import MemoryPlannerError
from memory_planner.problem import MemoryProblem

INT32_LIMIT = 2**31


@dataclasses.dataclass(frozen=True)
class PaddedShape:
    """Sizes of the arrays of a `PaddedProblem`.

    Attributes:
      buffers: N.
      operations: T.
      uses: K, of one buffer.
      decisions: D, uses of all buffers.
      units: U, into which fast memory is divided.
    """

    buffers: int
    operations: int
    uses: int
    decisions: int
    units: int

    def __str__(self) -> str:
        return (
            f"{self.buffers} buffers, {self.operations} operations, {self.uses} uses of a buffer, "
            f"{self.decisions} uses in all"
        )


# The shapes that games are compiled for; `bucket` takes the first that holds a problem.
BUCKETS = (
    PaddedShape(buffers=16, operations=32, uses=4, decisions=32, units=128),
    PaddedShape(buffers=64, operations=128, uses=8, decisions=128, units=512),
    PaddedShape(buffers=128, operations=256, uses=8, decisions=256, units=512),
    PaddedShape(buffers=256, operations=512, uses=16, decisions=512, units=1024),
    PaddedShape(buffers=512, operations=1024, uses=32, decisions=1024, units=1024),
    PaddedShape(buffers=1024, operations=2048, uses=64, decisions=2048, units=1024),
    PaddedShape(buffers=2048, operations=4096, uses=64, decisions=4096, units=1024),
)


@struct.dataclass
class PaddedProblem:
    """A `MemoryProblem` in arrays; a pytree, which may have leading batch dimensions (`stack`).

    All are int32 but for the masks. Padding is zero, and False in masks, unless said otherwise.

    Attributes:
      operation_count: [] operations that are none of the padding.
      unit_bytes: [] of fast memory.
      slow_ns, floor_ns, free_ns, repeats: [T] as in `Operation`.
      limit_units: [T] units from address 0 that buffers may lie in: what the operation itself needs
        is taken from the top.
      reserved: [T/32, U] uint32, the same in bits, rounded up: set where no buffer may lie.
        Operation t is bit t % 32 of word t // 32.
      demand_units: [T] size of all buffers that live then.
      possible_ns: [] bound on what a step can gain, memory aside.
      is_buffer: [N] not padding, and has uses.
      size_units: [N] rounded up.
      begin: [N] as in `Buffer`.
      benefit_ns, copy_ns: [N] as in `Buffer`.
      starts_in_hbm, ends_in_hbm: [N] as in `Buffer`.
      use_count: [N] uses of each buffer.
      use_time, use_benefit_ns: [N, K] as in `Use`; padded with time T.
      decision_count: [] uses of all buffers.
      decision_buffer, decision_use: [D] the uses in order of time; ties in order of the buffers.
    """

    operation_count: chex.Array
    unit_bytes: chex.Array
    slow_ns: chex.Array
    floor_ns: chex.Array
    free_ns: chex.Array
    repeats: chex.Array
    limit_units: chex.Array
    reserved: chex.Array
    demand_units: chex.Array
    possible_ns: chex.Array
    is_buffer: chex.Array
    size_units: chex.Array
    begin: chex.Array
    benefit_ns: chex.Array
    copy_ns: chex.Array
    starts_in_hbm: chex.Array
    ends_in_hbm: chex.Array
    use_count: chex.Array
    use_time: chex.Array
    use_benefit_ns: chex.Array
    decision_count: chex.Array
    decision_buffer: chex.Array
    decision_use: chex.Array

    @property
    def shape(self) -> PaddedShape:
        """The sizes, leading batch dimensions left out."""
        return PaddedShape(
            buffers=self.begin.shape[-1],
            operations=self.slow_ns.shape[-1],
            uses=self.use_time.shape[-1],
            decisions=self.decision_buffer.shape[-1],
            units=self.reserved.shape[-1],
        )


def bucket(problem: MemoryProblem) -> PaddedShape:
    """The smallest of `BUCKETS` that holds a problem.

    Raises:
      MemoryPlannerError: none does.
    """
    needed = _needed(problem)
    for shape in BUCKETS:
        if _holds(shape, needed):
            return shape
    raise MemoryPlannerError(
        f"{problem.name} has {needed}; the largest game has {BUCKETS[-1]}. Leave out the buffers "
        "with the least benefit, or pass a PaddedShape that is large enough to `pad`."
    )


def pad(problem: MemoryProblem, shape: PaddedShape | None = None) -> PaddedProblem:
    """The problem in arrays (NumPy's) of a given shape, by default that of `bucket`.

    Raises:
      MemoryPlannerError: the problem is larger than `shape`, a sum of times leaves int32, or the
        capacity is below one unit.
    """
    shape = bucket(problem) if shape is None else shape
    needed = _needed(problem)
    if not _holds(shape, needed):
        raise MemoryPlannerError(
            f"{problem.name} has {needed}, too many for a game of {shape}. Pass a larger "
            "PaddedShape, or leave out the buffers with the least benefit."
        )
    if shape.operations * shape.units >= INT32_LIMIT:
        raise MemoryPlannerError(
            f"A game of {shape} with {shape.units} units has too many of both: their product must "
            f"be below {INT32_LIMIT}. Take fewer units, such as 512 or 1024."
        )
    _check_times(problem)
    _check_durations(problem)
    _check_sums(problem)
    return PaddedProblem(
        **_operation_arrays(problem, shape),
        **_bounds(problem, shape),
        **_buffer_arrays(problem, shape),
        **_decision_arrays(problem, shape),
    )


def stack(problems: Sequence[PaddedProblem]) -> PaddedProblem:
    """Problems of one shape behind one another along a new first axis, for `jax.vmap`."""
    shapes = {p.shape for p in problems}
    if len(shapes) != 1:
        raise MemoryPlannerError(
            f"{len(shapes)} shapes cannot be stacked: pad every problem to the largest of them."
        )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *problems)


def unit_bytes(problem: MemoryProblem, units: int) -> int:
    """Bytes of a unit: at least capacity/units, and a multiple of the alignment."""
    alignment = problem.alignment_bytes
    return max(1, -(-problem.capacity_bytes // (units * alignment))) * alignment


def _needed(problem: MemoryProblem) -> PaddedShape:
    return PaddedShape(
        buffers=len(problem.buffers),
        operations=len(problem.operations),
        uses=max((len(b.uses) for b in problem.buffers), default=0),
        decisions=problem.use_count,
        units=0,
    )


def _holds(shape: PaddedShape, needed: PaddedShape) -> bool:
    return (
        needed.buffers <= shape.buffers
        and needed.operations <= shape.operations
        and needed.uses <= shape.uses
        and needed.decisions <= shape.decisions
    )


def _check_times(problem: MemoryProblem) -> None:
    """Lives lie in the program, and uses are in order."""
    count = len(problem.operations)
    for buffer in problem.buffers:
        times = [u.time for u in buffer.uses]
        if sorted(set(times)) != times or not 0 <= buffer.begin <= min([*times, count - 1]):
            raise MemoryPlannerError(
                f"{problem.name}: {buffer.name} begins at {buffer.begin} and is used at {times}: "
                "uses must ascend, one an operation, and begin with or after the definition."
            )
        if buffer.end > count:
            raise MemoryPlannerError(
                f"{problem.name}: {buffer.name} lives until {buffer.end}, but there are {count} "
                "operations: it needs to end with the program."
            )


def _check_durations(problem: MemoryProblem) -> None:
    """Fast memory never makes an operation slower."""
    for operation in problem.operations:
        if not 0 <= operation.floor_ns <= operation.slow_ns:
            raise MemoryPlannerError(
                f"{problem.name}: {operation.name} has floor_ns={operation.floor_ns}, but "
                f"slow_ns={operation.slow_ns}: the floor must lie between 0 and that."
            )


def _check_sums(problem: MemoryProblem) -> None:
    """Everything that a game adds up must fit int32."""
    operations, buffers = problem.operations, problem.buffers
    sums = {
        "the step": problem.slow_ns,
        "the time free for copies": sum(o.free_ns for o in operations),
        "the benefits": sum(b.benefit_ns + sum(u.benefit_ns for u in b.uses) for b in buffers),
        "twice the longest copy": 2 * max((b.copy_ns for b in buffers), default=0),
    }
    for name, total_ns in sums.items():
        if not 0 <= total_ns < INT32_LIMIT:
            raise MemoryPlannerError(
                f"{problem.name}: {name}: {total_ns} ns does not fit int32 ({INT32_LIMIT} ns, or "
                "2.1 s). Plan a shorter step, such as one with fewer microbatches."
            )


def _row(values: Sequence[int], size: int) -> np.ndarray:
    """[size] int32, padded with zeros."""
    row = np.zeros(size, np.int32)
    row[: len(values)] = values
    return row


def _operation_arrays(problem: MemoryProblem, shape: PaddedShape) -> dict[str, np.ndarray]:
    operations = problem.operations
    unit = unit_bytes(problem, shape.units)
    if problem.capacity_bytes < unit:
        raise MemoryPlannerError(
            f"{problem.name}: a capacity of {problem.capacity_bytes} bytes is below the alignment "
            f"of {problem.alignment_bytes}: nothing can lie in fast memory."
        )
    limits = [max(0, problem.capacity_bytes - o.reserved_bytes) // unit for o in operations]
    limit_units = _row(limits, shape.operations)
    return {
        "operation_count": np.asarray(len(operations), np.int32),
        "unit_bytes": np.asarray(unit, np.int32),
        "slow_ns": _row([o.slow_ns for o in operations], shape.operations),
        "floor_ns": _row([o.floor_ns for o in operations], shape.operations),
        "free_ns": _row([o.free_ns for o in operations], shape.operations),
        "repeats": _row([o.repeats for o in operations], shape.operations),
        "limit_units": limit_units,
        "reserved": _bits_from(limit_units, shape.units),
    }


def _bounds(problem: MemoryProblem, shape: PaddedShape) -> dict[str, np.ndarray]:
    """What the features are measured by."""
    saved = [0] * len(problem.operations)
    demand = np.zeros(shape.operations, np.int64)
    unit = unit_bytes(problem, shape.units)
    for buffer in problem.buffers:
        if buffer.uses:
            saved[buffer.begin] += 0 if buffer.starts_in_hbm else buffer.benefit_ns
            demand[buffer.begin : buffer.end] += -(-buffer.size_bytes // unit)
        for use in buffer.uses:
            saved[use.time] += use.benefit_ns
    possible = sum(
        o.repeats * min(s, max(0, o.slow_ns - o.floor_ns))
        for o, s in zip(problem.operations, saved, strict=True)
    )
    return {
        "demand_units": np.minimum(demand, INT32_LIMIT - 1).astype(np.int32),
        "possible_ns": np.asarray(possible, np.int32),
    }


def _bits_from(first: np.ndarray, units: int) -> np.ndarray:
    """[T/32, U] uint32: in operation t the bits of units first[t] and above are set."""
    words = -(-len(first) // 32)
    is_set = np.zeros((32 * words, units), np.uint32)
    is_set[: len(first)] = np.arange(units) >= first[:, None]
    times = np.arange(32, dtype=np.uint32)[:, None]
    return (is_set.reshape(words, 32, units) << times).sum(1, dtype=np.uint32)


def _buffer_arrays(problem: MemoryProblem, shape: PaddedShape) -> dict[str, np.ndarray]:
    buffers = problem.buffers
    unit = unit_bytes(problem, shape.units)
    use_time = np.full((shape.buffers, shape.uses), shape.operations, np.int32)
    use_benefit_ns = np.zeros((shape.buffers, shape.uses), np.int32)
    for number, buffer in enumerate(buffers):
        use_time[number, : len(buffer.uses)] = [u.time for u in buffer.uses]
        use_benefit_ns[number, : len(buffer.uses)] = [u.benefit_ns for u in buffer.uses]
    # One unit more than all is as good as any larger size: it fits nowhere.
    sizes = [min(shape.units + 1, max(1, -(-b.size_bytes // unit))) for b in buffers]
    return {
        "is_buffer": _row([bool(b.uses) for b in buffers], shape.buffers).astype(bool),
        "size_units": _row(sizes, shape.buffers),
        "begin": _row([b.begin for b in buffers], shape.buffers),
        "benefit_ns": _row([b.benefit_ns for b in buffers], shape.buffers),
        "copy_ns": _row([b.copy_ns for b in buffers], shape.buffers),
        "starts_in_hbm": _row([b.starts_in_hbm for b in buffers], shape.buffers).astype(bool),
        "ends_in_hbm": _row([b.ends_in_hbm for b in buffers], shape.buffers).astype(bool),
        "use_count": _row([len(b.uses) for b in buffers], shape.buffers),
        "use_time": use_time,
        "use_benefit_ns": use_benefit_ns,
    }


def _decision_arrays(problem: MemoryProblem, shape: PaddedShape) -> dict[str, np.ndarray]:
    order = sorted(
        (use.time, number, k)
        for number, buffer in enumerate(problem.buffers)
        for k, use in enumerate(buffer.uses)
    )
    return {
        "decision_count": np.asarray(len(order), np.int32),
        "decision_buffer": _row([number for _, number, _ in order], shape.decisions),
        "decision_use": _row([k for _, _, k in order], shape.decisions),
    }
