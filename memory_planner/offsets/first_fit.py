"""Packings at once: each buffer, in some order, at the lowest offset that is free for all its life.

Without a capacity such a packing always exists, so it is the best effort where the search comes to
no end. Hill climbing on the order (as in "Efficient Memory Management for Deep Neural Net
Inference", Pisarchyk and Lee, 2020, and in the planners of microcontrollers) makes it lower.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np

from memory_planner.offsets import orders
from memory_planner.offsets.compiled import compiled
from memory_planner.offsets.search_state import Ints, Packing


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A packing of one partition.

    Attributes:
      order: local buffers, in which they were placed.
      offset: [n].
      height: bytes.
    """

    order: tuple[int, ...]
    offset: Ints
    height: int


@compiled
def _insert(offset: Ints, ascending: Ints, count: int, buffer: int) -> None:
    """Put a buffer among the first `count`, which are in order of offset."""
    k = count
    while k > 0 and offset[ascending[k - 1]] > offset[buffer]:
        ascending[k] = ascending[k - 1]
        k -= 1
    ascending[k] = buffer


@compiled
def _fit(packed: Packing, order: Ints, offset: Ints, ascending: Ints, near: Ints) -> int:
    """Fill `offset`, -1 where it is to be found; returns the height. The last two: [n], zeros."""
    count = 0
    for buffer in range(order.shape[0]):
        if offset[buffer] >= 0:
            _insert(offset, ascending, count, buffer)
            count += 1
    for at in range(order.shape[0]):
        buffer = order[at]
        if offset[buffer] >= 0:
            continue
        for j in range(packed.overlap_starts[buffer], packed.overlap_starts[buffer + 1]):
            near[packed.overlaps[j]] = at + 1
        low = 0
        step = packed.alignment[buffer]
        for k in range(count):
            other = ascending[k]
            if offset[other] >= low + packed.size[buffer]:
                break
            if near[other] == at + 1:
                top = offset[other] + packed.size[other]
                low = max(low, (top + step - 1) // step * step)
        offset[buffer] = low
        _insert(offset, ascending, count, buffer)
        count += 1
    return int((offset + packed.size).max())


def first_fit(packed: Packing, order: Sequence[int], fixed: Sequence[bool]) -> Fit:
    """Pack in an order; buffers at fixed offsets are there from the start."""
    offset = np.where(np.asarray(fixed, bool), packed.start, np.int64(-1))
    scratch = np.zeros_like(offset), np.zeros_like(offset)
    height = _fit(packed, np.asarray(order, np.int64), offset, *scratch)
    return Fit(tuple(order), offset, int(height))


def climb(
    packed: Packing,
    best: Fit,
    fixed: Sequence[bool],
    steps: int,
    is_enough: Callable[[int], bool],
) -> Fit:
    """Move buffers that reach the top forward in the order, as long as that raises nothing.

    Args:
      steps: orders to try.
      is_enough: of the height; true to end early. Asked before each step.
    """
    rng = random.Random(0)
    for _ in range(steps):
        if is_enough(best.height):
            break
        top = np.flatnonzero(best.offset + packed.size == best.height).tolist()
        moved = first_fit(packed, orders.before(best.order, rng.choice(top), rng), fixed)
        if moved.height <= best.height:
            best = moved
    return best
