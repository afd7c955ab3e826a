"""Which devices take part in a collective together.

XLA writes groups in three ways:

    {{0,1},{2,3}}                                    as lists
    [2,4]<=[4,2]T(1,0)                               2 groups of 4: iota, reshaped, transposed
    mesh['a'=2,'b'=4] {'b'}                          devices that differ along axis b only
    mesh['a'=8], device_ids=([2,4]T(1,0)) {'a':(2)4} in another order, along a part of an axis
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from passes.hlo.errors import HloError
from passes.hlo.module import Instruction

Groups = tuple[tuple[int, ...], ...]

MAX_DEVICES = 1 << 18
_MAX_AXES = 20
_IOTA = re.compile(r"^\[([\d,]{1,60})\]<=\[([\d,]{1,60})\](?:T\(([\d,]{1,60})\))?$")
_MESH = re.compile(r"^mesh\[([^\]]{0,2000})\](.*)$", re.DOTALL)
_AXIS = re.compile(r"'([^']{1,100})'=(\d{1,9})")
_USED = re.compile(r"'([^']{1,100})'(?::\((\d{1,9})\)(\d{1,9}))?")
_ORDER = re.compile(r"device_ids=\((\[[\d,]{1,60}\])(<=\[[\d,]{1,60}\])?(?:T\(([\d,]{1,60})\))?\)")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d{1,12}", text))


def _iota(shape: tuple[int, ...], order: tuple[int, ...], what: str) -> np.ndarray:
    count = math.prod(shape)
    if not 0 < count <= MAX_DEVICES:
        raise HloError(f"{what} has {count} devices, and the most that is read is {MAX_DEVICES}")
    ids = np.arange(count).reshape(shape)
    if not order:
        return ids
    if sorted(order) != list(range(len(shape))):
        raise HloError(f"{what} transposes {len(shape)} dimensions by {order}")
    return ids.transpose(order)


def parse_groups(text: str, device_count: int) -> Groups:
    """Read replica groups.

    Args:
      text: the attribute, with `device_ids` behind it where the text has that.
      device_count: of the program: an empty list of groups means all of them.

    Raises:
      HloError: the text is none of the known forms, or its sizes do not agree.
    """
    text = text.strip()
    iota = _IOTA.match(text)
    if iota is not None:
        shape, source = _numbers(iota[1]), _numbers(iota[2])
        ids = _iota(source, _numbers(iota[3] or ""), f"replica groups {text}")
        if len(shape) != 2 or math.prod(shape) != ids.size:
            raise HloError(f"replica groups {text} do not divide {ids.size} devices")
        return tuple(map(tuple, ids.reshape(shape).tolist()))
    mesh = _MESH.match(text)
    if mesh is not None:
        return _mesh_groups(mesh[1], mesh[2], text)
    if text.startswith("{"):
        inner = re.findall(r"\{([\d, ]*)\}", text.strip()[1:-1])
        groups = tuple(_numbers(group) for group in inner if group.strip())
        if groups:
            return groups
        if not text.strip("{} ,") and 0 < device_count <= MAX_DEVICES:
            return (tuple(range(device_count)),)
    raise HloError(f"replica groups are not understood: {text[:80]!r}")


def _mesh_groups(axes: str, rest: str, text: str) -> Groups:
    pairs = _AXIS.findall(axes)
    names = [name for name, _ in pairs]
    sizes = tuple(int(size) for _, size in pairs)
    order = _ORDER.search(rest)
    braces = re.search(r"\{([^{}]*)\}\s*$", rest)
    if not 0 < len(set(names)) == len(names) <= _MAX_AXES or braces is None:
        raise HloError(f"replica groups over a mesh are not understood: {text[:80]!r}")
    if order is None:
        ids = _iota(sizes, (), f"replica groups {text[:60]}")
    else:
        source = _numbers(order[2] or order[1])
        ids = _iota(source, _numbers(order[3] or ""), f"replica groups {text[:60]}")
        if ids.size != math.prod(sizes):
            raise HloError(f"replica groups {text[:80]} have {ids.size} device ids")
    refined: list[int] = []
    kept: list[int] = []
    grouped: dict[int, int] = {}  # place in the list of axes -> dimension
    used = _USED.findall(braces[1])
    if unknown := {name for name, _, _ in used} - set(names):
        raise HloError(f"replica groups {text[:80]} are along {min(unknown)!r}, no axis of theirs")
    for name, size in zip(names, sizes, strict=True):
        for part, place in _split(name, size, used):
            if place is None:
                kept.append(len(refined))
            else:
                grouped[place] = len(refined)
            refined.append(part)
    inside = [grouped[place] for place in sorted(grouped)]
    width = math.prod(refined[d] for d in inside)
    ids = ids.reshape(refined).transpose((*kept, *inside))
    return tuple(map(tuple, ids.reshape(-1, width).tolist()))


def _split(
    name: str, size: int, used: Sequence[tuple[str, str, str]]
) -> list[tuple[int, int | None]]:
    """An axis as (size, place in the list of used axes or None) pieces, major to minor.

    `'a':(2)4` is 4 of axis `a`, of which 2 major parts stand before it.
    """
    parts = [
        (int(before or 1), int(inside or size), place)
        for place, (other, before, inside) in enumerate(used)
        if other == name
    ]
    pieces: list[tuple[int, int | None]] = []
    done = 1
    for before, inside, place in sorted(parts):
        if before < done or inside < 1 or before % done or size % (before * inside):
            raise HloError(f"replica groups take ({before}){inside} of mesh axis {name!r}={size}")
        pieces += [(before // done, None), (inside, place)]
        done = before * inside
    pieces.append((size // done, None))
    return [piece for piece in pieces if piece[0] > 1 or piece[1] is not None]


def groups_of(instruction: Instruction, device_count: int) -> Groups:
    """The groups of a collective.

    A permute gives its pairs (source, target) as they are.

    Raises:
      HloError: they cannot be understood.
    """
    pairs = instruction.attributes.get("source_target_pairs")
    if pairs is not None:
        numbers = [_numbers(p) for p in re.findall(r"\{([\d, ]+)\}", pairs)]
        return tuple(pair for pair in numbers if len(pair) == 2)
    text = instruction.attributes.get("replica_groups", "{}")
    ids = instruction.attributes.get("device_ids")
    return parse_groups(text if ids is None else f"{text}, device_ids={ids}", device_count)
