"""Bytes and seconds of moving a cache, against closed forms."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import autoshard
from autoshard import InferenceShape, MeshError, PlanError
from autoshard.cache_transfer import cache_transfer, shared_sizes, slices_of
from autoshard.mesh_shape import MeshShape
from tests.autoshard.cases import small

BATCH, CAPACITY, LAYERS = 8, 16, 2
# Keys and values, [batch, positions, 4 heads, 8 wide] in float32.
CACHE_BYTES = 2 * LAYERS * BATCH * CAPACITY * 4 * 8 * 4


def compiled(task: str, mesh: str | Mesh, **fields: int):
    options = autoshard.SearchOptions(verify=0)
    return autoshard.compile(
        small("llama", num_layers=LAYERS, **fields).build(),
        mesh,
        batch=InferenceShape(BATCH, 4, CAPACITY),
        task=task,
        rules="data" if isinstance(mesh, Mesh) or "model=1" in mesh else "redco",
        search=options,
    )


def test_slices_are_dealt_out_major_to_minor():
    mesh = MeshShape(("a", "b", "c"), (2, 3, 2))
    found = slices_of((12, 5), (("b", "a"), ()), mesh)
    assert found.shape == (12, 2, 2)
    # Device (a, b, c) has the block 2b + a of six, each of two rows, and all columns.
    expected = [2 * (2 * b + a) for a in range(2) for b in range(3) for _ in range(2)]
    np.testing.assert_array_equal(found[:, 0, 0], expected)
    np.testing.assert_array_equal(found[:, 0, 1] - found[:, 0, 0], 2)
    np.testing.assert_array_equal(found[:, 1], [[0, 5]] * 12)


def test_shared_sizes_are_areas_of_intersections():
    others = np.array([[[0, 4], [0, 4]], [[2, 6], [3, 4]], [[4, 8], [0, 4]]])
    np.testing.assert_array_equal(shared_sizes(np.array([[1, 4], [2, 6]]), others), [6, 2, 0])


def test_one_layout_moves_nothing():
    prefill, decode = (compiled(t, "cpu:8 data=4,model=2") for t in ("prefill", "decode"))
    found = cache_transfer(prefill, decode)
    assert found.cache_bytes == CACHE_BYTES
    assert (found.moved_bytes_per_device, found.total_bytes, found.seconds) == (0, 0, 0.0)
    assert found.same_machine


def test_from_rows_to_heads():
    # Rows are an eighth each, then halves by quarters of heads: device i has row i, and wants rows
    # 4 (i // 4) to 4 (i // 4) + 4 of heads i % 4. It has its row's quarter of that already.
    prefill = compiled("prefill", "cpu:8 data=8,model=1")
    decode = compiled("decode", "cpu:8 data=2,model=4")
    found = cache_transfer(prefill, decode)
    lacking = CACHE_BYTES // 8 * 3 // 4
    assert found.moved_bytes_per_device == lacking
    assert found.total_bytes == 8 * lacking
    # Groups of four exchange: three quarters of what each holds leave it, over the one port that a
    # device of the machine has.
    machine = decode.target.planning_machine(decode.plan.mesh.shape)
    (axis,) = machine.axes
    assert found.over == (axis.name,)
    latency = pytest.approx(axis.latency_s, rel=10)
    assert found.seconds - lacking / axis.bytes_per_s == latency


def test_another_machine_receives_everything_over_the_hosts_network():
    prefill = compiled("prefill", "v5e:2x4 data=8,model=1")
    decode = compiled("decode", "v5e:4x4 data=4,model=4")
    found = cache_transfer(prefill, decode)
    assert not found.same_machine
    assert found.moved_bytes_per_device == CACHE_BYTES // 16
    assert found.total_bytes == CACHE_BYTES
    # Half as many devices send as receive.
    chip = prefill.target.topology.known_chip
    share = chip.network.count * chip.network.bytes_per_s / chip.chips_per_host
    assert found.seconds == pytest.approx(CACHE_BYTES / 8 / share + chip.network.latency_s)
    assert "to v5e:4x4 (data=4,model=4): at most 4.00 KiB to a device, 64.0 KiB in all" in str(
        found
    )


def test_replicas_all_receive_theirs():
    # Eight devices for four heads: two hold the same.
    prefill = compiled("prefill", "v5e:2x4 data=8,model=1")
    decode = compiled("decode", "v5e:2x4 data=1,model=8")
    found = cache_transfer(prefill, decode, same_machine=False)
    assert found.moved_bytes_per_device == CACHE_BYTES // 4
    assert found.total_bytes == 2 * CACHE_BYTES


def test_devices_are_known_by_themselves():
    devices = np.array(jax.devices())
    there, back, first, last = (
        Mesh(chosen.reshape(-1, 1), ("data", "model"))
        for chosen in (devices, devices[::-1], devices[:4], devices[4:])
    )
    # Row i is on device i, and is wanted on device 7 - i.
    turned = cache_transfer(compiled("prefill", there), compiled("decode", back))
    assert turned.moved_bytes_per_device == CACHE_BYTES // 8
    assert turned.total_bytes == CACHE_BYTES
    # Halves of one machine are two machines to each other, and nobody knows their network.
    with pytest.raises(MeshError, match="nothing is known of the network"):
        cache_transfer(compiled("prefill", first), compiled("decode", last))


def test_caches_that_differ_are_refused():
    prefill = compiled("prefill", "cpu:8 data=8,model=1")
    decode = compiled("decode", "cpu:8 data=8,model=1", num_kv_heads=2)
    with pytest.raises(PlanError, match=r"caches of Llama .* differ"):
        cache_transfer(prefill, decode)


def test_machines_without_a_network_are_refused():
    prefill, decode = (compiled(t, "cpu:8 data=8,model=1") for t in ("prefill", "decode"))
    with pytest.raises(MeshError, match="nothing is known of the network of cpu:8"):
        cache_transfer(prefill, decode, same_machine=False)
    elsewhere = compiled("decode", "v5e:2x4 data=8,model=1")
    with pytest.raises(PlanError, match="do not have the same devices"):
        cache_transfer(prefill, elsewhere, same_machine=True)
    assert dataclasses.is_dataclass(cache_transfer(prefill, decode))
