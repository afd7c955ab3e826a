"""Rolling layers: the zoo, what must not be rolled, and random chains."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import ir
from passes.errors import PassError
from passes.pass_pipeline import Checks, run_passes
from passes.program import Program, Role
from passes.stack_layers import StackLayers
from passes.stacking.repeats import find_repeats
from tests.passes import programs

CHECKS = Checks(compare=True)


def rolled(program: Program, **settings_: Any) -> Program:
    result, _ = run_passes(program, [StackLayers(**settings_)], CHECKS)
    return result


def loops(program: Program) -> list[int]:
    """Lengths of the program's outermost loops."""
    jaxpr, _ = ir.closed(program.jaxpr)
    return [eqn.params["length"] for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]


@pytest.mark.parametrize(
    ("name", "overrides", "lengths"),
    [
        ("gpt2_tiny", {}, [4]),
        ("llama3_tiny", {"num_layers": 4}, [4]),
        ("vit_tiny", {"num_layers": 4}, [4]),
        ("mixtral_tiny", {"num_layers": 4}, [4]),
        ("t5_tiny", {"num_layers": 5}, [4, 4]),  # the first layer makes the position bias
    ],
)
def test_zoo_is_recognised(name: str, overrides: dict[str, Any], lengths: list[int]) -> None:
    """What it computes is compared in `tests/autoshard/pass_pairs_test.py`."""
    after, _ = run_passes(programs.of_spec(name, **overrides), [StackLayers()])
    assert loops(after) == lengths


@pytest.mark.parametrize(
    ("name", "overrides", "lengths"),
    [
        ("gpt2_tiny", {"num_layers": 4, "dropout_rate": 0.1}, [4]),
        ("gpt2_tiny", {"num_layers": 4, "dropout_rate": 0.1, "remat": "full"}, [4]),
        ("llama3_tiny", {"num_layers": 4, "remat": "full"}, [4]),
        ("resnet50", {"image_size": 32, "width": 8}, [5]),  # the first of a stage is wider
    ],
)
def test_dropout_regions_and_convolutions(
    name: str, overrides: dict[str, Any], lengths: list[int]
) -> None:
    program = programs.of_spec(name, **overrides)
    after, _ = run_passes(program, [StackLayers()])
    assert loops(after) == lengths
    programs.assert_same(program, after)


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm(x)))))


class NnxModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(8, 8, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(5)])
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


BATCH = {
    "x": jax.ShapeDtypeStruct((4, 8), jnp.float32),
    "label": jax.ShapeDtypeStruct((4,), jnp.int32),
}


def test_nnx_with_dropout() -> None:
    program = programs.of_model(NnxModel, BATCH)
    after = rolled(program)
    assert loops(after) == [5]
    programs.assert_same(program, after)


class Alternating(linen.Module):
    """Two kinds of layers in turn, and an attribute that makes the first one differ."""

    pairs: int = 4
    first_differs: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.first_differs:
            x = x + linen.Dense(8, use_bias=False, name="odd")(jnp.tanh(x))
        for i in range(self.pairs):
            x = x + linen.Dense(8, name=f"plain_{i}")(jnp.sin(x))
            gate = jax.nn.softmax(linen.Dense(8, name=f"gate_{i}")(x))
            x = x + gate * linen.Dense(8, name=f"value_{i}")(x)
        return linen.Dense(3, name="head")(x)


@pytest.mark.parametrize("first_differs", [False, True])
def test_periodic_patterns(first_differs: bool) -> None:
    program = programs.of_model(Alternating(first_differs=first_differs), BATCH)
    after = rolled(program)
    assert loops(after) == [4]
    stacks = [leaf for leaf in after.inputs if leaf.parts]
    assert {leaf.path for leaf in stacks} == {
        f"{kind}_*/{part}" for kind in ("plain", "gate", "value") for part in ("kernel", "bias")
    }
    assert all(leaf.shape[0] == 4 for leaf in stacks)
    programs.assert_same(program, after)


def layers(weights: Any, batch: Any, layer: Any) -> Any:
    x = batch["x"]
    for w in weights["w"]:
        x = layer(x, w)
    return jnp.mean(jnp.square(x))


def chain(layer: Any, count: int = 5) -> Program:
    weights = {"w": [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * count}
    return programs.of_function(functools.partial(layers, layer=layer), weights, {"x": BATCH["x"]})


def test_custom_derivatives_that_differ_backwards_are_kept_apart() -> None:
    def make(slope: float) -> Any:
        @jax.custom_vjp
        def act(x: jax.Array) -> jax.Array:
            return jnp.tanh(x)

        def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.tanh(x), x

        def backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
            return (slope * g * jnp.cos(x),)

        act.defvjp(forward, backward)
        return act

    first, second = make(1.0), make(2.0)

    def function(acts: Any, params: Any, batch: Any) -> Any:
        x = batch["x"]
        for act, w in zip(acts, params["w"], strict=True):
            x = x + act(x @ w)
        return jnp.mean(jnp.square(x))

    weights = {"w": [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 8}
    batch = {"x": BATCH["x"]}
    same = programs.of_function(functools.partial(function, [first] * 8), weights, batch)
    assert loops(rolled(same)) == [8]
    halves = functools.partial(function, [first] * 4 + [second] * 4)
    different = programs.of_function(halves, weights, batch)
    after = rolled(different)
    assert sorted(loops(after)) == [4, 4]
    programs.assert_same(different, after)


def test_layers_of_two_dtypes() -> None:
    """The first layer is in another type than the rest: it stays outside."""

    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        return (x + jnp.sin(x @ w.astype(x.dtype))).astype(jnp.float32)

    def function(params: Any, batch: Any) -> Any:
        x = batch["x"].astype(jnp.bfloat16)
        for w in params["w"]:
            x = layer(x, w)
        return jnp.mean(jnp.square(x))

    weights = {"w": [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 6}
    program = programs.of_function(function, weights, {"x": BATCH["x"]})
    after = rolled(program)
    assert loops(after) == [5]
    programs.assert_same(program, after)


def test_shared_weights_and_taps() -> None:
    def function(params: Any, batch: Any) -> Any:
        x, total = batch["x"], jnp.float32(0)
        for w in params["w"]:
            x = jnp.tanh(x @ w @ params["shared"]) + x
            total = total + jnp.mean(jnp.abs(x))
        return jnp.mean(jnp.square(x @ params["shared"])) + 0.1 * total

    shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    program = programs.of_function(function, {"w": [shape] * 5, "shared": shape}, {"x": BATCH["x"]})
    after = rolled(program)
    assert loops(after) == [5]
    assert [leaf.path for leaf in after.inputs if leaf.role is Role.PARAMETER] == ["shared", "w/*"]
    programs.assert_same(program, after)


def test_dense_connectivity_is_left_alone() -> None:
    def function(params: Any, batch: Any) -> Any:
        seen = [batch["x"]]
        for w in params["w"]:
            seen.append(jnp.tanh(sum(seen) @ w))
        return jnp.mean(jnp.square(seen[-1]))

    weights = {"w": [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 6}
    program = programs.of_function(function, weights, {"x": BATCH["x"]})
    after = rolled(program)
    programs.assert_same(program, after)


def test_products_side_by_side_are_no_layers() -> None:
    def function(params: Any, batch: Any) -> Any:
        return jnp.mean(sum(jnp.square(batch["x"] @ w) for w in params["w"]))

    weights = {"w": [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 6}
    program = programs.of_function(function, weights, {"x": BATCH["x"]})
    after = rolled(program)
    programs.assert_same(program, after)


def test_what_cannot_be_rolled_says_why() -> None:
    program = chain(lambda x, w: jnp.tanh(x @ w), count=3)
    after = rolled(program)
    assert after.jaxpr is program.jaxpr
    assert after.notes == ("nothing rolled: nothing repeats 4 times or more",)
    with pytest.raises(PassError, match=r"'stack_layers'.*nothing repeats 4 times"):
        rolled(program, required=True)

    def loud(x: jax.Array, w: jax.Array) -> jax.Array:
        jax.debug.callback(lambda _: None, x[0, 0])
        return jnp.tanh(x @ w)

    after = StackLayers().apply(chain(loud))
    assert "debug_callback at stack_layers_test.py" in after.notes[0]


def test_remat_of_the_loop() -> None:
    program = chain(lambda x, w: x + jnp.tanh(x @ w))
    assert (
        programs.count(rolled(program), "remat2") + programs.count(rolled(program), "checkpoint")
        == 1
    )
    kept = rolled(program, remat="none")
    assert programs.count(kept, "remat2") + programs.count(kept, "checkpoint") == 0
    programs.assert_same(program, kept)


def test_repeats() -> None:
    found = find_repeats([9, 1, 2, 1, 2, 1, 2, 1, 7], least=3)[0]
    assert (found.begin, found.end, found.period, found.count) == (1, 8, 2, 3)
    assert find_repeats([1, 2, 3, 4], least=2) == []


OPERATIONS = (
    lambda x, w: jnp.tanh(x @ w),
    lambda x, w: x + jnp.sin(x) @ w,
    lambda x, w: jax.nn.relu(x @ w) + x,
    lambda x, w: x * jax.nn.sigmoid(x @ w),
    lambda x, w: jax.checkpoint(lambda y: jnp.cos(y @ w))(x),
    lambda x, w: x - jnp.mean(x, axis=-1, keepdims=True) + 0.1 * (x @ w),
)


@settings(max_examples=15, deadline=None)
@given(
    before=st.lists(st.integers(0, 5), max_size=2),
    layer=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    repeats=st.integers(2, 5),
    after=st.lists(st.integers(0, 5), max_size=2),
    remat=st.sampled_from(["full", "none"]),
)
def test_random_chains(
    before: list[int], layer: list[int], repeats: int, after: list[int], remat: str
) -> None:
    order = [*before, *layer * repeats, *after]

    def function(params: Any, batch: Any) -> Any:
        x = batch["x"]
        for operation, w in zip(order, params["w"], strict=True):
            x = OPERATIONS[operation](x, w)
        return jnp.mean(jnp.square(x))

    weights = {"w": [jax.ShapeDtypeStruct((4, 4), jnp.float32)] * len(order)}
    x = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    program = programs.of_function(function, weights, {"x": x})
    done = rolled(program, least=2, remat=remat)
    assert loops(done), done.notes
    assert sum(np.prod(leaf.shape) for leaf in done.inputs) == sum(
        np.prod(leaf.shape) for leaf in program.inputs
    )
    programs.assert_same(program, done)
