"""What placing one buffer implies for the others: the inner loops of the search.

Buffers are placed from low to high, each on the tallest of those below it, as in "MiniMalloc: A
Lightweight Memory Allocator for Hardware-Accelerated Machine Learning" (Moffitt, ASPLOS 2023),
sections on canonical solutions and on section inference. Everything still to come therefore lies at
or above the offset of the last placement.
"""

from memory_planner.offsets.compiled import compiled
from memory_planner.offsets.search_state import (
    DEEPEST,
    F_BEGIN,
    F_END,
    F_HIGH,
    F_LOW,
    INFERENCE,
    PLACED,
    STAMP,
    TRAIL,
    Inference,
    Packing,
    Search,
)

_RELEASE = int(Inference.RELEASE)
_STUCK = int(Inference.STUCK)


@compiled
def _record(search: Search, at: int, old: int) -> None:
    length = search.counts[TRAIL]
    search.trail_at[length] = at
    search.trail_old[length] = old
    search.counts[TRAIL] = length + 1


@compiled
def undo(packed: Packing, search: Search, length: int) -> None:
    """Restore the search to what it was when the trail had this length."""
    n = packed.size.shape[0]
    m = search.floor.shape[0]
    for k in range(search.counts[TRAIL] - 1, length - 1, -1):
        at = search.trail_at[k]
        old = search.trail_old[k]
        if at < n:
            search.lowest[at] = old
        elif at < 2 * n:
            search.bound[at - n] = old
        elif at < 2 * n + m:
            search.floor[at - 2 * n] = old
        else:
            search.offset[old] = -1
            search.counts[PLACED] -= 1
            for j in range(packed.section_starts[old], packed.section_starts[old + 1]):
                search.left[packed.sections[j]] += packed.size[old]
    search.counts[TRAIL] = length


@compiled
def _touch(packed: Packing, search: Search, buffer: int) -> None:
    for j in range(packed.section_starts[buffer], packed.section_starts[buffer + 1]):
        search.touched[packed.sections[j]] = search.counts[STAMP]


@compiled
def _raise_bound(packed: Packing, search: Search, buffer: int, height: int) -> None:
    if search.bound[buffer] < height:
        _record(search, packed.size.shape[0] + buffer, search.bound[buffer])
        search.bound[buffer] = height
        _touch(packed, search, buffer)


@compiled
def _aligned(packed: Packing, buffer: int, height: int) -> int:
    step = packed.alignment[buffer]
    return (height + step - 1) // step * step


@compiled
def _settle(packed: Packing, search: Search, buffer: int, offset: int) -> bool:
    """Place a buffer and lift those that overlap it; False where one no longer fits."""
    n = packed.size.shape[0]
    size = packed.size[buffer]
    top = offset + size
    search.offset[buffer] = offset
    search.counts[PLACED] += 1
    _record(search, 2 * n + search.floor.shape[0], buffer)
    fits = True
    for j in range(packed.section_starts[buffer], packed.section_starts[buffer + 1]):
        section = packed.sections[j]
        search.left[section] -= size
        fits = fits and top + search.left[section] <= packed.capacity
        _record(search, 2 * n + section, search.floor[section])
        search.floor[section] = top
    if not fits:
        return False
    _touch(packed, search, buffer)
    for j in range(packed.overlap_starts[buffer], packed.overlap_starts[buffer + 1]):
        other = packed.overlaps[j]
        if search.offset[other] < 0 and search.lowest[other] < top:
            height = _aligned(packed, other, top)
            if height > packed.limit[other]:
                return False
            _record(search, other, search.lowest[other])
            search.lowest[other] = height
            _raise_bound(packed, search, other, height)
    return True


@compiled
def _lift_stuck(
    packed: Packing, search: Search, begin: int, end: int, offset: int, rank: int
) -> bool:
    """Raise the bounds of buffers passed over; False where one can lie on nothing.

    The order of placement forbids them where they are: each must come to lie on an overlapping
    buffer that is still to come, which itself lies at `offset` or above.
    """
    for k in range(begin, end):
        buffer = search.arranged[k]
        low = search.lowest[buffer]
        passed = low < offset or (low == offset and search.rank[buffer] < rank)
        if search.offset[buffer] >= 0 or not passed:
            continue
        best = packed.capacity + 1
        for j in range(packed.overlap_starts[buffer], packed.overlap_starts[buffer + 1]):
            other = packed.overlaps[j]
            if search.offset[other] < 0:
                best = min(best, max(search.bound[other], offset) + packed.size[other])
        best = _aligned(packed, buffer, best)
        if best > packed.limit[buffer]:
            return False
        _raise_bound(packed, search, buffer, best)
    return True


@compiled
def _release_fits(packed: Packing, search: Search, section: int, offset: int) -> bool:
    """Whether, for each height, it and the buffers that cannot lie below it fit the capacity."""
    count = 0
    for j in range(packed.member_starts[section], packed.member_starts[section + 1]):
        buffer = packed.members[j]
        if search.offset[buffer] >= 0:
            continue
        height = max(search.bound[buffer], offset)
        k = count
        while k > 0 and search.heights[k - 1] < height:
            search.heights[k] = search.heights[k - 1]
            search.sizes[k] = search.sizes[k - 1]
            k -= 1
        search.heights[k] = height
        search.sizes[k] = packed.size[buffer]
        count += 1
    above = 0
    for k in range(count):
        above += search.sizes[k]
        if search.heights[k] + above > packed.capacity:
            return False
    return True


@compiled
def _least_fits(packed: Packing, search: Search, section: int, offset: int) -> bool:
    """Whether the least height at which anything can lie, plus all that is left, fits."""
    least = packed.capacity
    for j in range(packed.member_starts[section], packed.member_starts[section + 1]):
        buffer = packed.members[j]
        if search.offset[buffer] < 0:
            least = min(least, max(search.bound[buffer], offset))
    return bool(least + search.left[section] <= packed.capacity)


@compiled
def place(packed: Packing, search: Search, frame: int, buffer: int, offset: int) -> bool:
    """Place a buffer of a frame's part; False where the rest is then seen not to fit.

    The caller undoes the placement in either case.
    """
    search.counts[STAMP] += 1
    if not _settle(packed, search, buffer, offset):
        return False
    inference = search.counts[INFERENCE]
    begin, end = search.frames[frame, F_BEGIN], search.frames[frame, F_END]
    if inference & _STUCK:
        rank = search.rank[buffer]
        if not _lift_stuck(packed, search, begin, end, offset, rank):
            return False
    low, high = search.frames[frame, F_LOW], search.frames[frame, F_HIGH]
    for section in range(low, high):
        left = search.left[section]
        if left and max(offset, search.floor[section]) + left > packed.capacity:
            return False
    for section in range(low, high):
        changed = search.touched[section] == search.counts[STAMP] or search.floor[section] < offset
        if search.left[section] == 0 or not changed:
            continue
        if inference & _RELEASE:
            if not _release_fits(packed, search, section, offset):
                return False
        elif not _least_fits(packed, search, section, offset):
            return False
    if search.counts[PLACED] > search.counts[DEEPEST]:
        search.counts[DEEPEST] = search.counts[PLACED]
        search.deepest[:] = search.offset
    return True
