"""Which shapes a TPU slice can have, and which of its torus axes close to a ring.

Sources: Google Cloud documentation, "TPU v5e", "TPU v6e" (tables of 2D slice shapes), "TPU v5p",
"TPU7x", "TPU types and topologies" (A <= B <= C, all at most 4 or all multiples of 4); "How to
Scale Your Model", chapter "How to Think About TPUs" (wraparound). libtpu itself describes some
shapes that cannot be had (`v5e:2x8`) and refuses others with a message about hosts.
"""

import itertools
import math

from autoshard.errors import MeshError

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBE = 4
_MOST_CHIPS = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
_POD_SIDE = 16  # of v5e and v6e


def slice_shapes(chip: str) -> tuple[tuple[int, ...], ...]:
    """Shapes of the slices of a TPU chip of the table, smallest first; x first in each."""
    if chip not in _MOST_CHIPS:
        return _FLAT
    most = _MOST_CHIPS[chip] // _CUBE**3
    cubes = [
        (a * _CUBE, b * _CUBE, c * _CUBE)
        for a in range(1, most + 1)
        for b in range(a, math.isqrt(most // a) + 1)
        for c in range(b, most // (a * b) + 1)
    ]
    return (*_BELOW_A_CUBE, *sorted(cubes, key=lambda shape: (math.prod(shape), shape)))


def wraps(shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Whether each axis of a TPU slice closes to a ring.

    In two dimensions the axes do that span the pod; in three, all of them where the slice is made
    of whole cubes, whose faces the optical switches join.
    """
    if len(shape) == 2:
        return tuple(size == _POD_SIDE for size in shape)
    return (all(size % _CUBE == 0 for size in shape),) * len(shape)


def check_slice_shape(chip: str, shape: tuple[int, ...]) -> None:
    """Raises MeshError, with the nearest shapes, if a chip of the table has no such slice."""
    valid = slice_shapes(chip)
    if shape in valid:
        return
    nearest = sorted(valid, key=lambda other: (_distance(shape, other), other))[:3]
    names = ", ".join(f"{chip}:{format_shape(other)}" for other in nearest)
    if chip in _MOST_CHIPS:
        small = ", ".join(format_shape(other) for other in _BELOW_A_CUBE)
        rule = (
            f"{small}, or three multiples of 4 in ascending order with at most "
            f"{_MOST_CHIPS[chip]} chips"
        )
    else:
        rule = ", ".join(format_shape(other) for other in valid)
    raise MeshError(
        f"{chip} has no slice of shape {format_shape(shape)}; the nearest are {names}. Its shapes "
        f"are {rule}"
    )


def format_shape(shape: tuple[int, ...]) -> str:
    """`4x4x8`."""
    return "x".join(map(str, shape))


def _distance(shape: tuple[int, ...], other: tuple[int, ...]) -> float:
    """How far apart two shapes are: in chips first of all, then in their sides."""
    sides = itertools.zip_longest(sorted(shape, reverse=True), sorted(other, reverse=True))
    apart = [abs(math.log2((a or 1) / (b or 1))) for a, b in sides]
    chips = abs(math.log2(math.prod(shape) / math.prod(other)))
    return 100 * chips + sum(apart)
