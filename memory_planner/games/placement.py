"""The rules that both games share: what may be done about one use of a buffer (`moves` does it).

A use is served by fast memory (NOCOPY, COPY) or reads from HBM (DROP):

  NOCOPY  A buffer's first use: the buffer is born in fast memory, at the lowest offset that is free
          from its definition to the use. A later use: the stay that served the use before goes on,
          at its offset. Legal if the memory is free.
  COPY    A stay of its own, filled from HBM by a copy, which takes HBM's free time in operations
          from its start to the one before the use. Legal if time and memory are free.
          Its eagerness says where it starts, of the operations from which they are: EARLIEST, the
          first; DEFAULT, the first of those that leave it about twice its time or less; LATEST,
          where its time just suffices, there or not at all.
  DROP    Always legal.

A value that was born in fast memory is in HBM only once it has been written back, in the operations
after its definition, the earliest free time first. That is done when first needed: with a COPY or
DROP of a later use, before it; and with NOCOPY of the last use of a result of the program, before
the end. The buffer keeps its place until its write-back has ended. Where time or memory do not
suffice, NOCOPY and COPY are illegal, and DROP takes the whole stay back, with its gains, as if the
buffer had been in HBM from the beginning (the Drop-backup of "Optimizing Memory Mapping Using Deep
Reinforcement Learning"). So an episode has no dead ends.
"""

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from memory_planner.games import copies, occupancy
from memory_planner.padding import PaddedProblem

NOCOPY = 0
COPY = 1
DROP = 2

# Where a copy starts, of the operations from which time and memory are free until its use.
DEFAULT = 0
EARLIEST = 1
LATEST = 2

# Not an action of a player: what is played once an episode has ended.
NOTHING = 3


@struct.dataclass
class Memory:
    """What has been decided so far.

    Attributes:
      occupied: [T/32, U] uint32, see `occupancy`.
      used_units: [T] int32, units taken in each operation.
      free_before: [T+1] int32, see `copies`.
      saved_ns: [T] int32, of one execution of each operation, by buffers in fast memory.
      in_fast: [N] bool: the buffer's last decided use was served by fast memory.
      stay_offset, stay_end: [N] int32 of the stay that served it: units, and operation.
      hbm_from: [N] int32: operation from which the value is in HBM; T+1 while it is not.
      stays: [N, K] int32: begin*U + offset of the stay that serves a use, -1 for none.
    """

    occupied: Array
    used_units: Array
    free_before: Array
    saved_ns: Array
    in_fast: Array
    stay_offset: Array
    stay_end: Array
    hbm_from: Array
    stays: Array


@struct.dataclass
class Offer:
    """What may be done about one use, and where; all scalars but for `legal`.

    Attributes:
      legal: [3] bool, of NOCOPY, COPY, DROP.
      kept_begin, kept_end, kept_offset: interval and place that NOCOPY takes in addition.
      copy_begin, copy_offset: start and place of the stay of COPY.
      unwritten: the value is in fast memory only.
      before_use_ns, before_write_ns, before_copy_ns: HBM's free time before the use, the earliest
        write-back and the copy.
      written_end: operation before which its write-back ends.
      can_leave: it is written in time for a COPY or DROP, or need not be.
      writes_last: NOCOPY comes with a write-back.
    """

    legal: Array
    kept_begin: Array
    kept_end: Array
    kept_offset: Array
    copy_begin: Array
    copy_offset: Array
    unwritten: Array
    before_use_ns: Array
    before_write_ns: Array
    before_copy_ns: Array
    written_end: Array
    can_leave: Array
    writes_last: Array


def pick(array: Array, index: Array) -> Array:
    """array[index], for NumPy's arrays and traced indices, too."""
    return lax.dynamic_index_in_dim(array, index, 0, keepdims=False)


def empty(problem: PaddedProblem) -> Memory:
    """Everything in HBM."""
    buffers, uses = problem.use_time.shape
    free = jnp.cumsum(jnp.asarray(problem.free_ns), dtype=jnp.int32)
    return Memory(
        occupied=jnp.asarray(problem.reserved),
        used_units=problem.shape.units - jnp.asarray(problem.limit_units),
        free_before=jnp.concatenate([jnp.zeros(1, jnp.int32), free]),
        saved_ns=jnp.zeros_like(problem.slow_ns),
        in_fast=jnp.zeros(buffers, bool),
        stay_offset=jnp.zeros(buffers, jnp.int32),
        stay_end=jnp.zeros(buffers, jnp.int32),
        # An input is there from its beginning, a result once its operation is over.
        hbm_from=problem.begin + jnp.where(problem.starts_in_hbm, 0, 1),
        stays=jnp.full((buffers, uses), -1, jnp.int32),
    )


def offer(
    problem: PaddedProblem, memory: Memory, buffer: Array, use: Array, eagerness: Array | int
) -> Offer:
    """What may be done about a use, of which the buffer's earlier uses have been decided."""
    operations, units = problem.slow_ns.shape[0], memory.occupied.shape[1]
    time = pick(pick(problem.use_time, buffer), use)
    begin = pick(problem.begin, buffer)
    size = pick(problem.size_units, buffer)
    copy_ns = pick(problem.copy_ns, buffer)
    hbm_from = pick(memory.hbm_from, buffer)
    since = occupancy.since(memory.occupied, time, size)
    is_first = use == 0
    can_be_born = is_first & ~pick(problem.starts_in_hbm, buffer)
    is_result = (use == pick(problem.use_count, buffer) - 1) & pick(problem.ends_in_hbm, buffer)

    unwritten = hbm_from > operations
    written_end = copies.earliest_end(memory.free_before, begin + 1, copy_ns)
    writes_last = is_result & (unwritten | can_be_born)

    # NOCOPY: a birth is free up to the use, and then its place must be, as that of any other stay.
    born_offset = occupancy.lowest(since, begin)
    stay_end = pick(memory.stay_end, buffer)
    kept_offset = jnp.where(is_first, born_offset, pick(memory.stay_offset, buffer))
    kept_end = jnp.where(writes_last, jnp.maximum(time + 1, written_end), time + 1)
    free_from = jnp.where(is_first, time + 1, stay_end)
    conflict = occupancy.first_conflict(memory.occupied, kept_offset, size, free_from)
    goes_on = jnp.where(is_first, can_be_born & (born_offset < units), pick(memory.in_fast, buffer))
    in_time = ~writes_last | (written_end <= problem.operation_count)

    can_leave = ~unwritten | ((written_end <= time) & (conflict >= written_end))
    earliest = jnp.where(unwritten, written_end, hbm_from)
    copy_begin, has_time = _copy_begin(memory, since, earliest, time, copy_ns, eagerness)
    may_keep = goes_on & in_time & (conflict >= kept_end)
    return Offer(
        legal=jnp.stack([may_keep, can_leave & has_time, jnp.bool_(True)]),
        kept_begin=jnp.where(is_first, begin, stay_end),
        kept_end=kept_end,
        kept_offset=kept_offset,
        copy_begin=copy_begin,
        copy_offset=occupancy.lowest(since, copy_begin),
        unwritten=unwritten,
        before_use_ns=pick(memory.free_before, time),
        before_write_ns=pick(memory.free_before, begin + 1),
        before_copy_ns=pick(memory.free_before, copy_begin),
        written_end=written_end,
        can_leave=can_leave,
        writes_last=writes_last,
    )


def _copy_begin(
    memory: Memory,
    since: Array,
    earliest: Array,
    time: Array,
    copy_ns: Array,
    eagerness: Array | int,
) -> tuple[Array, Array]:
    """(operation, whether it is possible): the first with room, of those that the eagerness has."""
    latest = copies.latest_start(memory.free_before, time, copy_ns)
    twice = copies.latest_start(memory.free_before, time, 2 * copy_ns)
    first = jnp.where(eagerness == DEFAULT, jnp.maximum(earliest, twice), earliest)
    first = jnp.where(eagerness == LATEST, latest, first)
    begin = jnp.maximum(first, jnp.min(since))
    return begin, (earliest <= latest) & (begin <= latest)
