"""HBM's free time as prefix sums: the example of the module, and its edges."""

import jax.numpy as jnp
import numpy as np
import pytest

from memory_planner.games import copies

FREE = jnp.asarray([0, 4, 8, 12, 16], jnp.int32)
PATCHY = jnp.asarray([0, 4, 4, 4, 6], jnp.int32)  # nothing in operations 1 and 2


def ns(value: int) -> jnp.ndarray:
    """A time or a number of an operation, as the games hold them."""
    return jnp.int32(value)


@pytest.mark.parametrize(
    ("end", "copy_ns", "start"),
    [(3, 6, 1), (3, 8, 1), (3, 9, 0), (3, 13, -1), (3, 0, 2), (0, 0, -1)],
)
def test_latest_start(end: int, copy_ns: int, start: int) -> None:
    assert copies.latest_start(FREE, ns(end), ns(copy_ns)) == start


def test_a_copy_starts_in_an_operation_with_time() -> None:
    assert copies.latest_start(PATCHY, ns(3), ns(1)) == 0
    assert copies.earliest_end(PATCHY, ns(1), ns(1)) == 4


@pytest.mark.parametrize(
    ("begin", "copy_ns", "end"),
    [(1, 4, 2), (1, 5, 3), (0, 16, 4), (0, 17, 5), (1, 0, 2), (4, 0, 5)],
)
def test_earliest_end(begin: int, copy_ns: int, end: int) -> None:
    """5 is past the last operation, 3."""
    assert copies.earliest_end(FREE, ns(begin), ns(copy_ns)) == end


def test_the_latest_time_goes_first() -> None:
    left = copies.take_latest(FREE, ns(3), ns(12), ns(6))
    assert np.diff(left).tolist() == [4, 2, 0, 4]


def test_the_earliest_time_goes_first() -> None:
    left = copies.take_earliest(FREE, ns(4), ns(6))
    assert np.diff(left).tolist() == [4, 0, 2, 4]
    assert copies.take_earliest(FREE, ns(4), ns(0)).tolist() == FREE.tolist()
