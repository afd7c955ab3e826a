"""Random problems that look like programs: for tests, and to train on before real programs.

A chain of operations, each with a result that the next one reads. Some read a weight (an input), an
earlier result (a residual), or, in the second half, the result that lies symmetrically in the first
(as the backward half of a training step does). Part of the chain may be a loop. The capacity is a
fraction of what would hold everything at once, so that there is something to decide.
"""

import dataclasses

import numpy as np

from memory_planner.problem import Buffer, MemoryProblem, Operation, Use

ALIGNMENT_BYTES = 1024
# Of a chip that moves 800 GB/s, in bytes a nanosecond.
HBM_BYTES_PER_NS = 800


@dataclasses.dataclass(frozen=True)
class RandomShape:
    """How large a random problem is.

    Attributes:
      buffers: with uses, exactly.
      uses: of one buffer, at most.
      mirrored: chance that an operation of the second half reads its mirror's result.
      weighted: chance that an operation reads a weight of its own.
      residual: chance that it reads an earlier result.
      contention: capacity as a fraction of the peak demand, the least and the most.
    """

    buffers: int
    uses: int = 4
    mirrored: float = 0.6
    weighted: float = 0.5
    residual: float = 0.2
    contention: tuple[float, float] = (0.15, 0.7)


def random_problem(
    rng: np.random.Generator, shape: RandomShape, name: str = "random"
) -> MemoryProblem:
    """A problem of a given size; the same for the same state of `rng`.

    Operations are at most `shape.buffers` + 1.
    """
    reads = _reads(rng, shape)
    operations = 1 + max(time for times in reads for time in times.uses)
    buffers = [_buffer(rng, read, operations) for read in reads]
    by_time = _traffic_ns(buffers, operations)
    loop_begin, loop_end = sorted(rng.integers(0, operations + 1, 2).tolist())
    trips = int(rng.integers(1, 5))
    peak_bytes = _peak_bytes(buffers, operations)
    fraction = rng.uniform(*shape.contention)
    capacity_bytes = max(ALIGNMENT_BYTES, int(peak_bytes * fraction))
    return MemoryProblem(
        name=name,
        operations=tuple(
            _operation(
                rng, t, by_time[t], trips if loop_begin <= t < loop_end else 1, capacity_bytes
            )
            for t in range(operations)
        ),
        buffers=tuple(buffers),
        capacity_bytes=capacity_bytes,
        alignment_bytes=ALIGNMENT_BYTES,
    )


@dataclasses.dataclass(frozen=True)
class _Read:
    """Life of a buffer: where it begins, whether as an input, and when it is read."""

    begin: int
    is_input: bool
    uses: tuple[int, ...]


def _reads(rng: np.random.Generator, shape: RandomShape) -> list[_Read]:
    """Exactly `shape.buffers` lives."""
    is_weighted = rng.random(shape.buffers) < shape.weighted
    # As many operations as give that many buffers: a result each, and their weights.
    lengths = np.arange(1, shape.buffers + 1) + np.cumsum(is_weighted)
    chain = int(np.searchsorted(lengths, shape.buffers)) + 1
    uses: list[set[int]] = [{t + 1} for t in range(chain)]
    for time in range(1, chain):
        mirror = chain - 1 - time
        if mirror < time - 1 and rng.random() < shape.mirrored:
            uses[mirror].add(time)
        if time > 2 and rng.random() < shape.residual:
            uses[int(rng.integers(0, time - 1))].add(time)
    lives = [_Read(t, False, tuple(sorted(uses[t])[: shape.uses])) for t in range(chain)]
    for time in np.flatnonzero(is_weighted[:chain]).tolist():
        again = chain - 1 - time
        times = {time, again} if again > time and rng.random() < shape.mirrored else {time}
        lives.append(_Read(0, True, tuple(sorted(times)[: shape.uses])))
    return [lives[i] for i in rng.permutation(len(lives))[: shape.buffers]]


def _buffer(rng: np.random.Generator, read: _Read, operations: int) -> Buffer:
    size_bytes = int(2.0 ** rng.uniform(14, 22))
    traffic_ns = max(1, size_bytes // HBM_BYTES_PER_NS)
    is_output = not read.is_input and rng.random() < 0.15
    return Buffer(
        name=f"{'weight' if read.is_input else 'fusion'}.{read.begin}.{read.uses[0]}",
        size_bytes=size_bytes,
        begin=min(read.begin, operations - 1),
        uses=tuple(
            Use(time, int(traffic_ns * rng.uniform(0, 1)), operand)
            for operand, time in enumerate(read.uses)
        ),
        benefit_ns=0 if read.is_input else int(traffic_ns * rng.uniform(0, 0.8)),
        copy_ns=traffic_ns,
        starts_in_hbm=read.is_input,
        ends_in_hbm=is_output,
    )


def _traffic_ns(buffers: list[Buffer], operations: int) -> list[int]:
    """Time that each operation would move its operands and results for."""
    total = [1] * operations
    for buffer in buffers:
        for time in (*(u.time for u in buffer.uses), buffer.begin):
            total[time] += buffer.copy_ns
    return total


def _peak_bytes(buffers: list[Buffer], operations: int) -> int:
    live = np.zeros(operations, np.int64)
    for buffer in buffers:
        live[buffer.begin : buffer.end] += buffer.size_bytes
    return int(live.max())


def _operation(
    rng: np.random.Generator, time: int, traffic_ns: int, repeats: int, capacity_bytes: int
) -> Operation:
    """Bound by memory or by arithmetic, which then leaves HBM free for copies."""
    compute_ns = int(traffic_ns * rng.uniform(0.1, 1.5))
    slow_ns = max(traffic_ns, compute_ns)
    reserves = rng.random() < 0.2
    return Operation(
        name=f"fusion.{time}",
        slow_ns=slow_ns,
        floor_ns=min(compute_ns, slow_ns),
        free_ns=int(slow_ns * rng.uniform(0, 0.9)),
        repeats=repeats,
        reserved_bytes=int(capacity_bytes * rng.uniform(0, 0.3)) if reserves else 0,
    )
