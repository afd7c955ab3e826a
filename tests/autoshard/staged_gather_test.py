"""Gathers over all of a closed torus are made in two stages, and stay gathers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autoshard.machine import machine_model
from autoshard.mesh_shape import MeshShape
from autoshard.parameter_gather import ParameterGather
from autoshard.predicted_collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    Phase,
    PredictedCollective,
    Purpose,
)
from autoshard.staged_gather import first_stage, inner_devices, inner_devices_of
from autoshard.step_time import STAGED, StepTimer
from autoshard.topology import Topology
from passes.spec import Spec
from tests.autoshard import hlo

STORED: Spec = (("data", "model"), ())
WHOLE: Spec = ((), ())


def mesh(**sizes: int) -> Mesh:
    devices = np.array(jax.devices("cpu")[:8]).reshape(tuple(sizes.values()))
    return Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


@pytest.mark.parametrize(
    ("topology", "inner"),
    [
        ("v5p:4x4x4", 4),
        ("v5p:4x4x8", 4),
        ("tpu7x:4x4x4", 8),  # two dies a chip
        ("v5p:2x4x4", 1),
        ("v5e:16x16", 1),
        ("2x v5p:4x4x4", 1),
        ("h100:8x4", 1),
        ("cpu:8", 1),
    ],
)
def test_neighbours_gather_first_where_a_torus_closes_in_three_dimensions(
    topology: str, inner: int
) -> None:
    assert StepTimer(machine_model(Topology.parse(topology))).inner_devices == inner


def test_groups_of_neighbours_lie_along_axes_that_the_rest_does_not() -> None:
    box = list(itertools.product(range(4), range(6), range(4)))
    assert inner_devices(box) == 4
    shuffled = [box[i] for i in np.random.default_rng(0).permutation(len(box))]
    assert inner_devices(shuffled) == 1
    assert inner_devices_of(mesh(data=8)) == 1  # CPUs are on no torus


def test_only_what_all_devices_hold_a_part_of_is_gathered_in_stages() -> None:
    over = mesh(data=4, model=2)
    staged = first_stage(over, STORED, WHOLE, inner=2)
    assert staged is not None and staged.mesh.shape == {"outer": 4, "inner": 2}
    assert staged.spec == PartitionSpec("outer")
    one: Spec = ((), ("model", "data"))  # in another order than the mesh
    for stored, used, inner in (
        (STORED, WHOLE, 1),
        ((("data",), ()), WHOLE, 2),
        ((("data",), ("model",)), WHOLE, 2),
        ((("data",), ("model",)), ((), ("model",)), 2),
        (one, WHOLE, 2),
    ):
        assert first_stage(over, stored, used, inner) is None


@pytest.mark.parametrize("inner", [1, 2])
def test_the_parameter_and_its_gradient_are_the_same_in_stages(inner: int) -> None:
    over = mesh(data=4, model=2)
    gather = ParameterGather("w", over, STORED, WHOLE, STORED, inner)
    w = jax.random.normal(jax.random.key(0), (16, 4))
    x = jax.random.normal(jax.random.key(1), (8, 16))
    cut = NamedSharding(over, PartitionSpec(("data", "model")))

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.square(x @ gather(w)).sum()

    step = jax.jit(jax.value_and_grad(loss), in_shardings=(cut, cut), out_shardings=(None, cut))
    value, gradient = step(w, x)
    expected, reference = jax.value_and_grad(lambda w: jnp.square(x @ w).sum())(w)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=1e-4)
    moved = hlo.moved_arrays(hlo.hlo_of(step.lower(w, x)))
    gathered = [m.shape for m in moved if m.kind == "all-gather"]
    assert gathered == ([(16, 4)] if inner == 1 else [(4, 4), (16, 4)])


def test_a_gather_in_stages_takes_less_time_than_the_sum_it_replaces() -> None:
    """Over 4 x 4 x 4: 15/16 along two rings and 3/4 of a sixteenth along one; twice 63/64 along
    three rings.
    """
    machine = machine_model(Topology.parse("v5p:4x4x4"))
    shape, timer = MeshShape(("data",), (64,)), StepTimer(machine)

    def seconds(kind: str) -> float:
        one = PredictedCollective(
            kind, Purpose.PARAMETERS, Phase.FORWARD, "", "w", ("data",), 64, 1, 2**30
        )
        return timer.collective_s(shape, one)

    link = machine.axes[0].bytes_per_s
    staged = 2**30 / (2 * link) * (15 / 16 / 2 + 3 / 4 / 16)
    assert seconds(STAGED) == pytest.approx(staged, rel=0.01)
    assert seconds(STAGED) < seconds(ALL_REDUCE)
    assert seconds(ALL_GATHER) < seconds(STAGED)  # if only the compiler made it
