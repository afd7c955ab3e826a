"""Costs of equations against closed forms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from passes import ir
from passes.equation_cost import CostModel, EquationCost, array_bytes
from passes.hlo.machine import Axis, Fabric, MachineModel
from passes.spec import Spec

LINK = 1e9
MACHINE = MachineModel(
    name="test",
    platform="tpu",
    clock_hz=1e9,
    peak_flops=(("f32", 1e12), ("bf16", 2e12)),
    vector_flops=1e11,
    hbm_bytes=2**34,
    hbm_bytes_per_s=1e11,
    fast_bytes=2**20,
    host_bytes_per_s=1e9,
    axes=(
        Axis("x", 2, Fabric.SWITCH, False, LINK, 0.0),
        Axis("y", 4, Fabric.SWITCH, False, LINK, 0.0),
    ),
    coordinates=tuple((i // 4, i % 4) for i in range(8)),
    efficiency=0.5,
)


def costs() -> CostModel:
    return CostModel(MACHINE, Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "model")))


def first(function: Callable[..., Any], *shapes: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    """The first equation of a function."""
    specs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return ir.closed(jax.make_jaxpr(function)(*specs))[0].eqns[0]


def cost(
    eqn: ir.JaxprEqn, specs: tuple[Spec, ...] = (), held: tuple[int, ...] = ()
) -> EquationCost:
    """Its cost; `specs` of the operands and the result."""
    named = dict(zip([*eqn.invars, *eqn.outvars], specs, strict=False))
    kept = frozenset(eqn.invars[i] for i in held)
    return costs().of(eqn, lambda x: named.get(x, ()), kept)


PRODUCT = (jnp.matmul, (256, 512), (512, 1024))
FLOPS = 2 * 256 * 512 * 1024


def test_a_product_is_its_flops_at_the_sustained_rate() -> None:
    found = cost(first(*PRODUCT))
    assert found.flops == FLOPS
    assert found.seconds == pytest.approx(max(FLOPS / 0.5e12, found.hbm_bytes / 1e11))
    assert found.hbm_bytes == 4 * (256 * 512 + 512 * 1024 + 256 * 1024)
    assert cost(first(*PRODUCT, dtype=jnp.bfloat16)).seconds < found.seconds


def test_shards_divide_the_work() -> None:
    specs = ((("data",), ()), ((), ("model",)), (("data",), ("model",)))
    found = cost(first(*PRODUCT), specs)
    assert found.flops == FLOPS / 8
    assert found.collective_s == 0


def test_a_sharded_contraction_is_reduced() -> None:
    left, right = ((), ("model",)), (("model",), ())
    whole = cost(first(*PRODUCT), (left, right, ((), ())))
    assert whole.flops == FLOPS / 4
    result = 4 * 256 * 1024
    assert whole.collective_s == pytest.approx(2 * 3 / 4 * result / LINK, rel=0.01)
    scattered = cost(first(*PRODUCT), (left, right, ((), ("model",))))
    assert scattered.collective_s == pytest.approx(whole.collective_s / 2, rel=0.01)


def test_an_operand_in_the_way_is_gathered_but_not_a_parameter() -> None:
    specs = ((("data",), ("model",)), ((), ("model",)), (("data",), ("model",)))
    found = cost(first(*PRODUCT), specs)
    assert found.flops == FLOPS / 8
    payload = 4 * 256 * 512 / 2
    assert found.collective_s == pytest.approx(3 / 4 * payload / LINK, rel=0.01)
    assert cost(first(*PRODUCT), specs, held=(0,)).collective_s == 0


def test_elementwise_chains_are_nearly_free_and_reductions_read_their_operand() -> None:
    size = 1024 * 1024
    plain = cost(first(lambda x: x + 1, (1024, 1024)))
    assert plain.seconds == pytest.approx(size / 1e11) and plain.hbm_bytes == 0
    assert cost(first(jnp.exp, (1024, 1024))).seconds > plain.seconds
    total = cost(first(lambda x: jax.lax.reduce_sum_p.bind(x, axes=(1,), out_sharding=None),
                       (1024, 1024)))  # fmt: skip
    assert total.hbm_bytes == 4 * (size + 1024)
    assert cost(first(lambda x: jnp.reshape(x, (size,)), (1024, 1024))) == EquationCost()


def test_a_convolution_is_a_product() -> None:
    def convolve(x: Any, k: Any) -> Any:
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME")

    found = cost(first(convolve, (2, 8, 16, 16), (32, 8, 3, 3)))
    assert found.flops == 2 * (2 * 32 * 16 * 16) * (8 * 3 * 3)


def test_a_loop_is_its_body_times_its_length() -> None:
    def loop(x: Any) -> Any:
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]

    assert cost(first(loop, (64, 64))).flops == 7 * 2 * 64**3


def test_bytes_of_keys_and_arrays() -> None:
    key = jax.eval_shape(lambda: jax.random.key(0))
    assert array_bytes(key) == 8
    assert costs().local_bytes(jax.ShapeDtypeStruct((8, 4), jnp.bfloat16), (("model",), ())) == 16
