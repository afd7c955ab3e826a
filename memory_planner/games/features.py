"""What a network sees of a problem and what has been decided about it.

Sizes are in fractions of the capacity, times in fractions of the program, gains in fractions of
`possible_ns`, so that programs of any size look alike.
"""

import jax.numpy as jnp
from jax import Array

from memory_planner.games.game import Observation
from memory_planner.games.placement import DROP, Memory
from memory_planner.padding import PaddedProblem

# Stretches of equal length that the summary divides the program into.
SEGMENTS = 16
# A row of the summary for each stretch, then what is of the whole.
SUMMARY_SIZE = 5 * SEGMENTS + 2
BUFFER_FEATURES = 23


def observation(
    problem: PaddedProblem,
    memory: Memory,
    decided: Array,
    current: tuple[Array, Array, Array] | None,
) -> Observation:
    """Features of every buffer and of the whole.

    Args:
      problem: the problem.
      memory: what has been decided.
      decided: [N, K] bool, for which uses.
      current: (buffer, use, [3] legality) to decide next, or None if any buffer may be next.
    """
    taken = _taken_fraction(problem, memory)
    room_ns = _room_ns(problem, memory)
    rows = jnp.concatenate(
        [
            _fixed(problem),
            _changing(problem, memory, decided, taken, room_ns),
            _current(problem, current, room_ns),
        ],
        axis=1,
    )
    is_buffer = jnp.asarray(problem.is_buffer)
    return Observation(
        buffers=jnp.where(is_buffer[:, None], rows, 0.0),
        mask=is_buffer,
        summary=_summary(problem, memory, decided, taken, room_ns),
    )


def decided_before(problem: PaddedProblem, buffer: Array, use: Array, is_over: Array) -> Array:
    """[N, K] bool: uses that come before (buffer, use) in order of time, or all."""
    times = jnp.asarray(problem.use_time)
    buffers, operations = times.shape[0], problem.slow_ns.shape[0]
    now = times[buffer, use]
    earlier_buffer = (jnp.arange(buffers, dtype=jnp.int32) < buffer)[:, None]
    before = (times < now) | ((times == now) & earlier_buffer)
    return (before | is_over) & (times < operations)


def _fixed(problem: PaddedProblem) -> Array:
    """[N, 9] of the program alone."""
    length = jnp.maximum(problem.operation_count, 1).astype(jnp.float32)
    times = jnp.asarray(problem.use_time)
    last = jnp.max(jnp.where(times < problem.slow_ns.shape[0], times, 0), axis=1)
    demand = _mean_over(problem.demand_units / problem.shape.units, problem.begin, last + 1)
    free_ns = jnp.maximum(jnp.sum(problem.free_ns), 1)
    # What is larger than fast memory is one unit larger.
    size = jnp.minimum(problem.size_units, problem.shape.units) / problem.shape.units
    return jnp.stack(
        [
            size,
            problem.begin / length,
            (last + 1) / length,
            problem.use_count / problem.shape.uses,
            jnp.minimum(problem.copy_ns / free_ns, 1.0),
            jnp.asarray(problem.starts_in_hbm, jnp.float32),
            jnp.asarray(problem.ends_in_hbm, jnp.float32),
            jnp.minimum(demand, 4.0) / 4,
            (last - problem.begin + 1) / length * size,
        ],
        axis=1,
    )


def _changing(
    problem: PaddedProblem, memory: Memory, decided: Array, taken: Array, room_ns: Array
) -> Array:
    """[N, 9] of what has been decided."""
    times = jnp.asarray(problem.use_time)
    operations = problem.slow_ns.shape[0]
    possible_ns = jnp.maximum(problem.possible_ns, 1)
    is_use = times < operations
    clipped = jnp.minimum(times, operations - 1)
    open_ns = jnp.minimum(jnp.asarray(problem.use_benefit_ns), room_ns[clipped])
    open_ns = jnp.where(is_use & ~decided, open_ns * jnp.asarray(problem.repeats)[clipped], 0)
    birth_ns = jnp.minimum(jnp.asarray(problem.benefit_ns), room_ns[jnp.asarray(problem.begin)])
    birth_ns = birth_ns * jnp.asarray(problem.repeats)[jnp.asarray(problem.begin)]
    can_be_born = ~decided[:, 0] & ~jnp.asarray(problem.starts_in_hbm)
    next_use = jnp.min(jnp.where(is_use & ~decided, times, operations), axis=1)
    last = jnp.max(jnp.where(is_use, times, 0), axis=1)
    never = memory.hbm_from > operations
    hbm_from = jnp.minimum(memory.hbm_from, next_use)
    copy_time_ns = memory.free_before[next_use] - memory.free_before[hbm_from]
    copies = copy_time_ns / jnp.maximum(problem.copy_ns, 1)
    uses = jnp.maximum(problem.use_count, 1)
    length = jnp.maximum(problem.operation_count, 1)
    return jnp.stack(
        [
            jnp.sum(open_ns, axis=1) / possible_ns,
            jnp.where(can_be_born, birth_ns, 0) / possible_ns,
            jnp.sum(decided, axis=1) / uses,
            jnp.sum(memory.stays >= 0, axis=1) / uses,
            memory.in_fast.astype(jnp.float32),
            never.astype(jnp.float32),
            jnp.minimum(next_use, length) / length,
            jnp.clip(copies, 0.0, 4.0) / 4,
            _mean_over(taken, jnp.asarray(problem.begin), last + 1),
        ],
        axis=1,
    )


def _current(
    problem: PaddedProblem, current: tuple[Array, Array, Array] | None, room_ns: Array
) -> Array:
    """[N, 5] that mark the buffer to decide, with what may be done and what it gains."""
    buffers = problem.begin.shape[0]
    if current is None:
        return jnp.zeros((buffers, 5))
    buffer, use, legal = current
    here = jnp.arange(buffers, dtype=jnp.int32) == buffer
    time = jnp.minimum(jnp.asarray(problem.use_time)[buffer, use], room_ns.shape[0] - 1)
    repeats = jnp.asarray(problem.repeats)[time]
    gain = jnp.minimum(jnp.asarray(problem.use_benefit_ns)[buffer, use], room_ns[time]) * repeats
    marks = jnp.concatenate(
        [
            jnp.ones(1),
            legal[:DROP].astype(jnp.float32),
            jnp.stack([gain / jnp.maximum(problem.possible_ns, 1), use / problem.shape.uses]),
        ]
    )
    return jnp.where(here[:, None], marks[None], 0.0)


def _summary(
    problem: PaddedProblem, memory: Memory, decided: Array, taken: Array, room_ns: Array
) -> Array:
    """[SUMMARY_SIZE] of the program in stretches, and how far the episode is."""
    time = jnp.arange(problem.slow_ns.shape[0], dtype=jnp.int32)
    segment = time * SEGMENTS // jnp.maximum(problem.operation_count, 1)
    member = segment[None] == jnp.arange(SEGMENTS, dtype=jnp.int32)[:, None]
    member &= (time < problem.operation_count)[None]
    weights = member / jnp.maximum(jnp.sum(member, axis=1, keepdims=True), 1)
    left_ns = memory.free_before[1:] - memory.free_before[:-1]
    slow_ns = jnp.asarray(problem.slow_ns) * problem.repeats
    profile = jnp.stack(
        [
            taken,
            jnp.minimum(problem.demand_units / problem.shape.units, 4.0) / 4,
            left_ns / jnp.maximum(problem.free_ns, 1),
            room_ns / jnp.maximum(problem.slow_ns, 1),
            slow_ns / jnp.maximum(jnp.max(slow_ns), 1),
        ]
    )
    gain_ns = jnp.minimum(memory.saved_ns, jnp.asarray(problem.slow_ns) - problem.floor_ns)
    gained = jnp.sum(problem.repeats * gain_ns) / jnp.maximum(problem.possible_ns, 1)
    progress = jnp.sum(decided) / jnp.maximum(problem.decision_count, 1)
    return jnp.concatenate([(profile @ weights.T).reshape(-1), jnp.stack([gained, progress])])


def _taken_fraction(problem: PaddedProblem, memory: Memory) -> Array:
    """[T] of the units, also by what the operations reserve."""
    return memory.used_units / problem.shape.units


def _room_ns(problem: PaddedProblem, memory: Memory) -> Array:
    """[T] int32 that one execution can still gain."""
    return jnp.maximum(jnp.asarray(problem.slow_ns) - memory.saved_ns - problem.floor_ns, 0)


def _mean_over(values: Array, begin: Array, end: Array) -> Array:
    """[N] means of `values` [T] over [begin, end)."""
    before = jnp.concatenate([jnp.zeros(1), jnp.cumsum(values)])
    return (before[end] - before[begin]) / jnp.maximum(end - begin, 1)
