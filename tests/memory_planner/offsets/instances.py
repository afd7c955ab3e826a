"""Problems for the tests, and a solver that shares nothing with ours."""

import random

from memory_planner.offsets import Buffer, OffsetProblem


def problem(*rows: tuple[int, int, int]) -> OffsetProblem:
    """Buffers b0, b1, ... from (begin, end, size in bytes)."""
    return OffsetProblem(tuple(Buffer(f"b{i}", *row) for i, row in enumerate(rows)))


# The example of MiniMalloc's README, which fits 12 bytes.
EXAMPLE = problem((0, 3, 4), (3, 9, 4), (0, 9, 4), (9, 21, 4), (0, 21, 4))

# No time has more than 5 bytes live, but no packing is lower than 6.
TIGHT_BUT_IMPOSSIBLE = problem(
    (5, 6, 3), (0, 2, 2), (3, 6, 2), (0, 4, 1), (1, 3, 1), (2, 5, 1), (1, 5, 1), (0, 1, 2)
)  # fmt: skip


def cut_up(count: int, seed: int, left_out: int = 0) -> OffsetProblem:
    """256 bytes, full for all of 30 times, cut at random into `count` buffers, without some."""
    capacity, times = 256, 30
    rng = random.Random(seed)
    pieces = [(0, times, 0, capacity)]
    while len(pieces) < count:
        area = [(end - begin) * (high - low) for begin, end, low, high in pieces]
        picked = max(rng.sample(range(len(pieces)), min(4, len(pieces))), key=area.__getitem__)
        begin, end, low, high = pieces.pop(picked)
        width = (end - begin) / times
        chance = 0.5 if width > 0.3 else 0.35 if width > 0.05 else 0.1
        if rng.random() < chance and end - begin > 1:
            at = rng.randint(begin + 1, end - 1)
            pieces += [(begin, at, low, high), (at, end, low, high)]
        elif high - low > 4:
            at = rng.randint(low + 1, high - 1)
            pieces += [(begin, end, low, at), (begin, end, at, high)]
        else:
            pieces.append((begin, end, low, high))
    rng.shuffle(pieces)
    return problem(*((begin, end, high - low) for begin, end, low, high in pieces[left_out:]))


def _meet(a: Buffer, b: Buffer) -> bool:
    def times(buffer: Buffer) -> set[int]:
        gone = {t for begin, end in buffer.gaps for t in range(begin, end)}
        return set(range(buffer.begin, buffer.end)) - gone

    return bool(times(a) & times(b))


def can_be_packed(wanted: OffsetProblem, capacity: int) -> bool:
    """Whether a packing exists, by trying every offset of every buffer."""
    live = [b for b in wanted.buffers if b.size_bytes and _meet(b, b)]

    def rest_fits(placed: tuple[int, ...]) -> bool:
        if len(placed) == len(live):
            return True
        buffer = live[len(placed)]
        for offset in range(capacity - buffer.size_bytes + 1):
            allowed = offset % buffer.alignment == 0 and buffer.offset in (None, offset)
            if (
                allowed
                and all(
                    offset + buffer.size_bytes <= low
                    or low + other.size_bytes <= offset
                    or not _meet(buffer, other)
                    for other, low in zip(live, placed, strict=False)
                )
                and rest_fits((*placed, offset))
            ):
                return True
        return False

    return rest_fits(())
