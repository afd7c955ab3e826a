"""Which way of spreading an attention is quickest, from bytes, links and matrix products.

For each way: what the busiest device computes, and what it waits for. A step of a ring waits for
what its transfers take longer than its computation; an exchange of heads is waited for whole.

                     forward, a device of n            backward
    ring             (n-1) x [k, v]                    (n-1) x [k, v, dk, dv] or [q, do, dq, ...]
    bidirectional    half of that each way (halves all the way, or whole blocks half the way)
    ulysses, heads   all-to-all of q, k, v, result     of q, k, v, cotangent, dq, dk, dv
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from passes.attention.block import Block
from passes.attention.heads import HeadsMethod
from passes.attention.lanes import Course, Lane, Moves
from passes.attention.parallel import Method, RingMethod
from passes.attention.pattern import Attention, HeadDim
from passes.attention.ring import Ring
from passes.attention.tiles import Tiles
from passes.attention.zigzag import mirror
from passes.hlo.collective_time import collective_time
from passes.hlo.machine import MachineModel
from passes.hlo.replica_groups import Groups

MethodName = Literal["ring", "bidirectional", "ulysses", "heads"]

# Matrix products of a tile: two in the forward pass, five in the backward pass (one of them again).
_FORWARD_PRODUCTS, _BACKWARD_PRODUCTS = 2, 5
_SUM_BYTES = 4  # gradients and partial outputs travel in float32


@dataclasses.dataclass(frozen=True)
class Axis:
    """The mesh axis that attention is spread over.

    Attributes:
      names: mesh axes, major to minor.
      size: devices along them.
      groups: logical devices of each group along them, in order.
      others: size of the rest of the mesh: how the batch and other heads are spread at most.
    """

    names: tuple[str, ...]
    size: int
    groups: Groups
    others: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a user may fix.

    Attributes:
      balance: zig-zag chunks where attention is causal.
      tile: the greatest side of a tile, in positions.
      block: the work of one tile.
    """

    balance: bool
    tile: int
    block: Block


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to spread an attention.

    Attributes:
      name: of the way.
      method: how.
      seconds: forward and backward, of one device.
      waits_s: the part of it in which nothing is computed.
    """

    name: MethodName
    method: Method
    seconds: float
    waits_s: float


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Bytes of a device's share of each array, and seconds of its matrix products.

    Attributes:
      query, key, value, result: bytes.
      query_elements, key_elements, value_elements, result_elements: how many numbers.
      row: bytes of one number a row.
      product_s: seconds of one matrix product of all its queries with all keys.
    """

    query: float
    key: float
    value: float
    result: float
    query_elements: float
    key_elements: float
    value_elements: float
    result_elements: float
    row: float
    product_s: float


def candidates(
    attention: Attention, axis: Axis, machine: MachineModel, settings: Settings
) -> list[Candidate]:
    """All ways that are possible, the quickest first."""
    tiles = Tiles(attention, settings.block, settings.tile)
    sizes = _sizes(attention, axis, machine)
    found = [_ring(tiles, axis, machine, settings, sizes, both) for both in (False, True)]
    if found[0].method == found[1].method:
        found.pop()
    head = next((h for h in attention.heads if h.size % axis.size == 0), None)
    if head is not None:
        found += [_heads(tiles, axis, machine, sizes, head, exchange) for exchange in (True, False)]
    return sorted(found, key=lambda c: c.seconds)


def ring_of(
    tiles: Tiles, axis: Axis, settings: Settings, both_ways: bool, moves: tuple[Moves, Moves]
) -> Ring:
    """The ring for an attention: its lanes, their steps, and whether chunks are zig-zag."""
    a, n = tiles.attention, axis.size
    same = a.queries == a.keys
    block = a.keys // n
    if same and not a.band.is_everything:
        ahead = max(0, math.ceil(min(a.band.most, a.keys) / block))
        behind = max(0, math.ceil(min(-a.band.least, a.keys) / block))
        if max(ahead, 1) + behind < n - 1 and not (
            ahead and behind and 2 * max(ahead, behind) >= n
        ):
            near = [Lane(1, ahead)] if ahead or not behind else []
            near += [Lane(-1, behind)] if behind else []
            course = Course("keys", tuple(near))
            return Ring(tiles, axis.names, n, 1, course, course)
    causal = same and 0 <= a.band.least <= block and a.band.most >= a.keys // 2
    zigzag = settings.balance and causal and a.keys % (2 * n) == 0 and n > 1
    chunks = 2 if zigzag else 1
    chunk = a.keys // (n * chunks)
    halves = both_ways and chunk % 2 == 0 and a.queries % (2 * n * chunks) == 0 and n > 2
    forward, backward = (
        Course(side, _lanes(n, halves, zigzag and not has_sums))
        for side, has_sums in zip(moves, (moves[0] == "queries", True), strict=True)
    )
    return Ring(tiles, axis.names, n, chunks, forward, backward)


def _lanes(size: int, both_ways: bool, whole_blocks: bool) -> tuple[Lane, ...]:
    """All the way round, or half the way."""
    if not both_ways:
        return (Lane(1, size - 1),)
    if whole_blocks:
        return (Lane(1, size // 2), Lane(-1, (size - 1) // 2))
    return (Lane(1, size - 1, 0), Lane(-1, size - 1, 1))


def _sizes(a: Attention, axis: Axis, machine: MachineModel) -> _Sizes:
    # How far the rest of the mesh cuts the batch and the heads is the partitioner's choice: assumed
    # is as far as there are rows and heads.
    rows = math.prod(n for d, n in enumerate(a.shape) if d not in (a.steps.query, a.steps.key))
    share = axis.size * math.gcd(axis.others, rows)
    arrays: list[Any] = [x.aval for x in (*a.operands, a.eqn.outvars[0])]
    elements = [math.prod(x.shape) / share for x in arrays]
    size = [n * x.dtype.itemsize for n, x in zip(elements, arrays, strict=True)]
    width = math.prod(arrays[0].shape) / (rows * a.queries)
    rate = machine.flops_per_s(_hlo_dtype(arrays[0].dtype)) * machine.efficiency
    product = 2 * rows * a.queries * a.keys * width / share
    return _Sizes(
        query=size[0],
        key=size[1],
        value=size[2],
        result=size[3],
        query_elements=elements[0],
        key_elements=elements[1],
        value_elements=elements[2],
        result_elements=elements[3],
        row=rows * a.queries * _SUM_BYTES / share,
        product_s=product / rate,
    )


def _hlo_dtype(dtype: Any) -> str:
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(str(dtype), str(dtype))


def _visible(a: Attention) -> float:
    """The share of all pairs of positions that the band leaves."""
    if a.band.is_everything:
        return 1.0
    most = min(a.band.most, a.queries)
    least = max(a.band.least, -a.keys)
    ahead = most * (1 - most / (2 * a.queries)) / a.keys if most > 0 else 0.0
    behind = -least * (1 + least / (2 * a.keys)) / a.queries if least < 0 else 0.0
    return max(min(1.0, ahead + behind), 1 / max(a.queries, a.keys))


def _ring(
    tiles: Tiles,
    axis: Axis,
    machine: MachineModel,
    settings: Settings,
    sizes: _Sizes,
    both_ways: bool,
) -> Candidate:
    a, s = tiles.attention, sizes
    keys = [s.key + s.value, s.key + s.value + _SUM_BYTES * (s.key_elements + s.value_elements)]
    partial = _SUM_BYTES * s.result_elements + 2 * s.row
    queries = [s.query + partial, s.query + s.result + 3 * s.row + _SUM_BYTES * s.query_elements]
    choose = [q < k and not _has_both(a) for q, k in zip(queries, keys, strict=True)]
    moves: tuple[Moves, Moves] = (
        "queries" if choose[0] else "keys",
        "queries" if choose[1] else "keys",
    )
    ring = ring_of(tiles, axis, settings, both_ways, moves)
    # A step's work on the busiest device: all of it, or half where causal chunks are balanced.
    work = sizes.product_s / axis.size * (0.5 if ring.chunks == 2 else 1.0)
    waits = work_s = 0.0
    passes = (ring.forward_course, ring.backward_course)
    amounts = (_FORWARD_PRODUCTS, _BACKWARD_PRODUCTS)
    for course, products, q, k in zip(passes, amounts, queries, keys, strict=True):
        share = 0.5 if course.halved else 1.0
        moved = share * (q if course.moves == "queries" else k)
        for first, last, meeting in course.phases():
            lanes = [course.lanes[i] for i in meeting]
            computes = work * products * len(lanes) * share
            waits += (last + 1 - first) * max(0.0, _hop_s(axis, machine, lanes, moved) - computes)
        work_s += course.blocks * work * products
    if ring.chunks == 2:
        halves = s.query + s.key + s.value + s.result  # a half of each, there and back
        pairs = tuple((g[i], g[j]) for g in axis.groups for i, j in mirror(axis.size))
        waits += collective_time(machine, "collective-permute", halves, pairs).seconds
    name: MethodName = "bidirectional" if ring.backward_course.halved else "ring"
    return Candidate(name, RingMethod(ring), work_s + waits, waits)


def _has_both(a: Attention) -> bool:
    return any({a.steps.query, a.steps.key} <= {*leaf.dims} for leaf in a.steps.leaves)


def _hop_s(axis: Axis, machine: MachineModel, lanes: Sequence[Lane], size_bytes: float) -> float:
    """Seconds until all lanes are one device further: those that share links one by one."""
    busy: dict[str, float] = {}
    for lane in lanes:
        pairs = tuple(
            (group[i], group[(i + lane.direction) % len(group)])
            for group in axis.groups
            for i in range(len(group))
        )
        time = collective_time(machine, "collective-permute", size_bytes, pairs)
        start = max((busy.get(link, 0.0) for link in time.links), default=0.0)
        busy.update(dict.fromkeys(time.links or ("none",), start + time.seconds))
    return max(busy.values())


def _heads(
    tiles: Tiles,
    axis: Axis,
    machine: MachineModel,
    sizes: _Sizes,
    head: HeadDim,
    exchange: bool,
) -> Candidate:
    s = sizes
    shared = head.key is None or head.value is None
    moved = 3 * s.query + 2 * s.result
    waits = 0.0
    if shared:
        whole = (s.key + s.value) * axis.size
        waits += 3 * collective_time(machine, "all-gather", whole, axis.groups).seconds
    else:
        moved += 3 * (s.key + s.value)
    waits += collective_time(machine, "all-to-all", moved, axis.groups).seconds
    products = _FORWARD_PRODUCTS + _BACKWARD_PRODUCTS
    work = s.product_s * products * _visible(tiles.attention)
    method = HeadsMethod(tiles, axis.names, axis.size, head, exchange)
    return Candidate("ulysses" if exchange else "heads", method, work + waits, waits)


def axis_of(names: tuple[str, ...], mesh_names: tuple[str, ...], sizes: Mapping[str, int]) -> Axis:
    """An axis of a mesh whose devices are numbered row by row."""
    shape = [sizes[name] for name in mesh_names]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    places = [mesh_names.index(name) for name in names]
    along = np.moveaxis(numbers, places, range(-len(places), 0))
    size = math.prod(sizes[name] for name in names)
    groups = tuple(tuple(int(x) for x in row) for row in along.reshape(-1, size))
    return Axis(names, size, groups, math.prod(shape) // size)
