"""Time that HBM has left for copies, as prefix sums: [T+1] int32, ns left in operations before t.

Copies share HBM with the operations: of each, `free_ns` is left for them. A copy takes its time
from whole stretches of operations, so that taking it is one elementwise change of the prefix sums:

    operation            0   1   2   3          free 4 each
    free_before        0   4   8   12  16
    6 ns before 3, the latest first:    operations 2 and half of 1
    free_before        0   4   6   6   10
"""

import jax.numpy as jnp
from jax import Array, lax


def at(free_before: Array, time: Array) -> Array:
    """[] int32: time left before an operation."""
    return lax.dynamic_index_in_dim(free_before, time, 0, keepdims=False)


def latest_start(free_before: Array, end: Array, copy_ns: Array) -> Array:
    """Latest operation s < `end` such that [s, end) has `copy_ns` left, or -1."""
    time = jnp.arange(free_before.shape[0], dtype=jnp.int32)
    fits = (free_before <= at(free_before, end) - copy_ns) & (time < end)
    return jnp.sum(fits, dtype=jnp.int32) - 1


def earliest_end(free_before: Array, begin: Array, copy_ns: Array) -> Array:
    """Earliest e > `begin` such that [begin, e) has `copy_ns` left, or T+1."""
    target = at(free_before, begin) + copy_ns
    return jnp.maximum(begin + 1, jnp.sum(free_before < target, dtype=jnp.int32))


def take_latest(free_before: Array, end: Array, before_ns: Array, copy_ns: Array) -> Array:
    """What is left after a copy that takes its time before `end`, the latest operations first.

    `before_ns` is the time left before `end`.
    """
    time = jnp.arange(free_before.shape[0], dtype=jnp.int32)
    until = jnp.minimum(free_before, before_ns - copy_ns)
    return jnp.where(time <= end, until, free_before - copy_ns)


def take_earliest(free_before: Array, before_ns: Array, copy_ns: Array) -> Array:
    """What is left after a copy that takes its time from an operation on, the earliest first.

    `before_ns` is the time left before that operation.
    """
    return free_before - jnp.clip(free_before - before_ns, 0, copy_ns)
