"""The depth-first search itself, over explicit stacks: it stops after any number of nodes.

frame 0: all buffers           place a at 0: two parts are left
  frame 1: part 1                place b, c, ...: part 1 is solved, go on with part 2
    ...
      frame k: part 2              no candidate is left: part 2 has no solution, whatever
                                   happens in part 1, so back to frame 0 and move a
"""

from memory_planner.offsets.compiled import compiled
from memory_planner.offsets.propagate import place, undo
from memory_planner.offsets.search_state import (
    F_BEGIN,
    F_CEILING,
    F_END,
    F_HIGH,
    F_LOW,
    F_NEXT,
    F_OFFSET,
    F_PARENT,
    F_PARTS,
    F_RANK,
    F_TRAIL,
    FRAMES,
    INFERENCE,
    NODES,
    P_BEGIN,
    P_END,
    P_NEXT,
    P_OWNER,
    PARTS,
    TRAIL,
    Inference,
    Packing,
    Search,
)

# What `advance` comes back with.
EXHAUSTED, SOLVED, OUT_OF_NODES, OUT_OF_ROOM = range(4)

_DECOMPOSE = int(Inference.DECOMPOSE)
_DOMINANCE = int(Inference.DOMINANCE)
_TWINS = int(Inference.TWINS)


@compiled
def _open_frame(packed: Packing, search: Search, part: int) -> None:
    """Begin to solve a part."""
    frame = search.counts[FRAMES]
    search.counts[FRAMES] = frame + 1
    row = search.frames[frame]
    owner = search.parts[part, P_OWNER]
    row[F_PARENT] = owner
    row[F_BEGIN] = search.parts[part, P_BEGIN]
    row[F_END] = search.parts[part, P_END]
    row[F_NEXT] = search.parts[part, P_NEXT]
    row[F_OFFSET] = search.frames[owner, F_OFFSET] if owner >= 0 else 0
    row[F_RANK] = search.frames[owner, F_RANK] if owner >= 0 else -1
    row[F_TRAIL] = search.counts[TRAIL]
    row[F_PARTS] = search.counts[PARTS]
    ceiling = packed.capacity + 1
    low, high = search.floor.shape[0], 0
    for k in range(row[F_BEGIN], row[F_END]):
        buffer = search.arranged[k]
        ceiling = min(ceiling, search.lowest[buffer] + packed.size[buffer])
        low = min(low, packed.sections[packed.section_starts[buffer]])
        high = max(high, packed.sections[packed.section_starts[buffer + 1] - 1] + 1)
    row[F_LOW] = low
    row[F_HIGH] = high
    row[F_CEILING] = ceiling if search.counts[INFERENCE] & _DOMINANCE else packed.capacity + 1


@compiled
def _next_candidate(packed: Packing, search: Search, frame: int) -> int:
    """The unplaced buffer next after the last placement, by offset and rank, or -1."""
    row = search.frames[frame]
    best = -1
    best_low = row[F_CEILING]
    for k in range(row[F_BEGIN], row[F_END]):
        buffer = search.arranged[k]
        low = search.lowest[buffer]
        rank = search.rank[buffer]
        if low < row[F_OFFSET] or (low == row[F_OFFSET] and rank <= row[F_RANK]):
            continue
        if low > best_low or (low == best_low and (best < 0 or rank > search.rank[best])):
            continue
        twin = search.twin[buffer]
        if search.counts[INFERENCE] & _TWINS and twin >= 0 and search.offset[twin] < 0:
            continue
        best = buffer
        best_low = low
    return best


@compiled
def _number_parts(packed: Packing, search: Search, frame: int) -> int:
    """Fill `crossing` with a number of the part for each section of a frame; returns how many."""
    row = search.frames[frame]
    low, high = row[F_LOW], row[F_HIGH]
    search.crossing[low : high + 1] = 0
    for k in range(row[F_BEGIN], row[F_END]):
        buffer = search.arranged[k]
        if search.offset[buffer] < 0:
            search.crossing[packed.sections[packed.section_starts[buffer]]] += 1
            search.crossing[packed.sections[packed.section_starts[buffer + 1] - 1]] -= 1
    decompose = search.counts[INFERENCE] & _DECOMPOSE
    part = 0
    living_on = 0
    for section in range(low, high):
        living_on += search.crossing[section]
        search.crossing[section] = part
        if decompose and living_on == 0 and search.left[section] > 0:
            part += 1
    return part if decompose else 1


@compiled
def _leave_parts(packed: Packing, search: Search, frame: int) -> int:
    """Push what a frame's placement left as parts; returns the part to go on with, or -1.

    The first is solved first; the last is followed by what follows the frame's own part.
    """
    row = search.frames[frame]
    begin, end = row[F_BEGIN], row[F_END]
    first = search.counts[PARTS]
    at = begin
    for number in range(_number_parts(packed, search, frame)):
        part_begin = at
        for k in range(begin, end):
            buffer = search.arranged[k]
            section = packed.sections[packed.section_starts[buffer]]
            if search.offset[buffer] < 0 and search.crossing[section] == number:
                search.spare[at] = buffer
                at += 1
        if at > part_begin:
            part = search.counts[PARTS]
            search.counts[PARTS] = part + 1
            search.parts[part, P_OWNER] = frame
            search.parts[part, P_BEGIN] = part_begin
            search.parts[part, P_END] = at
            search.parts[part, P_NEXT] = part + 1
    for k in range(begin, end):
        if search.offset[search.arranged[k]] >= 0:
            search.spare[at] = search.arranged[k]
            at += 1
    search.arranged[begin:end] = search.spare[begin:end]
    if search.counts[PARTS] == first:
        return int(row[F_NEXT])
    search.parts[search.counts[PARTS] - 1, P_NEXT] = row[F_NEXT]
    return int(first)


@compiled
def _give_up(packed: Packing, search: Search, frame: int) -> None:
    """A part has no solution: take back its parent's placement, with all that came after it."""
    row = search.frames[frame]
    undo(packed, search, row[F_TRAIL])
    search.counts[FRAMES] = frame + 1
    search.counts[PARTS] = row[F_PARTS]


@compiled
def advance(packed: Packing, search: Search, nodes: int) -> int:
    """Search on for so many nodes.

    Returns:
      `SOLVED`: `search.offset` is a packing. `EXHAUSTED`: there is none. `OUT_OF_NODES`: call
      again to go on. `OUT_OF_ROOM`: call again after `grown`.
    """
    if search.counts[FRAMES] == 0:
        _open_frame(packed, search, 0)
    until = search.counts[NODES] + nodes
    room = 3 * packed.size.shape[0] + packed.member_starts.shape[0]
    while True:
        frame = search.counts[FRAMES] - 1
        buffer = _next_candidate(packed, search, frame)
        if buffer < 0:
            parent = search.frames[frame, F_PARENT]
            if parent < 0:
                return EXHAUSTED
            _give_up(packed, search, parent)
            continue
        if search.counts[NODES] >= until:
            return OUT_OF_NODES
        if search.counts[TRAIL] + room > search.trail_at.shape[0]:
            return OUT_OF_ROOM
        search.counts[NODES] += 1
        offset = search.lowest[buffer]
        search.frames[frame, F_OFFSET] = offset
        search.frames[frame, F_RANK] = search.rank[buffer]
        if not place(packed, search, frame, buffer, offset):
            undo(packed, search, search.frames[frame, F_TRAIL])
            continue
        part = _leave_parts(packed, search, frame)
        if part < 0:
            return SOLVED
        _open_frame(packed, search, part)
