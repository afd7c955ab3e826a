"""Optimizer state on the host in programs that real compilers made: the device's memory falls by
what is moved, nothing is copied whole, and pieces are fetched in the order of the device's layout.
"""

import importlib.util
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import autoshard
import models
from autoshard import aot
from autoshard.compiled_program import CompiledMemory
from autoshard.compiling import compile_program
from autoshard.optimizer_offload import (
    Offload,
    make_update,
    mirrored_parameters,
    on_device,
    plan_offload,
    state_memories,
)
from passes.host_cuts import tpu_order

pytestmark = [pytest.mark.aot, pytest.mark.xdist_group("libtpu")]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
)
needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="jax-cuda13-plugin and jax-cuda13-pjrt are not installed",
)

BAR = 0.8
LAYERS = 16
# `narrow` is laid out the other way round by a TPU; the embedding's rows are sharded.
SHAPES = {
    "embed": (4096, 512),
    "layers": {
        "narrow": (LAYERS, 512, 4 * 192),
        "norm": (LAYERS, 512),
        "wide": (LAYERS, 512, 2048),
    },
}
SPECS = {
    "embed": ("d",),
    "layers": {"narrow": (None, None, "d"), "norm": (), "wide": (None, "d")},
}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def is_tuple(x: Any) -> bool:
    return isinstance(x, tuple)


def placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def plain(gradients: Any, state: Any, params: Any) -> Any:
    updates, state = OPTIMIZER.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def compiled_memory(topology: str, offloaded: bool) -> tuple[CompiledMemory, Offload]:
    """Memory of the update alone, parameters and state donated."""
    devices = aot.devices(topology)
    mesh = Mesh(np.array(devices), ("d",))
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SHAPES, is_leaf=is_tuple
    )
    state = jax.eval_shape(OPTIMIZER.init, params)
    of_params = jax.tree.map(
        lambda spec: NamedSharding(mesh, PartitionSpec(*spec)), SPECS, is_leaf=is_tuple
    )
    leaves, whole = jax.tree.leaves(of_params), NamedSharding(mesh, PartitionSpec())
    flat = [whole if i is None else leaves[i] for i in mirrored_parameters(state, params)]
    of_state = jax.tree.unflatten(jax.tree.structure(state), flat)
    plan = plan_offload(params, state, of_state, [False, True, True, True], least_bytes=1 << 18)
    if offloaded:
        of_params, of_state = on_device(of_params), state_memories(of_state, plan)
    jitted = jax.jit(
        make_update(OPTIMIZER, plan) if offloaded else plain,
        in_shardings=(of_params, of_state, of_params),
        out_shardings=(of_params, of_state),
        donate_argnums=(1, 2),
    )
    arguments = placed(params, of_params), placed(state, of_state), placed(params, of_params)
    with jax.set_mesh(mesh):
        lowered = jitted.lower(*arguments)
    program = compile_program(lowered, topology=topology, devices=devices, cache=False)
    assert program.memory is not None
    return program.memory, plan


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param("v5e:2x2", marks=needs_libtpu),
        pytest.param("v5p:2x2x1", marks=needs_libtpu),
        pytest.param("h100:4", marks=needs_cuda_plugin),
    ],
)
def test_the_devices_memory_falls_by_what_is_on_the_host(topology: str) -> None:
    before, _ = compiled_memory(topology, offloaded=False)
    after, plan = compiled_memory(topology, offloaded=True)
    assert before.host_arguments_bytes == 0
    assert after.host_arguments_bytes == after.host_outputs_bytes == plan.host_bytes
    assert after.host_aliased_bytes == plan.host_bytes
    assert after.host_temporaries_bytes == 0
    assert before.total_bytes - after.total_bytes >= BAR * plan.host_bytes
    assert before.arguments_bytes - after.arguments_bytes == plan.host_bytes


@needs_libtpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layouts_are_those_that_the_cuts_count_on(dtype: str) -> None:
    shapes = [
        *((300,), (32, 2048), (2048, 32), (4096, 2004), (2004, 4096), (16, 64, 448)),
        *((16, 1024, 448), (16, 4, 1024), (16, 1024, 4), (16, 128, 130), (16, 130, 128)),
        *((7, 1024, 1000), (3, 16, 1024, 448), (16, 1024, 8, 56), (16, 56, 8, 1024)),
    ]
    devices = aot.devices("v5e:2x2")
    whole = NamedSharding(Mesh(np.array(devices), ("d",)), PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(s, jnp.dtype(dtype), sharding=whole) for s in shapes]
    lowered = jax.jit(lambda *xs: [x + 1 for x in xs]).lower(*arguments)
    text = compile_program(lowered, topology="v5e:2x2", devices=devices, cache=False).hlo_text
    entry = re.search(r"entry_computation_layout=\{\((.*?)\)->", text)
    assert entry is not None
    found = [
        tuple(int(dim) for dim in reversed(order.split(",")))
        for order in re.findall(r"\]\{([\d,]+):", entry[1])
    ]
    assert found == [tpu_order(shape) for shape in shapes]


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("v5p:2x2x2 data=8", marks=needs_libtpu),
        pytest.param("h100:8 data=8", marks=needs_cuda_plugin),
    ],
)
def test_a_whole_step_by_compile(target: str) -> None:
    """Of stacked layers and single tables: what is on the host is gone from the device."""
    sizes = {"d_model": 512, "num_heads": 4, "num_kv_heads": 4, "d_ff": 2048, "vocab_size": 8192}
    spec = models.get("llama3_tiny", num_layers=4, **sizes)
    found = {}
    for offload in ("none", "optimizer"):
        compiled: Any = autoshard.compile(
            spec.build(), target, batch=spec.example_batch(8, 64), rules="zero3",
            optimizer=optax.adam(1e-3), passes="stack_layers", offload=offload,
        )  # fmt: skip
        found[offload] = compiled.report.memory
    host = found["optimizer"].host_arguments_bytes
    assert host > 0.5 * found["none"].arguments_bytes  # two moments of three arrays, but small ones
    assert found["none"].needed_bytes - found["optimizer"].needed_bytes >= BAR * host
    assert found["optimizer"].host_temporaries_bytes == 0
