"""Padding to a TPU's tiles, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoshard.memory_tiles import held_bytes


@pytest.mark.parametrize(
    ("shape", "itemsize_bytes", "elements"),
    [
        ((), 4, 128),  # one row of a tile
        ((100,), 4, 128),
        ((200,), 4, 256),
        ((1000,), 4, 1024),
        ((1025,), 4, 2048),
        ((16,), 2, 256),  # pairs of rows are packed
        ((512, 128), 4, 512 * 128),
        ((30, 128), 4, 32 * 128),
        ((64, 32), 4, 32 * 128),  # the longer of the two along the row: 64, not 32, become 128
        ((32, 4), 4, 4 * 128),  # a tile of four rows
        ((3, 200), 4, 4 * 256),
        ((2, 200), 2, 2 * 256),
        ((1, 200), 2, 2 * 256),
        ((2, 64), 1, 4 * 128),
        ((64, 8, 8), 4, 8 * 8 * 128),  # the 64 along the row
        ((8, 32, 32, 3), 4, 8 * 3 * 32 * 128),  # neither the 8 nor the 3
    ],
)
def test_tpu_tiles(shape: tuple[int, ...], itemsize_bytes: int, elements: int) -> None:
    assert held_bytes(shape, itemsize_bytes, "tpu") == elements * itemsize_bytes


@given(
    st.lists(st.integers(1, 300), max_size=4).map(tuple),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["cpu", "gpu", "tpu"]),
)
def test_padding_only_adds(shape: tuple[int, ...], itemsize_bytes: int, platform: str) -> None:
    exact = math.prod(shape) * itemsize_bytes
    held = held_bytes(shape, itemsize_bytes, platform)
    assert held >= exact
    assert platform == "tpu" or held == exact


def test_an_empty_array_takes_nothing() -> None:
    assert held_bytes((0, 7), 4, "tpu") == 0
