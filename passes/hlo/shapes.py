"""Shapes of HLO values, with layout, tiling and memory space.

`bf16[4,4096,256]{1,2,0:T(8,128)(2,1)S(1)}` is an array of three dimensions, dimension 1 minor-most,
in tiles of 8 x 128 (pairs of rows packed), in memory space 1.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from passes.hlo.errors import HloError

# Bits an element. The names are XLA's (xla_data.proto, PrimitiveType).
BITS: dict[str, int] = {
    "pred": 8, "token": 0, "opaque": 0,
    "s1": 1, "s2": 2, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "s64": 64,
    "u1": 1, "u2": 2, "u4": 4, "u8": 8, "u16": 16, "u32": 32, "u64": 64,
    "f4e2m1fn": 4, "f8e5m2": 8, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3b11fnuz": 8, "f8e3m4": 8,
    "f8e5m2fnuz": 8, "f8e4m3fnuz": 8, "f8e8m0fnu": 8,
    "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

HOST_SPACE = 5

_ARRAY = re.compile(
    r"([a-z][a-z0-9]{0,30})\[((?:<?=?[\d?]{1,18}(?:,|(?=\])))*)\](?:\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\})?"
)
_MAX_DEPTH = 64
_MAX_RANK = 64
_MAX_ELEMENTS = 1 << 62  # XLA counts elements and bytes in int64


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """An array shape.

    Attributes:
      dtype: XLA's name of the element type.
      dims: sizes; a bounded dynamic size counts as its bound.
      minor_to_major: dimension numbers, fastest first; empty where the text has no layout.
      tile: the outer tile over the minor-most dimensions, major to minor; empty if untiled.
      space: memory space: 0 HBM, 1 VMEM, 5 host; others are scalars and flags.
      bits: of one element as stored; 0 for types that hold no data or are unknown.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0
    bits: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements alone."""
        return -(-self.size * self.bits // 8)

    @property
    def padded_bytes(self) -> int:
        """Bytes as laid out: the minor-most dimensions rounded up to whole tiles."""
        if not self.tile or not self.dims or len(self.minor_to_major) != len(self.dims):
            return self.size_bytes
        sizes = [self.dims[d] for d in self.minor_to_major]
        while len(sizes) < len(self.tile):
            sizes.append(1)
        for position, side in enumerate(reversed(self.tile)):
            sizes[position] = -(-sizes[position] // side) * side
        return -(-math.prod(sizes) * self.bits // 8)


@dataclasses.dataclass(frozen=True, slots=True)
class Tuple:
    """A tuple of shapes."""

    elements: tuple[Shape, ...]


Shape = Array | Tuple


def arrays(shape: Shape) -> Iterator[Array]:
    """Every array of a shape, in order."""
    if isinstance(shape, Array):
        yield shape
    else:
        for element in shape.elements:
            yield from arrays(element)


def total_bytes(shape: Shape) -> int:
    """Unpadded bytes of all arrays of a shape."""
    return sum(array.size_bytes for array in arrays(shape))


def parse_shape(text: str, start: int = 0) -> tuple[Shape, int]:
    """Read the shape that begins at `start`.

    Returns:
      The shape and the position behind it.

    Raises:
      HloError: there is no shape.
    """
    return _parse(text, start, 0)


def _parse(text: str, start: int, depth: int) -> tuple[Shape, int]:
    if depth > _MAX_DEPTH:
        raise HloError(f"tuples nest more than {_MAX_DEPTH} deep: {text[:60]!r}")
    position = _skip(text, start)
    if not text.startswith("(", position):
        return _array(text, position)
    elements: list[Shape] = []
    position = _skip(text, position + 1)
    while not text.startswith(")", position):
        element, position = _parse(text, position, depth + 1)
        elements.append(element)
        position = _skip(text, position)
        if text.startswith(",", position):
            position = _skip(text, position + 1)
        elif not text.startswith(")", position):
            raise HloError(f"a tuple shape is not closed: {text[start : start + 80]!r}")
    return Tuple(tuple(elements)), position + 1


def _skip(text: str, position: int) -> int:
    """Behind white space and `/*index=5*/` comments."""
    while True:
        while position < len(text) and text[position] == " ":
            position += 1
        if not text.startswith("/*", position):
            return position
        end = text.find("*/", position)
        position = len(text) if end < 0 else end + 2


def _array(text: str, start: int) -> tuple[Array, int]:
    match = _ARRAY.match(text, start)
    if match is None:
        raise HloError(f"not a shape: {text[start : start + 60]!r}")
    dtype, sizes, layout = match.groups()
    dims = tuple(_size(item) for item in sizes.split(",") if item)
    if len(dims) > _MAX_RANK:
        raise HloError(f"an array of {len(dims)} dimensions: {text[start : start + 60]!r}")
    if math.prod(dims) > _MAX_ELEMENTS:
        raise HloError(f"an array of more than 2^62 elements: {text[start : start + 60]!r}")
    bits = BITS.get(dtype, 0)
    if not layout:
        return Array(dtype, dims, bits=bits), match.end()
    order, _, rest = layout.partition(":")
    try:
        minor_to_major = tuple(int(item) for item in order.split(",") if item)
    except ValueError:
        raise HloError(f"a layout cannot be read: {match[0][:80]!r}") from None
    if sorted(minor_to_major) != list(range(len(dims))):
        minor_to_major = ()
    tile, space, bits = _details(rest, bits)
    return Array(dtype, dims, minor_to_major, tile, space, bits), match.end()


def _size(text: str) -> int:
    digits = text.lstrip("<=")
    return 0 if not digits or "?" in digits else int(digits)


_TILE = re.compile(r"T\(([\d*,]{1,40})\)")
_SPACE = re.compile(r"S\((\d{1,4})\)")
_ELEMENT = re.compile(r"E\((\d{1,4})\)")


def _details(text: str, bits: int) -> tuple[tuple[int, ...], int, int]:
    tile, space, element = _TILE.search(text), _SPACE.search(text), _ELEMENT.search(text)
    sides: tuple[int, ...] = ()
    if tile is not None:
        # `*` joins a dimension with the next; it pads nothing itself.
        sides = tuple(_side(side) for side in tile[1].split(",") if side)
    return sides, int(space[1]) if space else 0, int(element[1]) if element else bits


def _side(text: str) -> int:
    return max(1, int(text)) if text.isdecimal() else 1
