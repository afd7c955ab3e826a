"""Which units of fast memory are taken when: [W, T] uint32, unit u at bit u % 32 of word u // 32.

Times run along the last axis, since a search ORs the columns of an interval together; words along
the first, since a run of free units is found by shifting whole words.

             operation  0 1 2 3
    words[0], bit 0     1 1 . .      taken by a buffer of two units with the interval [0, 2)
              bit 1     1 1 1 .      ... and by one of one unit, which came later, at offset 1
              bit 2     . . 1 .
"""

import jax.numpy as jnp
from jax import Array, lax

_NONE = jnp.uint32(0)


def span(count: int, begin: Array, end: Array) -> Array:
    """[count] bool: the times in [begin, end)."""
    time = jnp.arange(count, dtype=jnp.int32)
    return (time >= begin) & (time < end)


def run_bits(words: int, offset: Array, size: Array) -> Array:
    """[words] uint32: the bits of units [offset, offset + size), as far as there are such units."""
    first = 32 * jnp.arange(words, dtype=jnp.int32)
    return _below(offset + size - first) & ~_below(offset - first)


def taken(occupied: Array, begin: Array, end: Array) -> Array:
    """[W] uint32: units that are taken in some operation of [begin, end)."""
    columns = jnp.where(span(occupied.shape[1], begin, end)[None], occupied, _NONE)
    # Halves laid upon each other, down to a width that a core ORs at once: XLA's own reduction
    # goes word by word.
    while columns.shape[1] > 16 and columns.shape[1] % 2 == 0:
        half = columns.shape[1] // 2
        columns = columns[:, :half] | columns[:, half:]
    return lax.reduce(columns, _NONE, lax.bitwise_or, (1,))


def first_conflict(occupied: Array, bits: Array, begin: Array) -> Array:
    """[] int32: first operation from `begin` on in which one of `bits` [W] is taken, or T."""
    hits = occupied[0] & bits[0]
    for word in range(1, occupied.shape[0]):
        hits |= occupied[word] & bits[word]
    time = jnp.arange(occupied.shape[1], dtype=jnp.int32)
    return jnp.min(jnp.where((hits != _NONE) & (time >= begin), time, occupied.shape[1]))


def lowest_run(words: Array, size: Array) -> Array:
    """[] int32: lowest unit from which `size` units are free in `words` [W], or U if none is.

    free[k] has a bit where 2**k units from there are free: free[k+1] = free[k] & free[k] >> 2**k.
    A run of any size is made of those that its binary digits name, lowest digit last.
    """
    units = 32 * words.shape[0]
    free = ~words
    run, is_begun = free, jnp.bool_(False)
    for digit in range(units.bit_length()):
        is_set = ((size >> digit) & 1) == 1
        longer = jnp.where(is_begun, free & _shifted_down(run, 1 << digit), free)
        run = jnp.where(is_set, longer, run)
        is_begun |= is_set
        free &= _shifted_down(free, 1 << digit)
    return jnp.where(size <= units, _lowest_bit(run), units)


def _below(count: Array) -> Array:
    """uint32 with the `count` lowest bits set; all from 32 on, none up to 0."""
    shift = jnp.clip(count, 0, 31).astype(jnp.uint32)
    return jnp.where(count >= 32, jnp.uint32(0xFFFFFFFF), (jnp.uint32(1) << shift) - 1)


def _shifted_down(words: Array, units: int) -> Array:
    """[W]: the bit of unit u + `units` at unit u, with zeros from the top."""
    whole, bits = divmod(units, 32)
    count = words.shape[0]
    padded = jnp.concatenate([words, jnp.zeros(whole + 1, jnp.uint32)])
    low = padded[whole : whole + count]
    if bits == 0:
        return low
    return (low >> bits) | (padded[whole + 1 : whole + 1 + count] << (32 - bits))


def _lowest_bit(words: Array) -> Array:
    """[] int32: number of the lowest bit that is set, or U."""
    within = lax.population_count((words & -words) - 1).astype(jnp.int32)
    first = 32 * jnp.arange(words.shape[0], dtype=jnp.int32)
    units = 32 * words.shape[0]
    return jnp.min(jnp.where(words != _NONE, first + within, units))
