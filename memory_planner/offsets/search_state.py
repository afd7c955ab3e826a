"""The arrays of a search: one partition's problem, and how far a depth-first search of it has come.

Buffers and sections are local indices, 0 to n - 1 and 0 to m - 1. Lists of lists are pairs of
arrays: row i is `values[starts[i]:starts[i + 1]]`. All arrays are int64.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_planner.offsets.problem import OffsetProblem
from memory_planner.offsets.sections import Partition

Ints = NDArray[np.int64]


class Inference(enum.IntFlag):
    """What the search concludes from a partial packing, each to be switched off.

    Attributes:
      DOMINANCE: no buffer goes where another that is still to come would fit below it (MiniMalloc,
        section "spatial dominance").
      DECOMPOSE: what is left is split where no buffer crosses, and the parts are solved apart
        (MiniMalloc, "decomposition").
      RELEASE: a section's bound counts, above each height, all buffers that cannot lie below it,
        as release dates are counted in scheduling one machine. Without it, MiniMalloc's: the least
        height plus all that is left.
      STUCK: a buffer that was passed over can only lie on one still to come.
      TWINS: equal buffers are placed in one order only.
    """

    DOMINANCE = 1
    DECOMPOSE = 2
    RELEASE = 4
    STUCK = 8
    TWINS = 16
    ALL = 31


class Packing(NamedTuple):
    """One partition.

    Attributes:
      capacity: in bytes.
      size: [n].
      alignment: [n].
      limit: [n], the highest offset allowed: the fixed one, or what the capacity leaves.
      start: [n], the lowest offset: the fixed one or 0.
      overlap_starts, overlaps: the buffers that share a section with a buffer.
      section_starts, sections: the sections of a buffer, ascending.
      member_starts, members: the buffers of a section.
    """

    capacity: int
    size: Ints
    alignment: Ints
    limit: Ints
    start: Ints
    overlap_starts: Ints
    overlaps: Ints
    section_starts: Ints
    sections: Ints
    member_starts: Ints
    members: Ints


# Indices of `Search.counts`.
TRAIL, FRAMES, PARTS, NODES, STAMP, PLACED, DEEPEST, INFERENCE, COUNTS = range(9)

# Columns of `Search.frames`. A frame places the buffers of one part, in order of offset and rank.
(
    F_PARENT,  # the frame whose placement left this part
    F_BEGIN,  # its members: arranged[F_BEGIN:F_END]
    F_END,
    F_OFFSET,  # the last placement, by offset and rank; at first, that of the parent
    F_RANK,
    F_TRAIL,  # lengths of the stacks when the frame was made
    F_PARTS,
    F_NEXT,  # the part to be solved once this one is, or -1
    F_LOW,  # its sections
    F_HIGH,
    F_CEILING,  # no placement at or above: a buffer fits below
    FRAME_COLUMNS,
) = range(12)

# Columns of `Search.parts`: what a placement left, not yet begun.
P_OWNER, P_BEGIN, P_END, P_NEXT, PART_COLUMNS = range(5)


class Search(NamedTuple):
    """A depth-first search that can be interrupted and continued.

    Attributes:
      rank: [n], place in the static order.
      twin: [n], the equal buffer next before it in that order, or -1.
      offset: [n], -1 where not placed.
      lowest: [n], top of what is placed below: where the buffer would lie.
      bound: [n], at least `lowest`: where it can lie at best, given what is still to come.
      floor: [m], top of what is placed.
      left: [m], bytes still to be placed.
      trail_at, trail_old: what to restore on the way back: indices into lowest, bound, floor, one
        after the other; beyond them, a placed buffer.
      counts: lengths of the stacks, nodes, and so on.
      frames, parts: stacks; there are at most n frames, and n parts not yet begun.
      arranged: [n], the buffers, those of a part side by side. A frame rearranges its own members
        only, so that its parent finds the same ones in its range.
      spare: scratch to rearrange in.
      touched: [m], stamp of the last placement that changed the section.
      heights, sizes: scratch of one section's bound.
      crossing: scratch of the decomposition.
      deepest: [n], offsets when the most buffers were placed.
    """

    rank: Ints
    twin: Ints
    offset: Ints
    lowest: Ints
    bound: Ints
    floor: Ints
    left: Ints
    trail_at: Ints
    trail_old: Ints
    counts: Ints
    frames: Ints
    parts: Ints
    arranged: Ints
    spare: Ints
    touched: Ints
    heights: Ints
    sizes: Ints
    crossing: Ints
    deepest: Ints


def _rows(rows: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=starts[1:])
    return starts, np.array([value for row in rows for value in row], np.int64)


def packing(problem: OffsetProblem, partition: Partition, capacity_bytes: int) -> Packing:
    """The arrays of one partition; local index = position in `partition.buffers`."""
    local = {index: position for position, index in enumerate(partition.buffers)}
    buffers = [problem.buffers[index] for index in partition.buffers]
    members = [[local[index] for index in clique.members] for clique in partition.cliques]
    overlaps: list[set[int]] = [set() for _ in buffers]
    sections: list[list[int]] = [[] for _ in buffers]
    for position, row in enumerate(members):
        for buffer in row:
            overlaps[buffer].update(row)
            sections[buffer].append(position)
    highest = [
        (capacity_bytes - b.size_bytes) // b.alignment * b.alignment
        if b.offset is None
        else b.offset
        for b in buffers
    ]
    return Packing(
        capacity_bytes,
        np.array([b.size_bytes for b in buffers], np.int64),
        np.array([b.alignment for b in buffers], np.int64),
        np.array(highest, np.int64),
        np.array([b.offset or 0 for b in buffers], np.int64),
        *_rows([sorted(row - {position}) for position, row in enumerate(overlaps)]),
        *_rows(sections),
        *_rows(members),
    )


def twins(problem: OffsetProblem, partition: Partition, order: Sequence[int]) -> Ints:
    """For each local buffer, the last one before it in `order` that differs in name only, or -1."""
    result = np.full(len(order), -1, np.int64)
    seen: dict[object, int] = {}
    for position in order:
        b = problem.buffers[partition.buffers[position]]
        if b.offset is None:
            key = (b.pieces, b.size_bytes, b.alignment)
            result[position] = seen.get(key, -1)
            seen[key] = position
    return result


def start(packed: Packing, order: Sequence[int], twin: Ints, inference: Inference) -> Search:
    """A search before its first node; `order`, of all local buffers, breaks its ties."""
    n, m = len(packed.size), len(packed.member_starts) - 1
    rank = np.empty(n, np.int64)
    rank[np.asarray(order, np.int64)] = np.arange(n)
    left = np.add.reduceat(packed.size[packed.members], packed.member_starts[:-1])
    counts = np.zeros(COUNTS, np.int64)
    counts[[PARTS, INFERENCE]] = 1, int(inference)
    search = Search(
        rank=rank,
        twin=twin,
        offset=np.full(n, -1, np.int64),
        lowest=packed.start.copy(),
        bound=packed.start.copy(),
        floor=np.zeros(m, np.int64),
        left=left,
        trail_at=np.zeros(trail_room(packed), np.int64),
        trail_old=np.zeros(trail_room(packed), np.int64),
        counts=counts,
        frames=np.zeros((n + 1, FRAME_COLUMNS), np.int64),
        parts=np.zeros((2 * n + 1, PART_COLUMNS), np.int64),
        arranged=np.arange(n),
        spare=np.zeros(n, np.int64),
        touched=np.zeros(m, np.int64),
        heights=np.zeros(n, np.int64),
        sizes=np.zeros(n, np.int64),
        crossing=np.zeros(m + 1, np.int64),
        deepest=np.full(n, -1, np.int64),
    )
    search.parts[0] = (-1, 0, n, -1)
    return search


def trail_room(packed: Packing) -> int:
    """More entries than one placement adds to the trail."""
    return 3 * len(packed.size) + len(packed.member_starts)


def grown(search: Search) -> Search:
    """The same search with twice the room on its trail."""
    return search._replace(
        trail_at=np.concatenate([search.trail_at, np.zeros_like(search.trail_at)]),
        trail_old=np.concatenate([search.trail_old, np.zeros_like(search.trail_old)]),
    )
