"""Searches in the bits of fast memory, against loops over a table of booleans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memory_planner.games import occupancy

TRIALS = 100


def packed(table: np.ndarray) -> np.ndarray:
    """[T/32, U] uint32 of a table [T, U] of booleans."""
    times, units = table.shape
    words = table.reshape(times // 32, 32, units).astype(np.uint32)
    return (words << np.arange(32, dtype=np.uint32)[:, None]).sum(1, dtype=np.uint32)


def tables(units: int, words: int) -> np.ndarray:
    """[TRIALS, T, U]: from hardly anything taken to a twentieth."""
    rng = np.random.default_rng(units)
    share = rng.choice([0.001, 0.01, 0.05], (TRIALS, 1, 1))
    return rng.random((TRIALS, 32 * words, units)) < share


@pytest.mark.parametrize(("units", "words"), [(1, 1), (33, 2), (64, 3)])
def test_searches_agree_with_loops(units: int, words: int) -> None:
    all_taken = tables(units, words)
    bits = np.stack([packed(t) for t in all_taken])
    rng = np.random.default_rng(1)
    time = rng.integers(0, 32 * words, TRIALS, dtype=np.int32)
    size = rng.integers(1, units + 2, TRIALS, dtype=np.int32)
    begin = (time * rng.random(TRIALS)).astype(np.int32)
    offset = rng.integers(0, units, TRIALS, dtype=np.int32)
    since = jax.jit(jax.vmap(occupancy.since))(bits, time, size)
    lowest = jax.jit(jax.vmap(occupancy.lowest))(since, begin)
    conflict = jax.jit(jax.vmap(occupancy.first_conflict))(bits, offset, size, begin)
    for n, taken in enumerate(all_taken):
        ends = [o + size[n] for o in range(units)]
        fits = [
            end <= units and not taken[begin[n] : time[n] + 1, end - size[n] : end].any()
            for end in ends
        ]
        assert lowest[n] == next((o for o in range(units) if fits[o]), units)
        for o, end in enumerate(ends):
            hits = np.flatnonzero(taken[: time[n] + 1, o:end].any(axis=1))
            earliest = hits[-1] + 1 if len(hits) else 0
            if end > units or earliest > time[n]:
                assert since[n, o] > 32 * words
            else:
                assert since[n, o] == earliest
        hits = np.flatnonzero(taken[begin[n] :, offset[n] : offset[n] + size[n]].any(axis=1))
        assert conflict[n] == (begin[n] + hits[0] if len(hits) else 32 * words + 1)


def test_a_flip_takes_and_gives_back() -> None:
    table = np.zeros((64, 5), bool)
    table[30:40, 1:4] = True
    empty = jnp.zeros((2, 5), jnp.uint32)
    one, three, thirty, forty = (jnp.int32(n) for n in (1, 3, 30, 40))
    taken = occupancy.flipped(empty, one, three, thirty, forty)
    assert np.array_equal(taken, packed(table))
    assert not occupancy.flipped(taken, one, three, thirty, forty).any()
    assert not occupancy.flipped(empty, one, three, forty, forty).any()


def test_time_bits_cover_whole_words() -> None:
    assert occupancy.time_bits(3, jnp.int32(31), jnp.int32(65)).tolist() == [1 << 31, 2**32 - 1, 1]
    assert occupancy.time_bits(2, jnp.int32(5), jnp.int32(5)).tolist() == [0, 0]
