"""How many bytes an array takes as its target lays it out.

TPUs keep the two minor-most dimensions in tiles of 8 rows of 128 elements; other platforms keep
rows as they are. XLA, "Tiled layout", https://openxla.org/xla/tiled_layout; the rules for few rows
and for one dimension were read from the compiler's own programs (`tests/aot/memory_tiles_test.py`).
"""

import math
from collections.abc import Sequence

_LANES = 128
_SUBLANES = 8
_WORD_BYTES = 4  # a sublane of a lane; narrower elements are packed along the rows


def held_bytes(shape: Sequence[int], itemsize_bytes: int, platform: str) -> int:
    """Bytes of one array, row padding included.

    On TPU the two dimensions that are tiled are those that waste least, which is how the compiler
    lays out the arguments of a program.

    Args:
      shape: sizes on one device.
      itemsize_bytes: of an element.
      platform: `tpu`, or another, where nothing is padded.
    """
    size = math.prod(shape)
    if platform != "tpu" or size == 0:
        return size * itemsize_bytes
    packed = max(1, _WORD_BYTES // itemsize_bytes)
    wide = [n for n in shape if n > 1]
    if len(shape) < 2:
        return _row_elements(size, packed) * itemsize_bytes
    if len(wide) < 2:
        return _tiled(1, size, packed) * itemsize_bytes
    tiled = min(
        size // (rows * lanes) * _tiled(rows, lanes, packed)
        for i, rows in enumerate(wide)
        for j, lanes in enumerate(wide)
        if i != j
    )
    return tiled * itemsize_bytes


def _row_elements(size: int, packed: int) -> int:
    """Elements of a one-dimensional array: its tile is a power of two of up to 1024 elements."""
    tile = min(max(_power_of_two(size), _LANES * packed), _LANES * _SUBLANES)
    return _rounded(size, tile)


def _tiled(rows: int, lanes: int, packed: int) -> int:
    """Elements of a matrix: few rows take a lower tile."""
    height = min(max(_power_of_two(rows), packed), _SUBLANES)
    return _rounded(rows, height) * _rounded(lanes, _LANES)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step
