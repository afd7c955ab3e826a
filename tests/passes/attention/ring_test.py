"""Who meets whom on a ring: every visible pair of chunks once, the same number on each device."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from passes.attention.arrays import Arrays
from passes.attention.block import JnpBlock
from passes.attention.choose import Settings, axis_of, candidates
from passes.attention.lanes import Course, Lane, Moves
from passes.attention.parallel import RingMethod, attend
from passes.attention.pattern import Attention, find
from passes.attention.ring import Ring, Side
from passes.attention.scopes import scopes
from passes.attention.tiles import Tiles, tile_size
from passes.attention.zigzag import chunk_at, from_zigzag, to_zigzag
from tests.passes.attention import writings
from tests.passes.attention.writings import MASKS


def attention(mask: str = "causal", length: int = 32) -> Attention:
    program = writings.program(
        MASKS[mask], writings.parameters(length=length), writings.batch(length)
    )
    (found,) = find(scopes(program.jaxpr))
    assert isinstance(found, Attention)
    return found


def ways(
    mask: str, size: int, length: int = 32, rate: float = 1e11, balance: bool = True
) -> dict[str, Any]:
    machine = writings.machine(size, rate)
    axis = axis_of(("seq",), ("seq",), {"seq": size})
    settings = Settings(balance, 512, JnpBlock())
    return {c.name: c for c in candidates(attention(mask, length), axis, machine, settings)}


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_zigzag_work_is_whole_and_even(size: int) -> None:
    ring = ways("causal", size, 16 * size)["ring"].method.ring
    assert ring.chunks == 2 and ring.forward_course.lanes == (Lane(1, size - 1),)
    seen: dict[tuple[int, int], int] = {}
    for step in range(size):
        counts = set()
        for device in range(size):
            owner = (device - step) % size
            queries = Side((), (), jnp.int32(device), 0, 4)
            keys = Side((), (), jnp.int32(owner), 0, 4)
            if step:
                pairs = [ring._met(queries, keys, turn) for turn in (0, 1)]
            else:
                pairs = ring._at_home(queries, keys)
            counts.add(len(pairs))
            for one, other, _ in pairs:
                pair = (int(chunk_at(device, one, size)), int(chunk_at(owner, other, size)))
                seen[pair] = seen.get(pair, 0) + 1
        assert counts == {2 if step else 3}
    assert seen == {(q, k): 1 for q in range(2 * size) for k in range(q + 1)}


@pytest.mark.parametrize("size", [3, 4, 7, 8])
@pytest.mark.parametrize("mask", ["causal", "none"])
def test_both_ways_every_half_meets_every_other_device_once(size: int, mask: str) -> None:
    ring = ways(mask, size, 16 * size)["bidirectional"].method.ring
    for course in (ring.forward_course, ring.backward_course):
        assert [lane.direction for lane in course.lanes] == [1, -1]
        assert course.blocks == size
        for device in range(size):
            met = [
                (lane.half if course.halved else half, (device - lane.direction * step) % size)
                for first, last, meeting in course.phases()
                for step in range(first, last + 1)
                for lane in (course.lanes[i] for i in meeting)
                for half in ((0,) if course.halved else (0, 1))
            ]
            others = [other for other in range(size) if other != device]
            assert sorted(met) == [(half, other) for half in (0, 1) for other in others]
    # Sums come home one step after the last: whole blocks would have half the ring to go.
    assert ring.backward_course.halved
    assert ring.forward_course.halved == (mask == "none")


@pytest.mark.parametrize(
    ("size", "forward", "backward"), [(4, "queries", "keys"), (3, "keys", "queries")]
)
def test_zigzag_both_ways_is_attention(size: int, forward: Moves, backward: Moves) -> None:
    method = ways("causal", size, 8 * size)["bidirectional"].method
    halves, some = method.ring.backward_course.lanes, method.ring.forward_course.lanes
    there = Course(forward, halves if forward == "queries" else some)
    ring = dataclasses.replace(
        method.ring, forward_course=there, backward_course=Course(backward, halves)
    )
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(k, (writings.B, 8 * size, writings.H, writings.D)) for k in keys]
    mesh = writings.placement(seq=size).mesh

    def spread(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(jnp.cos(attend(RingMethod(ring), mesh, Arrays((q,), (k, v)))))

    def dense(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(jnp.cos(MASKS["causal"](q, k, v, {})))

    one, other = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arrays) for f in (dense, spread))
    assert float(other[0]) == pytest.approx(float(one[0]), rel=1e-5)
    for wanted, found in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_zigzag_there_and_back(size: int) -> None:
    mesh = writings.placement(seq=size).mesh
    x = jnp.arange(4 * size, dtype=jnp.int32)
    spec = PartitionSpec("seq")

    def spread(function: Any) -> Any:
        return jax.jit(
            jax.shard_map(
                lambda x: function(x, 0, ("seq",), size), mesh=mesh, in_specs=spec, out_specs=spec
            )
        )

    there = spread(to_zigzag)(x)
    chunks = [c for d in range(size) for c in sorted((2 * d, 2 * size - 1 - 2 * d))]
    assert sorted(chunks) == list(range(2 * size))
    np.testing.assert_array_equal(there, np.concatenate([[2 * c, 2 * c + 1] for c in chunks]))
    np.testing.assert_array_equal(spread(from_zigzag)(there), x)


def test_a_window_needs_only_its_neighbours() -> None:
    ring = ways("window", 8)["ring"].method.ring  # five keys, four positions a device
    assert ring.forward_course.lanes == (Lane(1, 1),) and ring.chunks == 1
    ring = ways("near", 8)["ring"].method.ring  # three keys both ways
    assert ring.forward_course.lanes == ring.backward_course.lanes == (Lane(1, 1), Lane(-1, 1))


def test_without_balance_chunks_are_contiguous() -> None:
    assert ways("causal", 4, balance=False)["ring"].method.ring.chunks == 1
    assert ways("none", 4)["ring"].method.ring.chunks == 1


def test_two_devices_have_no_second_way() -> None:
    assert "bidirectional" not in ways("none", 2)


def test_on_slow_links_both_ways_win_over_one_and_wait_half() -> None:
    found = ways("none", 8, length=64, rate=1e3)
    one, both = found["ring"], found["bidirectional"]
    assert both.waits_s == pytest.approx(one.waits_s / 2, rel=0.01)
    # Three forward and backward: q, k, v, result in float32 of 4 heads of 4 for 2 x 8 positions;
    # keys go round forward (two arrays), and backward queries (query, cotangent, gradient, and
    # three numbers a row of 4) or keys (two, and two gradients).
    array = 4 * 2 * 8 * 4 * 4
    rows = 4 * 2 * 8 * 4
    backward = min(4 * array, 3 * array + 3 * rows)
    assert one.waits_s == pytest.approx(7 * (2 * array + backward) / 1e3, rel=0.01)


def test_auto_goes_both_ways_only_where_one_way_waits() -> None:
    slow, quick = ways("causal", 8, length=64, rate=1e3), ways("causal", 8, 1 << 15, rate=1e13)
    assert next(iter(slow)) == "bidirectional"
    # Keys and values go forward, 7 steps, or 4 both ways; backward query, cotangent, gradient and
    # three numbers a row, 7 steps or as many halves. Halves of four arrays swap there and back for
    # the zig-zag, two on a link.
    array, rows = 4 * 2 * 8 * 4 * 4, 4 * 2 * 8 * 4
    backward, swap = 3 * array + 3 * rows, 2 * 4 * array
    one, both = 7 * 2 * array + 7 * backward + swap, 4 * 2 * array + 7 * backward / 2 + swap
    assert slow["ring"].waits_s == pytest.approx(one / 1e3, rel=0.01)
    assert slow["bidirectional"].waits_s == pytest.approx(both / 1e3, rel=0.01)
    assert next(iter(quick)) == "ring"
    assert quick["bidirectional"].seconds == quick["ring"].seconds


def test_heads_are_chosen_where_they_move_less() -> None:
    found = ways("none", 4, length=64, rate=1e6)
    assert min(found.values(), key=lambda c: c.seconds).name in ("ulysses", "heads")
    assert "ulysses" not in ways("none", 8, length=64)  # four heads


@given(st.integers(1, 3000), st.integers(1, 600))
def test_tiles_divide(length: int, most: int) -> None:
    size = tile_size(length, most)
    assert length % size == 0
    assert size <= most or all(length % d for d in range(-(-most // 4), most + 1))


@pytest.mark.parametrize(
    ("chunk", "most", "side"),
    [(256, 1024, 256), (2048, 1024, 512), (8192, 1024, 1024), (1 << 16, 1024, 1024), (8192, 4, 4)],
)
def test_tiles_are_an_eighth_of_a_chunk_within_limits(chunk: int, most: int, side: int) -> None:
    assert Tiles(attention(), JnpBlock(), most).side(chunk) == side


def test_a_causal_chunk_skips_tiles_ahead() -> None:
    tiles = Tiles(attention("causal"), JnpBlock(), 4)
    stay = Course("keys", (Lane(1, 0),))
    ring = Ring(tiles, ("seq",), 1, 1, stay, stay)
    queries = jnp.zeros((writings.B, 16, writings.H, writings.D))
    text = str(jax.make_jaxpr(lambda q: _one(ring, q))(queries))
    assert "length=10" in text  # of 4 x 4 tiles, those on and below the diagonal


def _one(ring: Ring, queries: Any) -> Any:
    return ring.forward(Arrays((queries,), (queries, queries))).values
