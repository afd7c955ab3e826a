"""What travels round a ring meets whom it should, and its sums come home."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from passes import ir
from passes.attention.lanes import Arrival, Course, Lane, Round, divided, joined, part_of
from tests.passes.attention import writings

HALVES = (Lane(1, 7, 0), Lane(-1, 7, 1))
WHOLE = (Lane(1, 4), Lane(-1, 3))


def spread(function: Any, *shapes: tuple[int, ...]) -> Any:
    """The function of a device's rows, on eight devices."""
    spec = PartitionSpec("seq")
    mesh = writings.placement(seq=8).mesh
    return jax.shard_map(
        function, mesh=mesh, in_specs=(spec,) * len(shapes), out_specs=spec, check_vma=False
    )


def test_phases_end_where_a_lane_does() -> None:
    assert Course("keys", WHOLE).phases() == [(1, 3, [0, 1]), (4, 4, [0])]
    assert Course("keys", HALVES).phases() == [(1, 7, [0, 1])]
    assert Course("keys", (Lane(1, 0),)).phases() == []
    assert Course("keys", WHOLE).blocks == Course("keys", HALVES).blocks == 8


@pytest.mark.parametrize("lanes", [HALVES, WHOLE, (Lane(-1, 7),), (Lane(1, 2), Lane(-1, 1))])
def test_sums_of_all_who_were_met_come_home(lanes: tuple[Lane, ...]) -> None:
    """Each device adds its number, once to each half of what it meets, and ten times its owner's to
    a sum that stays."""
    course = Course("keys", lanes)

    def visit(arrivals: list[Arrival], kept: Any) -> Any:
        index = jax.lax.axis_index("seq")
        sent = [(jnp.full_like(x.part[0], index),) for x in arrivals]
        return sent, kept + sum(10 * jnp.sum(x.part[0]) for x in arrivals)

    def rounds(x: Any) -> Any:
        index = jax.lax.axis_index("seq")
        parts = [part_of((x,), (0,), lane, 1) for lane in lanes]
        first = divided((jnp.zeros_like(x),), (0,), course, 1)
        journey = Round(course, ("seq",), 8, index, visit, lambda a, b: (a[0] + b[0],))
        sums, kept = journey.go(parts, first, jnp.zeros((1,)))
        return jnp.concatenate([*joined(sums, (0,), course, 1), kept])

    found = jax.jit(spread(rounds, (32,)))(jnp.repeat(jnp.arange(8.0), 4)).reshape(8, 5)
    for device in range(8):
        sent, kept = np.zeros(4), 0.0
        for lane in lanes:
            rows = slice(None) if lane.half is None else slice(2 * lane.half, 2 * lane.half + 2)
            for step in range(1, lane.steps + 1):
                sent[rows] += (device + lane.direction * step) % 8
                rest = 4 if lane.half is None else 2
                kept += 10 * rest * ((device - lane.direction * step) % 8)
        np.testing.assert_array_equal(found[device], [*sent, kept])


def test_of_more_than_five_the_smallest_go_first() -> None:
    def visit(arrivals: list[Arrival], kept: Any) -> Any:
        return [(x.part[0],) for x in arrivals], kept

    def rounds(wide: Any, narrow: Any) -> Any:
        arrays = (wide, wide, narrow)
        parts = [part_of(arrays, (0, 0, 0), lane, 1) for lane in HALVES]
        first = divided((wide,), (0,), Course("keys", HALVES), 1)
        journey = Round(
            Course("keys", HALVES), ("seq",), 8, jax.lax.axis_index("seq"), visit,
            lambda a, b: (a[0] + b[0],),
        )  # fmt: skip
        return journey.go(parts, first, ())[0][0][0]

    shapes = (32, 4), (32, 2)
    traced = jax.make_jaxpr(spread(rounds, *shapes))(*map(jnp.zeros, shapes))
    (scan,) = (e for e in ir.equations(ir.closed(traced)[0]) if e.primitive.name == "scan")
    body = ir.equations(ir.closed(scan.params["jaxpr"])[0])
    kinds = {"ppermute": "go", "optimization_barrier": "wait"}
    order = [
        (kinds[e.primitive.name], ir.spec(e.outvars[0]).shape)
        for e in body
        if e.primitive.name in kinds
    ]
    went = [shape for kind, shape in order if kind == "go"]
    assert [kind for kind, _ in order] == ["go"] * 3 + ["wait"] + ["go"] * 5
    assert went[:2] == [(2, 2)] * 2 and went[2:] == [(2, 4)] * 6
