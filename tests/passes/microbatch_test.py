"""Gradient accumulation is exact, and what cannot be computed in parts is refused by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import ir
from passes.batch_split import split_batch
from passes.errors import PassError
from passes.microbatch import Microbatch
from passes.pass_pipeline import Checks, run_passes
from passes.program import Program
from tests.passes import programs

ROWS = 8


def accumulated(program: Program, count: int) -> Program:
    result, _ = run_passes(program, [Microbatch(count)], Checks(compare=True))
    return result


def test_a_model_with_loops_and_regions() -> None:
    """The families of the zoo are in `tests/autoshard/pass_pairs_test.py`."""
    program = programs.of_spec("llama3_tiny", ROWS, scan_layers=True, remat="full")
    after = accumulated(program, 4)
    assert after.split is not None
    programs.assert_same(program, after)


def function_of(loss: Any, **batch: Any) -> Program:
    params = {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32)}
    given = batch or {"x": jax.ShapeDtypeStruct((ROWS, 3, 4), jnp.float32)}
    return programs.of_function(loss, params, given)


def test_a_masked_mean_divides_by_the_whole_batchs_count() -> None:
    """The mean of the parts' means would be another number: parts have other counts."""

    def loss(params: Any, batch: Any) -> Any:
        losses = jnp.sum(jnp.square(batch["x"] @ params["w"]), axis=-1)
        return jnp.sum(losses * batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1)

    program = function_of(
        loss,
        x=jax.ShapeDtypeStruct((ROWS, 3, 4), jnp.float32),
        mask=jax.ShapeDtypeStruct((ROWS, 3), jnp.int32),
    )
    split = split_batch(program, 4)
    assert [str(a) for a in split.once.out_avals] == ["int32[]"]  # the count, before all parts
    programs.assert_same(program, accumulated(program, 4))


def test_a_penalty_on_parameters_counts_once() -> None:
    def loss(params: Any, batch: Any) -> Any:
        return jnp.mean(jnp.square(batch["x"] @ params["w"])) + 0.3 * jnp.sum(params["w"] ** 2)

    program = function_of(loss)
    programs.assert_same(program, accumulated(program, 4))


def test_custom_derivatives_keep_their_rule() -> None:
    @jax.custom_vjp
    def clipped(x: jax.Array) -> jax.Array:
        return jnp.sin(x)

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sin(x), x

    def backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
        return (jnp.clip(g * jnp.cos(x), -1e-3, 1e-3),)

    clipped.defvjp(forward, backward)

    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(clipped(jax.nn.relu(batch["x"] @ params["w"])))

    program = function_of(loss)
    programs.assert_same(program, accumulated(program, 2))


def test_random_numbers_are_drawn_for_each_part() -> None:
    """Not the whole array's bits, but as many ones and independent of each other."""

    class Dropped(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array, *, deterministic: bool = False) -> jax.Array:
            x = linen.Dense(1, use_bias=False, kernel_init=linen.initializers.ones)(x)
            return linen.Dropout(0.5)(x, deterministic=deterministic)

    def loss(outputs: Any, batch: Any) -> Any:
        return jnp.mean(outputs)

    rows = 4096
    batch = {"x": jax.ShapeDtypeStruct((rows, 1), jnp.float32)}
    program = programs.of_model(Dropped(), batch, loss)
    split = split_batch(program, 4)
    part = jax.jit(ir.as_function(split.part))
    ones = jnp.ones((rows // 4, 1))
    losses = [
        4 * float(part(jnp.int32(i), jnp.ones((1, 1)), ones, jax.random.key(0))[0])
        for i in range(4)
    ]
    assert len(set(losses)) == 4
    np.testing.assert_allclose(losses, 1.0, atol=0.15)  # 5 deviations of 1024 coins


def test_parts_share_every_devices_rows() -> None:
    """Row r is in part r % M, so that rows sharded over devices stay where they are."""
    program = function_of(lambda params, batch: jnp.sum(batch["x"] @ params["w"]))
    parts = split_batch(program, 4).parts(jnp.arange(ROWS))
    np.testing.assert_array_equal(parts, [[0, 4], [1, 5], [2, 6], [3, 7]])


def normalised(params: Any, batch: Any) -> Any:
    y = batch["x"] @ params["w"]
    return jnp.mean(jnp.square(y - jnp.mean(y, axis=0, keepdims=True)))


def products(params: Any, batch: Any) -> Any:
    y = jnp.sum(batch["x"] @ params["w"], axis=1)
    return jnp.mean(y @ y.T)


def rooted(params: Any, batch: Any) -> Any:
    return jnp.sqrt(jnp.sum(jnp.square(batch["x"] @ params["w"])))


def cast(params: Any, batch: Any) -> Any:
    return jnp.sum(batch["x"] @ params["w"]).astype(jnp.int32).astype(jnp.float32)


def halved(params: Any, batch: Any) -> Any:
    return jax.lax.div(jnp.sum(jnp.argmax(batch["x"] @ params["w"], axis=-1)), 2) * 1.0


def one_more(params: Any, batch: Any) -> Any:
    return (jnp.sum(jnp.argmax(batch["x"] @ params["w"], axis=-1)) + 1) * 1.0


def ranked(params: Any, batch: Any) -> Any:
    return jnp.sum(jnp.sort(batch["x"] @ params["w"], axis=0)[0])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (normalised, "statistics of the batch"),
        (products, "every row of the batch is multiplied with every other"),
        (rooted, "sqrt is not linear"),
        (ranked, "sort along the rows"),
        (cast, "convert_element_type is not linear"),
        (halved, "div is not linear"),
        (one_more, "add adds an integer"),
    ],
)
def test_rows_that_meet_are_refused(loss: Any, message: str) -> None:
    with pytest.raises(PassError, match=rf"microbatch.*{message}.*microbatch_test.py"):
        accumulated(function_of(loss), 2)


def test_sizes() -> None:
    program = function_of(lambda params, batch: jnp.mean(batch["x"] @ params["w"]))
    with pytest.raises(PassError, match="batch of 8 does not divide into 3 microbatches: use 2"):
        accumulated(program, 3)
    assert accumulated(program, 1).split is None
    uneven = function_of(
        lambda params, batch: jnp.mean(batch["x"] @ params["w"]) + jnp.sum(batch["y"]),
        x=jax.ShapeDtypeStruct((8, 4), jnp.float32),
        y=jax.ShapeDtypeStruct((5,), jnp.float32),
    )
    with pytest.raises(PassError, match="differ in their rows"):
        accumulated(uneven, 2)


STEPS = (
    lambda x, w: jnp.tanh(x @ w),
    lambda x, w: x + jnp.einsum("bsd,btd->bst", x, x) @ jnp.ones((3, 4)) @ w,
    lambda x, w: jnp.swapaxes(jnp.swapaxes(x, 0, 1) @ w, 0, 1),
    lambda x, w: jax.nn.relu(x.reshape(-1, 4) @ w).reshape(x.shape),
    lambda x, w: x - jnp.max(x @ w, axis=-1, keepdims=True),
    lambda x, w: jnp.concatenate([x[..., 2:], x[..., :2] * jnp.ones((1, 1, 2))], axis=-1) @ w,
    lambda x, w: jax.lax.scan(lambda c, u: (jnp.sin(c @ w) + u, None), x, jnp.ones((2, 1, 1, 4)))[
        0
    ],
    lambda x, w: jax.checkpoint(lambda y: jnp.cumsum(y @ w, axis=1))(x),
    lambda x, w: jnp.where(jnp.arange(x.shape[0])[:, None, None] % 2 == 0, x @ w, x),
    lambda x, w: jax.vmap(
        lambda row: jnp.take(row, jnp.argmax(row[:, 0]), axis=0, mode="clip")[None] @ w + row
    )(x),
)


@settings(max_examples=18, deadline=None)
@given(
    order=st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=4),
    count=st.sampled_from([2, 4, 8]),
)
def test_random_programs(order: list[int], count: int) -> None:
    def loss(params: Any, batch: Any) -> Any:
        x = batch["x"]
        for step in order:
            x = STEPS[step](x, params["w"])
        return jnp.mean(jnp.square(x)) + jnp.sum(x) / x.size

    program = function_of(loss)
    programs.assert_same(program, accumulated(program, count))
