"""How arrays on the host are cut into pieces that a device can fetch and put back."""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Cut:
    """How an array is cut into pieces of one size.

    Attributes:
      dim: along which dimension.
      count: number of pieces.
      shards: over how many devices the dimension is sharded: each cuts its own part, so that
        `shards * count` divides the dimension.
      order: dimensions as the device lays them out, the fastest last; empty for as they are. The
        loop works on a view in that order: on any other, the compiler would first copy all of the
        array, on the device.
    """

    dim: int
    count: int
    shards: int = 1
    order: tuple[int, ...] = ()


def tpu_order(local_shape: Sequence[int]) -> tuple[int, ...]:
    """The dimensions of a program's argument as the TPU compiler lays them out, the fastest last.

    It tiles the last two, 8 by 128, and puts there those that need the least padding; the later
    ones, where it is equal. Read off compiled programs: nothing in JAX says it.
    """
    rank = len(local_shape)

    def padded(pair: tuple[int, int]) -> float:
        second, last = (local_shape[dim] for dim in pair)
        rows = 8 if second >= 8 else 1 << (second - 1).bit_length()
        return (-(-second // rows) * rows / second) * (-(-last // 128) * 128 / last)

    last_two = [(i, j) for j in reversed(range(rank)) for i in reversed(range(rank)) if i != j]
    if not last_two or 0 in local_shape:
        return tuple(range(rank))
    pair = min(last_two, key=padded)
    return (*(dim for dim in range(rank) if dim not in pair), *pair)


def cut_of(
    shape: Sequence[int],
    local_shape: Sequence[int],
    itemsize: int,
    piece_bytes: int,
    *,
    layers: bool = False,
    tiled: bool = False,
) -> Cut:
    """A stack's layers, or the fewest pieces of at most `piece_bytes` on a device, but two.

    The most pieces that there can be, where no dimension has so many.

    Args:
      shape: of the array.
      local_shape: of a device's shard.
      itemsize: bytes an element.
      piece_bytes: wished for.
      layers: whether the first dimension is that of layers.
      tiled: whether the device tiles the last two dimensions, as a TPU does: then a piece on the
        host cannot be a part of the last one, and is a multiple of 32 of the one before.
    """
    order = tpu_order(local_shape) if tiled else tuple(range(len(shape)))
    given = order if order != tuple(range(len(shape))) else ()
    rows = dict.fromkeys(range(len(shape)), 1)
    if tiled:
        rows.update(zip(order[-2:], (32, 0), strict=False) if len(order) > 1 else [(0, 0)])
    if layers and local_shape[0] == shape[0] and rows[0] == 1:
        return Cut(0, shape[0], 1, given)
    wished = max(2, -(-math.prod(local_shape) * itemsize // piece_bytes))
    found = []
    for dim, (size, local) in enumerate(zip(shape, local_shape, strict=True)):
        if size % local or not rows[dim]:
            continue
        counts = [c for c in range(2, local + 1) if local % (c * rows[dim]) == 0]
        count = next((c for c in counts if c >= wished), counts[-1] if counts else 1)
        found.append(Cut(dim, count, size // local, given))
    enough = [cut for cut in found if cut.count >= wished]
    if enough:
        return min(enough, key=lambda cut: (cut.count, cut.shards))
    return max(found, key=lambda cut: cut.count, default=Cut(0, 1, 1, given))
