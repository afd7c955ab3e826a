"""Which units of fast memory are taken when: [T/32, U] uint32, operation t at bit t % 32 of a word.

Times run along the bits, so that a stay of any length is tested and set a word at a time; units run
along the last axis, where a processor works on many at once.

                 unit  0 1 2 3
    operation 0        1 1 . .      taken by a buffer of two units with the interval [0, 2)
    operation 1        1 1 . .
    operation 2        . 1 1 .      ... and by one that came later, at offset 1
    free since 2, at   0 3 3 0

A buffer of `size` units that is read by operation `time` may have come to an offset when the last
of the units there became free. That one array, `since`, answers for births and for copies that
start at any time.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_NO_TIMES = np.uint32(0)  # of NumPy: an import must not start a backend


def time_bits(words: int, begin: Array, end: Array) -> Array:
    """[words] uint32: the bits of the operations in [begin, end)."""
    first = 32 * jnp.arange(words, dtype=jnp.int32)
    return _below(end - first) & ~_below(begin - first)


def flipped(occupied: Array, offset: Array, size: Array, begin: Array, end: Array) -> Array:
    """`occupied` with `size` units from `offset` taken in [begin, end), or free if they were."""
    words, units = occupied.shape
    unit = jnp.arange(units, dtype=jnp.int32)
    is_here = (unit >= offset) & (unit < offset + size)
    times = time_bits(words, begin, end)
    return occupied ^ jnp.where(is_here[None], times[:, None], _NO_TIMES)


def since(occupied: Array, time: Array, size: Array) -> Array:
    """[U] int32: first operation from which `size` units from there are free until after `time`.

    It is past all operations where the units are taken in `time` itself or are too few.
    """
    words, units = occupied.shape
    before = occupied & time_bits(words, jnp.int32(0), time + 1)[:, None]
    after = _first_times(words) + 32 - lax.clz(before).astype(jnp.int32)
    free = jnp.max(jnp.where(before != _NO_TIMES, after, 0), axis=0)
    past = 32 * words + 1
    free = jnp.where(free > time, past, free)
    return jnp.where(size <= units, _window_max(free, size, past), past)


def lowest(since: Array, begin: Array) -> Array:
    """[] int32: lowest unit where a buffer can have been from `begin` on, or U."""
    unit = jnp.arange(since.shape[0], dtype=jnp.int32)
    return jnp.min(jnp.where(since <= begin, unit, since.shape[0]))


def first_conflict(occupied: Array, offset: Array, size: Array, begin: Array) -> Array:
    """[] int32: first operation from `begin` on that has one of the units taken, or past all."""
    words, units = occupied.shape
    past = 32 * words + 1
    after = occupied & time_bits(words, begin, jnp.int32(past))[:, None]
    lowest_bit = lax.population_count((after & -after) - 1).astype(jnp.int32)
    time = jnp.min(jnp.where(after != _NO_TIMES, _first_times(words) + lowest_bit, past), axis=0)
    unit = jnp.arange(units, dtype=jnp.int32)
    is_here = (unit >= offset) & (unit < offset + size)
    return jnp.min(jnp.where(is_here, time, past))


def _first_times(words: int) -> Array:
    """[words, 1]: the operation at bit 0 of each word."""
    return 32 * jnp.arange(words, dtype=jnp.int32)[:, None]


def _window_max(values: Array, size: Array, past: int) -> Array:
    """[U]: maximum over `size` (1 to U) values from each on; `past` is what lies beyond the end.

    tile[k] is the maximum over 2**k values: tile[k+1] = max(tile[k], tile[k] moved by 2**k). A
    window of any size is made of those that its binary digits name, the lowest digit last.
    """
    units = values.shape[0]
    beyond = jnp.full(units, past, values.dtype)

    def moved(values: Array, by: Array) -> Array:
        return lax.dynamic_slice(jnp.concatenate([values, beyond]), (by,), (units,))

    def double(digit: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tile, window, is_begun = carry
        by = jnp.left_shift(1, digit)
        is_set = (size & by) != 0
        longer = jnp.where(is_begun, jnp.maximum(tile, moved(window, by)), tile)
        return (
            jnp.maximum(tile, moved(tile, by)),
            jnp.where(is_set, longer, window),
            is_begun | is_set,
        )

    # A loop and not its ten steps in a row, which XLA would fuse into one kernel that computes
    # every value of the first 2**10 times.
    start = (values, values, jnp.bool_(False))
    return lax.fori_loop(0, units.bit_length(), double, start)[1]


def _below(count: Array) -> Array:
    """uint32 with the `count` lowest bits set; all from 32 on, none up to 0."""
    shift = jnp.clip(count, 0, 31).astype(jnp.uint32)
    return jnp.where(count >= 32, jnp.uint32(0xFFFFFFFF), (jnp.uint32(1) << shift) - 1)
