"""Meshes and topologies: parsing, splitting in parts, and errors."""

import math

import hypothesis
import pytest
from hypothesis import strategies as st

import autoshard
from autoshard.mesh_shape import MeshShape, coalesce, prime_factors, rename, split_into_primes
from autoshard.target import factorisations, resolve
from autoshard.topology import Topology


@hypothesis.given(st.integers(1, 100_000))
def test_prime_factors_multiply_and_are_prime(number: int) -> None:
    factors = prime_factors(number)
    assert math.prod(factors) == number
    assert all(f > 1 and all(f % d for d in range(2, math.isqrt(f) + 1)) for f in factors)


@st.composite
def meshes_and_specs(draw: st.DrawFn) -> tuple[MeshShape, list[tuple[tuple[str, ...], ...]]]:
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 12]), min_size=1, max_size=3)))
    shape = MeshShape(tuple(f"ax{i}" for i in range(len(sizes))), sizes)
    parts = list(split_into_primes(shape).refined.names)
    specs: list[tuple[tuple[str, ...], ...]] = []
    for _ in range(draw(st.integers(0, 4))):
        chosen = draw(st.lists(st.sampled_from(parts), unique=True))
        cut = draw(st.integers(0, len(chosen)))
        specs.append((tuple(chosen[:cut]), tuple(chosen[cut:])))
    return shape, specs


@hypothesis.given(meshes_and_specs())
def test_coalescing_keeps_every_shard_count(
    drawn: tuple[MeshShape, list[tuple[tuple[str, ...], ...]]],
) -> None:
    shape, specs = drawn
    split = split_into_primes(shape)
    smaller, renamed = coalesce(split, specs)
    assert smaller.refined.device_count == shape.device_count
    assert len(smaller.refined.names) <= len(split.refined.names)
    for spec in specs:
        again = rename(spec, renamed)
        for before, after in zip(spec, again, strict=True):
            assert split.refined.shards(before) == smaller.refined.shards(after)
            # The devices are split in the same order: cumulative products of the old parts contain
            # the new.
            assert [renamed[p] for p in before if renamed[p]] == list(after)


def test_an_axis_used_whole_keeps_its_name() -> None:
    split = split_into_primes(MeshShape(("data", "model"), (6, 8)))
    model = split.of("model")
    smaller, renamed = coalesce(split, [((), model)])
    assert smaller.refined == MeshShape(("data", "model"), (6, 8))
    assert rename(((), model), renamed) == ((), ("model",))


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data:8x2", "cannot read topology 'data:8x2'"),
        ("npu:8", "cannot read topology 'npu:8'.*cpu, gpu, tpu"),
        ("cpu:0", "cannot read topology"),
        ("data=2,model", "write axes as 'data=2,model=4' .at 'model'"),
        ("data=two", "cannot read mesh 'data=two'"),
        ("data=2,data=4", "a name of its own"),
        ("data=0", "sizes of at least 1, got data=0"),
        ("", "cannot read topology ''"),
        (8, "a mesh of type int is not understood"),
    ],
)
def test_meshes_that_cannot_be_read(mesh: object, message: str) -> None:
    with pytest.raises(autoshard.MeshError, match=message):
        resolve(mesh)


def test_topologies() -> None:
    assert Topology.parse("CPU:8") == Topology("cpu", 8)
    assert {s.sizes for s in factorisations(6)} == {(6, 1), (3, 2), (2, 3), (1, 6)}
    assert resolve("cpu:8").devices is not None
    assert resolve("cpu:4096").devices is None
    assert resolve("data=2,model=2").devices is not None
