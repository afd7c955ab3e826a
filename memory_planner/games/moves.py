"""Doing what `placement.offer` offers: one use is decided, the memory changes, the step gains."""

import jax.numpy as jnp
from flax import struct
from jax import Array

from memory_planner.games import copies, occupancy
from memory_planner.games.placement import COPY, DROP, LATEST, NOCOPY, NOTHING, Memory, Offer, pick
from memory_planner.padding import PaddedProblem


@struct.dataclass
class _Move:
    """What is done; scalars.

    Attributes:
      buffer, use, time: which use.
      keeps, copies, leaves: whether NOCOPY, COPY, or one of COPY and DROP is played.
      is_born: the buffer is born in fast memory.
      writes: the value is written back.
      gives_up: the stay is taken back, since the value cannot be written back.
    """

    buffer: Array
    use: Array
    time: Array
    keeps: Array
    copies: Array
    leaves: Array
    is_born: Array
    writes: Array
    gives_up: Array


def apply(
    problem: PaddedProblem,
    memory: Memory,
    buffer: Array,
    use: Array,
    offer: Offer,
    action: Array,
    eagerness: Array | int,
) -> tuple[Memory, Array]:
    """Plays NOCOPY, COPY, DROP or NOTHING; returns the gain in ns of a step (int32 []), too.

    The action must be legal, and the eagerness that of the offer: a copy takes the latest free time
    before its use if it is LATEST, else the earliest from its start.
    """
    keeps, leaves = action == NOCOPY, (action == COPY) | (action == DROP)
    move = _Move(
        buffer=buffer,
        use=use,
        time=pick(pick(problem.use_time, buffer), use),
        keeps=keeps,
        copies=action == COPY,
        leaves=leaves,
        is_born=keeps & (use == 0),
        writes=(keeps & offer.writes_last) | (leaves & offer.unwritten & offer.can_leave),
        gives_up=leaves & offer.unwritten & ~offer.can_leave,
    )
    saved_ns = _saved_ns(problem, memory, move)
    here = jnp.arange(memory.in_fast.shape[0], dtype=jnp.int32) == buffer
    served = keeps | move.copies
    offset = jnp.where(keeps, offer.kept_offset, offer.copy_offset)
    end = jnp.where(keeps, offer.kept_end, move.time + 1)
    occupied, used_units = _occupied(problem, memory, move, offer)
    changed = Memory(
        occupied=occupied,
        used_units=used_units,
        free_before=_free_before(problem, memory, move, offer, eagerness),
        saved_ns=saved_ns,
        in_fast=jnp.where(here & (action != NOTHING), served, memory.in_fast),
        stay_offset=jnp.where(here & served, offset, memory.stay_offset),
        stay_end=jnp.where(here & served, end, memory.stay_end),
        hbm_from=jnp.where(here, _hbm_from(problem, memory, move, offer), memory.hbm_from),
        stays=_stays(memory, move, offer),
    )
    return changed, _step_ns(problem, memory.saved_ns) - _step_ns(problem, saved_ns)


def _occupied(
    problem: PaddedProblem, memory: Memory, move: _Move, offer: Offer
) -> tuple[Array, Array]:
    """(occupied, used_units): one stay is born, goes on, ends later or is undone; one is copied."""
    size = pick(problem.size_units, move.buffer)
    stay_end = pick(memory.stay_end, move.buffer)
    begin = jnp.where(move.gives_up, pick(problem.begin, move.buffer), offer.kept_begin)
    end = jnp.where(move.writes, jnp.maximum(stay_end, offer.written_end), stay_end)
    end = jnp.where(move.keeps, offer.kept_end, end)
    is_changed = move.keeps | move.writes | move.gives_up
    end = jnp.where(is_changed, end, begin)
    copy_end = jnp.where(move.copies, move.time + 1, offer.copy_begin)
    # What is added was free and what is taken back was taken, so that both are a flip.
    occupied = occupancy.flipped(memory.occupied, offer.kept_offset, size, begin, end)
    occupied = occupancy.flipped(occupied, offer.copy_offset, size, offer.copy_begin, copy_end)
    time = jnp.arange(memory.used_units.shape[0], dtype=jnp.int32)
    is_own = (time >= begin) & (time < end)
    is_copy = (time >= offer.copy_begin) & (time < copy_end)
    change = jnp.where(is_own, jnp.where(move.gives_up, -size, size), 0)
    return occupied, memory.used_units + change + jnp.where(is_copy, size, 0)


def _free_before(
    problem: PaddedProblem,
    memory: Memory,
    move: _Move,
    offer: Offer,
    eagerness: Array | int,
) -> Array:
    """The write-back ends before the copy begins, so neither takes time from the other."""
    copy_ns = pick(problem.copy_ns, move.buffer)
    written_ns = jnp.where(move.writes, copy_ns, 0)
    left = copies.take_earliest(memory.free_before, offer.before_write_ns, written_ns)
    copied = jnp.where(
        eagerness == LATEST,
        copies.take_latest(left, move.time, offer.before_use_ns - written_ns, copy_ns),
        copies.take_earliest(left, offer.before_copy_ns - written_ns, copy_ns),
    )
    return jnp.where(move.copies, copied, left)


def _saved_ns(problem: PaddedProblem, memory: Memory, move: _Move) -> Array:
    """[T]: benefits come with a use that is served and a birth; they go with what is given up."""
    time = jnp.arange(memory.saved_ns.shape[0], dtype=jnp.int32)
    numbers = jnp.arange(problem.use_time.shape[1], dtype=jnp.int32)
    is_served = (numbers == move.use) & (move.keeps | move.copies)
    # Every use before was served by the stay that is given up: the first that was not would have
    # had the value written back.
    is_lost = (numbers < move.use) & move.gives_up
    sign = is_served.astype(jnp.int32) - is_lost.astype(jnp.int32)
    uses_ns = sign * pick(problem.use_benefit_ns, move.buffer)
    birth = move.is_born.astype(jnp.int32) - move.gives_up.astype(jnp.int32)
    birth_ns = birth * pick(problem.benefit_ns, move.buffer)
    is_use = pick(problem.use_time, move.buffer)[:, None] == time[None]
    change = jnp.sum(jnp.where(is_use, uses_ns[:, None], 0), axis=0, dtype=jnp.int32)
    is_birth = time == pick(problem.begin, move.buffer)
    return memory.saved_ns + change + jnp.where(is_birth, birth_ns, 0)


def _hbm_from(problem: PaddedProblem, memory: Memory, move: _Move, offer: Offer) -> Array:
    """[] int32: operation from which the value is in HBM after the move."""
    never = memory.saved_ns.shape[0] + 1
    before = pick(memory.hbm_from, move.buffer)
    value = jnp.where(move.is_born, never, before)
    value = jnp.where(move.writes, offer.written_end, value)
    return jnp.where(move.gives_up, pick(problem.begin, move.buffer) + 1, value)


def _stays(memory: Memory, move: _Move, offer: Offer) -> Array:
    """[N, K]: which stay serves which use."""
    buffers, uses = memory.stays.shape
    units = memory.occupied.shape[1]
    row = pick(memory.stays, move.buffer)
    number = jnp.arange(uses, dtype=jnp.int32)
    previous = pick(row, jnp.maximum(move.use - 1, 0))
    kept = jnp.where(move.is_born, offer.kept_begin * units + offer.kept_offset, previous)
    copied = offer.copy_begin * units + offer.copy_offset
    served = jnp.where(move.keeps, kept, jnp.where(move.copies, copied, -1))
    changed = jnp.where(number == move.use, served, row)
    changed = jnp.where(move.gives_up & (number < move.use), -1, changed)
    is_here = (jnp.arange(buffers, dtype=jnp.int32) == move.buffer)[:, None]
    is_played = move.keeps | move.leaves
    return jnp.where(is_here & is_played, changed[None], memory.stays)


def _step_ns(problem: PaddedProblem, saved_ns: Array) -> Array:
    """[] int32: duration of a step."""
    once_ns = jnp.maximum(problem.floor_ns, problem.slow_ns - saved_ns)
    return jnp.sum(problem.repeats * once_ns, dtype=jnp.int32)
