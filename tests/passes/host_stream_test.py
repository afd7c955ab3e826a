"""Programs that update arrays on the host in pieces: values, refusals, memories."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from passes import ir
from passes.errors import PassError
from passes.host_cuts import Cut
from passes.host_stream import DEVICE, HOST, Stream, in_memory, is_on_host, streamed

RNG = np.random.default_rng(0)


def momentum(gradient: Any, kept: Any, parameter: Any, count: Any) -> Any:
    """A step that also knows the gradient's norm and the number of the step."""
    norm = jnp.sqrt((gradient**2).sum())
    kept = 0.9 * kept + gradient / jnp.maximum(norm, 1.0)
    return parameter - 0.1 * kept / (1 + count), kept, count + 1


def arrays(*shape: int) -> list[Any]:
    made = [jnp.asarray(RNG.normal(size=shape), jnp.float32) for _ in range(3)]
    return [*made, jnp.float32(3)]


def stream_of(cut: Cut) -> Stream:
    """Of `momentum`: reads the gradient, replaces parameter and state."""
    return Stream("w", cut, (0,), ((2, 0), (1, 1)))


def run(function: Any, arguments: list[Any], groups: Any) -> list[Any]:
    program = jax.make_jaxpr(function)(*arguments)
    results: list[Any] = jax.jit(streamed(program, groups))(*arguments)
    return results


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((6, 4), Cut(0, 6)),
        ((6, 4), Cut(0, 2)),
        ((6, 4), Cut(1, 4)),
        ((8, 4), Cut(0, 2, 4)),
        ((2, 3, 12), Cut(2, 2, 3)),
        ((2, 3, 12), Cut(2, 2, 3, (2, 0, 1))),
        ((4, 3, 5), Cut(0, 4, 1, (0, 2, 1))),
        ((5,), Cut(0, 1)),
    ],
)
def test_pieces_make_what_the_whole_makes(shape: tuple[int, ...], cut: Cut) -> None:
    arguments = arrays(*shape)
    found = run(momentum, arguments, [[stream_of(cut)]])
    for one, other in zip(found, momentum(*arguments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 2),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_any_cut_will_do(shape: list[int], dim: int, count: int, shards: int) -> None:
    dim %= len(shape)
    shape[dim] *= count * shards
    arguments = arrays(*shape)
    found = run(momentum, arguments, [[stream_of(Cut(dim, count, shards))]])
    for one, other in zip(found, momentum(*arguments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_groups_follow_one_another_and_streams_of_a_group_share_a_loop() -> None:
    def three(*inputs: Any) -> list[Any]:
        made = [momentum(*(*inputs[3 * i : 3 * i + 3], inputs[-1])) for i in range(3)]
        return [x for group in made for x in group[:2]] + [made[0][2]]

    arguments = [x for shape in ((4, 2), (4, 3), (6, 5)) for x in arrays(*shape)[:3]]
    arguments.append(jnp.float32(1))
    streams = [
        Stream(f"w{i}", cut, (3 * i,), ((3 * i + 2, 2 * i), (3 * i + 1, 2 * i + 1)))
        for i, cut in enumerate((Cut(0, 4), Cut(0, 4), Cut(0, 3)))
    ]
    found = run(three, arguments, [streams[:2], streams[2:]])
    for one, other in zip(found, three(*arguments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    program = jax.make_jaxpr(three)(*arguments)
    loops = jax.make_jaxpr(streamed(program, [streams[:2], streams[2:]]))(*arguments)
    assert [e.primitive.name for e in loops.jaxpr.eqns].count("scan") == 2


def test_the_kept_array_comes_from_the_host_and_returns_there() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    placed = NamedSharding(mesh, PartitionSpec(None, "d"))
    on_host = in_memory(placed, HOST)
    arguments = arrays(3, 8)
    expected = momentum(*arguments)
    program = jax.make_jaxpr(momentum)(*arguments)
    arguments = [jax.device_put(x, placed) for x in arguments[:3]] + arguments[3:]
    arguments[1] = jax.device_put(arguments[1], on_host)
    assert is_on_host(arguments[1]) and not is_on_host(arguments[0])
    function = jax.jit(
        streamed(program, [[stream_of(Cut(0, 3))]]), out_shardings=[placed, on_host, None]
    )
    found = function(*arguments)
    assert found[1].sharding == on_host and found[0].sharding.memory_kind != HOST
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), other, rtol=1e-6, atol=1e-7)
    moved = []
    for eqn in ir.equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        if eqn.primitive.name == "device_put":
            avals: list[Any] = [eqn.invars[0].aval, eqn.outvars[0].aval]
            moved.append((*(x.memory_space.name for x in avals), avals[1].shape))
    assert moved == [("Host", "Device", (1, 1, 8)), ("Device", "Host", (1, 1, 8))]


def _loss(names: str) -> Any:
    def by_rows(g: Any, s: Any, p: Any, c: Any) -> Any:
        return p - g / jnp.sqrt((g**2).mean(axis=-1, keepdims=True)), s + g, c

    def norm_of_state(g: Any, s: Any, p: Any, c: Any) -> Any:
        return p - g * jnp.sqrt((s**2).sum()), s + g, c

    def sorted_state(g: Any, s: Any, p: Any, c: Any) -> Any:
        return p - jnp.sort(s), s + g, c

    return {"rows": by_rows, "norm": norm_of_state, "sort": sorted_state}[names]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("rows", "'w' cannot be updated a piece at a time: reduce_sum is not elementwise"),
        ("norm", "something needs all of its state at once"),
        ("sort", "sort is not elementwise"),
    ],
)
def test_what_is_not_elementwise_is_refused(names: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        run(_loss(names), arrays(4, 4), [[stream_of(Cut(0, 4))]])


def test_a_sharding_keeps_its_mesh_and_spec_in_another_memory() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
    placed = NamedSharding(mesh, PartitionSpec("d"))
    for kind in (HOST, DEVICE):
        made = in_memory(placed, kind)
        assert (made.mesh, made.spec, made.memory_kind) == (mesh, placed.spec, kind)
