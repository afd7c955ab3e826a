"""The rules that both games share: what may be done about one use of a buffer, and doing it.

A use is served by fast memory (NOCOPY, COPY) or reads from HBM (DROP):

  NOCOPY  A buffer's first use: the buffer is born in fast memory, at the lowest offset that is free
          from its definition to the use. A later use: the stay that served the use before goes on,
          at its offset. Legal if the memory is free.
  COPY    A stay of its own, filled from HBM by a copy, which takes HBM's free time in operations
          from its start to the one before the use. Legal if time and memory are free.
  DROP    Always legal.

A value that was born in fast memory is in HBM only once it has been written back, in the operations
after its definition, the earliest free time first. That is done when first needed: with a COPY or
DROP of a later use, before it; and with NOCOPY of the last use of a result of the program, before
the end. The buffer keeps its place until its write-back has ended. Where time or memory do not
suffice, NOCOPY and COPY are illegal, and DROP takes the whole stay back, with its gains, as if the
buffer had been in HBM from the beginning (the Drop-backup of "Optimizing Memory Mapping Using Deep
Reinforcement Learning"). So an episode has no dead ends.
"""

from typing import Protocol

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from memory_planner.games import copies, occupancy
from memory_planner.padding import PaddedProblem

NOCOPY = 0
COPY = 1
DROP = 2
# Not an action of a player: what is played once an episode has ended.
NOTHING = 3


@struct.dataclass
class Memory:
    """What has been decided so far.

    Attributes:
      occupied: [U/32, T] uint32, see `occupancy`.
      free_before: [T+1] int32, see `copies`.
      saved_ns: [T] int32, of one execution of each operation, by buffers in fast memory.
      in_fast: [N] bool: the buffer's last decided use was served by fast memory.
      stay_offset, stay_end: [N] int32 of the stay that served it: units, and operation.
      hbm_from: [N] int32: operation from which the value is in HBM; T+1 while it is not.
      stays: [N, K] int32: begin*U + offset of the stay that serves a use, -1 for none.
    """

    occupied: Array
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
      written_end: operation before which its write-back ends.
      can_drop: it is written in time for a COPY or DROP, or need not be.
      writes_last: NOCOPY comes with a write-back.
    """

    legal: Array
    kept_begin: Array
    kept_end: Array
    kept_offset: Array
    copy_begin: Array
    copy_offset: Array
    unwritten: Array
    written_end: Array
    can_drop: Array
    writes_last: Array


class StartRule(Protocol):
    """When a copy starts."""

    def __call__(
        self, memory: Memory, earliest: Array, time: Array, size: Array, copy_ns: Array
    ) -> tuple[Array, Array, Array]:
        """(operation, offset, whether there is one) of a copy of `copy_ns` for a use at `time`.

        It starts with `earliest` or later; the offset is free from then to the use.
        """


def pick(array: Array, index: Array) -> Array:
    """array[index], for NumPy's arrays and traced indices, too."""
    return lax.dynamic_index_in_dim(array, index, 0, keepdims=False)


def empty(problem: PaddedProblem) -> Memory:
    """Everything in HBM."""
    buffers, uses = problem.use_time.shape
    free = jnp.cumsum(jnp.asarray(problem.free_ns), dtype=jnp.int32)
    return Memory(
        occupied=jnp.asarray(problem.reserved),
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
    problem: PaddedProblem,
    memory: Memory,
    buffer: Array,
    use: Array,
    choose_start: StartRule,
) -> Offer:
    """What may be done about a use, of which the buffer's earlier uses have been decided."""
    words, operations = memory.occupied.shape
    time = pick(pick(problem.use_time, buffer), use)
    begin = pick(problem.begin, buffer)
    size = pick(problem.size_units, buffer)
    copy_ns = pick(problem.copy_ns, buffer)
    hbm_from = pick(memory.hbm_from, buffer)
    is_first = use == 0
    must_copy = is_first & pick(problem.starts_in_hbm, buffer)
    is_last = (use == pick(problem.use_count, buffer) - 1) & pick(problem.ends_in_hbm, buffer)

    unwritten = hbm_from > operations
    written_end = copies.earliest_end(memory.free_before, begin + 1, copy_ns)
    writes_last = is_last & (unwritten | (is_first & ~must_copy))

    # NOCOPY: the interval that is needed in addition, at any place or at the stay's.
    stay_end = pick(memory.stay_end, buffer)
    kept_begin = jnp.where(is_first, begin, stay_end)
    kept_end = jnp.where(writes_last, jnp.maximum(time + 1, written_end), time + 1)
    born = occupancy.taken(memory.occupied, begin, kept_end)
    born_offset = occupancy.lowest_run(born, size)
    kept_offset = jnp.where(is_first, born_offset, pick(memory.stay_offset, buffer))
    own = occupancy.run_bits(words, kept_offset, size)
    conflict = occupancy.first_conflict(memory.occupied, own, stay_end)
    is_free = jnp.where(is_first, born_offset < 32 * words, conflict >= kept_end)
    in_time = ~writes_last | (written_end <= problem.operation_count)
    goes_on = jnp.where(is_first, ~must_copy, pick(memory.in_fast, buffer))

    can_drop = ~unwritten | ((written_end <= time) & (conflict >= written_end))
    copy_from = jnp.where(unwritten, jnp.where(can_drop, written_end, operations), hbm_from)
    copy_begin, copy_offset, can_copy = choose_start(memory, copy_from, time, size, copy_ns)
    return Offer(
        legal=jnp.stack([goes_on & is_free & in_time, can_copy, jnp.bool_(True)]),
        kept_begin=kept_begin,
        kept_end=kept_end,
        kept_offset=kept_offset,
        copy_begin=copy_begin,
        copy_offset=copy_offset,
        unwritten=unwritten,
        written_end=written_end,
        can_drop=can_drop,
        writes_last=writes_last,
    )


def latest_start(
    memory: Memory, earliest: Array, time: Array, size: Array, copy_ns: Array
) -> tuple[Array, Array, Array]:
    """The `StartRule` that starts a copy as late as its time allows, there or not at all."""
    begin = copies.latest_start(memory.free_before, time, copy_ns)
    offset = occupancy.lowest_run(occupancy.taken(memory.occupied, begin, time + 1), size)
    has_room = offset < 32 * memory.occupied.shape[0]
    return begin, offset, has_room & (begin >= earliest)
