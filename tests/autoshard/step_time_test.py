"""Seconds of a step by closed forms: products, tiles, convolutions, and what compilers hide."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import autoshard
from autoshard.chips import CHIPS
from autoshard.machine import MATRIX_EFFICIENCY
from autoshard.named_dims import analyse
from autoshard.plan import Plan
from autoshard.product_flops import product_flops
from autoshard.trace import trace_function
from passes.program import Role

V5E = CHIPS["v5e"]
RATE = dict(V5E.peak_flops)["bf16"] * MATRIX_EFFICIENCY


def spec(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def plan(function: Any, *arguments: Any, mesh: str = "v5e:2x2 data=4", rules: Any = "data") -> Plan:
    found: Plan = autoshard.compile(function, mesh, batch=arguments, rules=rules).plan
    return found


def product(w: Any, x: Any) -> Any:
    return x @ w


def test_a_large_product_takes_its_flops_at_the_sustained_rate() -> None:
    time = plan(product, spec(4096, 4096), spec(4 * 8192, 4096)).cost.time
    assert time.products_s == pytest.approx(2 * 8192 * 4096 * 4096 / RATE)
    assert time.exposed_s == 0
    assert time.optimizer_s == 0


def test_a_narrow_product_pays_for_whole_tiles() -> None:
    """The longer side of the result is rounded up to 128, the shorter one to 8."""
    wide = plan(product, spec(4096, 4096 + 128), spec(4 * 512, 4096)).cost.time
    narrow = plan(product, spec(4096, 4096 + 63), spec(4 * 509, 4096)).cost.time
    assert narrow.products_s == pytest.approx(wide.products_s)


def test_a_product_with_few_rows_takes_the_time_to_read_its_weight() -> None:
    time = plan(product, spec(8192, 8192), spec(4 * 8, 8192)).cost.time
    read = 2 * (8192 * 8192 + 8 * 8192 + 8 * 8192)
    assert time.products_s == pytest.approx(read / V5E.hbm_bytes_per_s)


def test_flops_of_convolutions_are_those_of_their_windows() -> None:
    """Patches of 16 x 16, forward; by the image, zeros between patches are not multiplied."""

    def forward(kernel: Any, image: Any) -> Any:
        return jax.lax.conv_general_dilated(
            image, kernel, (16, 16), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def both(kernel: Any, image: Any) -> Any:
        _, back = jax.vjp(forward, kernel, image)
        return back(forward(kernel, image))

    arguments = (spec(16, 16, 3, 64), spec(2, 64, 64, 3))
    program, _ = trace_function(both, arguments, (Role.PARAMETER, Role.BATCH))
    analysis = analyse(program)
    found = [
        product_flops(analysis, index)
        for index, op in enumerate(analysis.graph.ops)
        if op.primitive == "conv_general_dilated"
    ]
    once = 2 * (2 * 4 * 4 * 64) * (16 * 16 * 3)
    assert len(found) == 4  # twice forward, by the kernel, by the image
    assert all(flops == pytest.approx(once) for flops in found)


@pytest.mark.parametrize("machine", ["v5p:2x2x2", "v5e:2x4", "h100:8"])
def test_sums_of_activations_are_waited_for(machine: str) -> None:
    def two(w: Any, v: Any, x: Any) -> Any:
        return (x @ w) @ v

    roles = ["parameter", "parameter", "batch"]
    found = autoshard.compile(
        two, f"{machine} data=1,model=8", argument_roles=roles, rules="redco",
        batch=(spec(4096, 8192), spec(8192, 4096), spec(4096, 4096)),
    ).plan  # fmt: skip
    time = found.cost.time
    assert [c.kind for c in found.cost.collectives] == ["all-reduce"]
    assert time.exposed_s == pytest.approx(time.communication_s)
    assert time.total_s == pytest.approx(time.products_s + time.traffic_s + time.exposed_s)
