"""Optimizer state on the host: what goes there, and that steps are those of optax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autoshard.optimizer_offload import (
    Offload,
    make_update,
    mirrored_parameters,
    on_device,
    plan_offload,
    state_memories,
)
from passes.errors import PassError
from passes.host_cuts import Cut
from passes.host_stream import DEVICE, HOST

LAYERS = 3
SHAPES = {
    "layers": {"up": (LAYERS, 32, 64), "down": (LAYERS, 64, 32), "norm": (LAYERS, 32)},
    "embed": (128, 32),
    "scale": (),
}
SPECS = {
    "layers": {"up": (None, "d"), "down": (None, None, "d"), "norm": ()},
    "embed": ("d",),
    "scale": (),
}
STACKED = [False, True, True, True, False]  # in the order of the leaves
MESH = Mesh(np.array(jax.devices()[:4]), ("d",))
HOST_BYTES = 4096


def is_shape(x: Any) -> bool:
    return isinstance(x, tuple)


def random_tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), SHAPES, is_leaf=is_shape
    )


def placed(opt_state: Any, params: Any) -> tuple[Any, Any]:
    """Shardings of parameters and state."""
    of_params = jax.tree.map(
        lambda spec: NamedSharding(MESH, PartitionSpec(*spec)), SPECS, is_leaf=is_shape
    )
    flat, whole = jax.tree.leaves(of_params), NamedSharding(MESH, PartitionSpec())
    mirrors = mirrored_parameters(opt_state, params)
    of_state = [whole if i is None else flat[i] for i in mirrors]
    return of_params, jax.tree.unflatten(jax.tree.structure(opt_state), of_state)


def planned(optimizer: Any, **settings: Any) -> tuple[Offload, Any, Any]:
    """(plan, shardings of parameters, shardings of state in their memories)."""
    params = random_tree(0)
    state = jax.eval_shape(optimizer.init, params)
    of_params, of_state = placed(state, params)
    settings = {"least_bytes": HOST_BYTES, **settings}
    plan = plan_offload(params, state, of_state, STACKED, **settings)
    return plan, of_params, state_memories(of_state, plan)


def weights_only(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)


OPTIMIZERS = {
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "lion": optax.lion(0.1),
    "rmsprop": optax.rmsprop(0.1),
    "narrow": optax.adamw(0.1, mu_dtype=jnp.bfloat16),
    "scheduled": optax.adam(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 5)),
    "masked": optax.adamw(0.1, weight_decay=0.1, mask=weights_only),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_optax(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    plan, of_params, of_state = planned(optimizer)
    assert any(plan.on_host)

    params = random_tree(0)
    state = optimizer.init(params)
    own_params, own_state = jax.device_put(params, of_params), jax.device_put(state, of_state)
    update = jax.jit(
        make_update(optimizer, plan),
        in_shardings=(of_params, of_state, of_params),
        out_shardings=(of_params, of_state),
        donate_argnums=(1, 2),
    )

    @jax.jit
    def plain(gradients: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(1, 4):
        gradients = random_tree(step)
        params, state = plain(gradients, state, params)
        own_params, own_state = update(jax.device_put(gradients, of_params), own_state, own_params)
    tolerance = 1e-2 if name == "narrow" else 1e-6
    for one, other in zip(
        jax.tree.leaves((own_params, own_state)), jax.tree.leaves((params, state)), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            np.asarray(one, np.float32),
            np.asarray(other, np.float32),
            rtol=tolerance,
            atol=tolerance,
        )
    kinds = [x.sharding.memory_kind for x in jax.tree.leaves(own_state)]
    assert kinds == [HOST if host else DEVICE for host in plan.on_host]


def test_large_state_goes_to_the_host_and_layers_share_a_loop() -> None:
    plan, _, of_state = planned(optax.adamw(0.1), piece_bytes=16 << 10)
    # Leaves: embed, down, norm, up, scale; state: count, then twice these.
    assert plan.mirrors == (None, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4)
    assert plan.cuts == (Cut(1, 2), Cut(0, LAYERS), None, Cut(0, LAYERS), None)
    assert plan.loops == ((0,), (1, 3))
    assert plan.on_host == (False, *(True, True, False, True, False) * 2)
    shard = 128 * 32 + LAYERS * 2 * 64 * 32
    assert plan.host_bytes == 2 * 4 * shard // 4
    assert plan.device_bytes == 2 * 2 * 4 * (2 * 64 * 32) // 4  # a layer, before and after
    kinds = [s.memory_kind for s in jax.tree.leaves(of_state)]
    assert kinds.count(HOST) == 6 and kinds.count(DEVICE) == 5


@pytest.mark.parametrize(
    ("wanted_bytes", "moved"), [(0, []), (1, [1]), (12288, [1]), (12289, [1, 3]), (None, [0, 1, 3])]
)
def test_no_more_goes_to_the_host_than_is_wanted(
    wanted_bytes: int | None, moved: list[int]
) -> None:
    plan, _, _ = planned(optax.adamw(0.1), wanted_bytes=wanted_bytes)
    assert [i for i, cut in enumerate(plan.cuts) if cut is not None] == moved
    assert plan.host_bytes == sum((8192, 12288, 0, 12288)[i] for i in moved)


def test_layers_that_are_large_together_get_loops_of_their_own() -> None:
    plan, _, _ = planned(optax.adamw(0.1), piece_bytes=4 << 10)
    assert plan.loops == ((0,), (1,), (3,))
    assert plan.device_bytes == 2 * 2 * 4 * 64 * 32 // 4


@pytest.mark.parametrize(
    ("shape", "spec", "stacked", "cut"),
    [
        ((4096, 32), ("d",), False, Cut(1, 2)),
        ((4096, 31), ("d",), False, Cut(0, 2, 4)),
        ((4, 64, 32), ("d",), True, Cut(1, 2)),  # its layers are sharded
    ],
)
def test_what_has_no_layers_of_its_own_is_cut_in_parts(
    shape: tuple[int, ...], spec: tuple[str, ...], stacked: bool, cut: Cut
) -> None:
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    state = jax.eval_shape(optax.adam(0.1).init, params)
    rows, whole = (NamedSharding(MESH, PartitionSpec(*s)) for s in (spec, ()))
    places = jax.tree.map(lambda x: rows if x.shape else whole, state)
    plan = plan_offload(params, state, places, [stacked], least_bytes=1)
    assert plan.cuts == (cut,)
    assert plan.device_bytes == plan.host_bytes  # half of it, before and after


def test_nothing_is_planned_for_small_state_or_none() -> None:
    for optimizer, settings in ((optax.adam(0.1), {"least_bytes": 1 << 30}), (optax.sgd(0.1), {})):
        plan, _, of_state = planned(optimizer, **settings)
        assert not plan.loops and plan.host_bytes == plan.device_bytes == 0
        assert all(s.memory_kind == DEVICE for s in jax.tree.leaves(of_state))


def test_an_optimizer_that_mixes_elements_is_refused_by_name() -> None:
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_trust_ratio())
    plan, _, _ = planned(optimizer)
    params = random_tree(0)
    with pytest.raises(PassError, match=r"state of 'embed'.*something needs all of its state"):
        jax.eval_shape(make_update(optimizer, plan), params, optimizer.init(params), params)


def test_scalars_reach_the_optimizer() -> None:
    def scaled_by_loss() -> optax.GradientTransformationExtraArgs:
        def update(updates: Any, state: Any, params: Any = None, *, value: Any, **_: Any) -> Any:
            return jax.tree.map(lambda g: -value * g, updates), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    optimizer = optax.chain(scaled_by_loss(), optax.trace(0.9))
    plan, _, _ = planned(optimizer)
    params, gradients = random_tree(0), random_tree(1)
    update = jax.jit(make_update(optimizer, plan))
    found, _ = update(gradients, optimizer.init(params), params, value=jnp.float32(0.5))
    for one, p, g in zip(*map(jax.tree.leaves, (found, params, gradients)), strict=True):
        np.testing.assert_allclose(one, p - 0.5 * g, rtol=1e-6, atol=1e-6)


def test_other_arguments_get_a_memory_too() -> None:
    sharding = NamedSharding(MESH, PartitionSpec())
    made = on_device({"a": sharding, "b": None})
    assert made["a"].memory_kind == DEVICE and made["b"] is None
