"""Lazy inputs: the values stay, and gathered copies are neither made early nor kept."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from passes import ir
from passes.lazy_inputs import with_lazy_inputs
from passes.row_lookup import Lookup

WIDTH, LAYERS = 16, 3
Params = dict[str, jax.Array]


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:8]), ("data",))


@dataclasses.dataclass(frozen=True)
class Whole:
    """Gathers an array that is stored in eight parts along one dimension."""

    path: str
    dim: int

    def __call__(self, x: jax.Array) -> jax.Array:
        whole = NamedSharding(_mesh(), PartitionSpec())

        @jax.custom_vjp
        def gather(x: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(x, whole)

        gather.defvjp(
            lambda x: (jax.lax.with_sharding_constraint(x, whole), None), lambda _, g: (g,)
        )
        return gather(x)

    def of_slice(self, dim: int) -> "Whole | None":
        return None if dim == self.dim else Whole(self.path, self.dim - (self.dim > dim))

    def of_rows(self, lookup: Lookup) -> None:
        del lookup


def stored(dim: int, *shape: int, dtype: str = "float32") -> jax.Array:
    """An array cut in eight along `dim`; drawn to keep activations of order one."""
    values = np.random.default_rng(0).normal(size=shape, scale=WIDTH**-0.5).astype(dtype)
    spec = [None] * len(shape)
    spec[dim] = "data"  # type: ignore[call-overload]
    return jax.device_put(values, NamedSharding(_mesh(), PartitionSpec(*spec)))


def lazily(function: Callable[..., Any], params: Params, *rest: Any) -> Callable[..., Any]:
    """`function(params, *rest)`, evaluated on lazy parameters; the result is an array."""
    program = jax.make_jaxpr(function)(params, *rest)
    gathers = [
        Whole(name, next(d for d, part in enumerate(params[name].sharding.spec) if part))  # type: ignore[attr-defined]
        for name in sorted(params)
    ]
    evaluate = with_lazy_inputs(program, [*gathers, *[None] * len(jax.tree.leaves(rest))])
    return lambda params, *rest: evaluate(*jax.tree.leaves((params, rest)))[0]


def gathers_in(program: Any, inside: tuple[str, ...] = ()) -> list[tuple[str, tuple[str, ...]]]:
    """(dtype[shape], primitives around it) of every gather of a program."""
    found = []
    for eqn in ir.closed(program)[0].eqns:
        if eqn.primitive.name == "sharding_constraint":
            found.append((str(eqn.outvars[0].aval), inside))
        for value in eqn.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, (ir.Jaxpr, ir.ClosedJaxpr)):
                    found += gathers_in(item, (*inside, eqn.primitive.name))
    return found


def copies_kept(function: Callable[..., Any], params: Params, x: jax.Array) -> list[str]:
    """Arrays with a parameter's last dimensions that wait for the backward pass, not as stored."""
    _, backward = jax.vjp(function, params, x)
    own = {id(p) for p in params.values()}
    sizes = {p.shape[-2:] for p in params.values()}
    return [
        f"{leaf.dtype}{list(leaf.shape)}"
        for leaf in jax.tree.leaves(backward)
        if leaf.ndim >= 2 and leaf.shape[-2:] in sizes and id(leaf) not in own
        and leaf.sharding.is_fully_replicated
    ]  # fmt: skip


# Programs. Activations are [4, WIDTH]; no activation has a parameter's last two dimensions.


def _layer(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w)


def _loop(params: Params, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (_layer(x, w), None), x, params["w"])[0]


def chain(params: Params, x: jax.Array) -> jax.Array:
    return _layer(_layer(x, params["a"]), params["b"].T) * params["scale"][None]


def one_weight_twice(params: Params, x: jax.Array) -> jax.Array:
    return _layer(_layer(x, params["a"]), params["a"].T)


def under_jit(params: Params, x: jax.Array) -> jax.Array:
    return jax.jit(lambda w, x: jax.nn.silu(x @ jnp.swapaxes(w, 0, 1)))(params["a"], x)


def lookup(params: Params, x: jax.Array) -> jax.Array:
    rows = jnp.take(params["a"], jnp.arange(4), axis=0)
    return x + rows


def custom_derivative(params: Params, x: jax.Array) -> jax.Array:
    @jax.custom_vjp
    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    return product(jax.nn.relu(x), params["a"])


def computed_from_a_parameter(params: Params, x: jax.Array) -> jax.Array:
    return x @ jax.nn.relu(params["a"])


def branches(params: Params, x: jax.Array) -> jax.Array:
    return jax.lax.cond(
        x[0, 0] > 0, lambda x, w: x @ w, lambda x, w: jnp.sin(x @ w), x, params["a"]
    )


def named(params: Params, x: jax.Array) -> jax.Array:
    return _layer(x, checkpoint_name(params["a"].reshape(WIDTH, -1), "w"))


def scanned(params: Params, x: jax.Array) -> jax.Array:
    return _loop(params, x)


def scanned_along_another_dimension(params: Params, x: jax.Array) -> jax.Array:
    stack = jnp.transpose(params["w"], (1, 2, 0))
    return _loop({"w": jnp.transpose(stack.astype(x.dtype), (2, 1, 0))}, x)


def scanned_backwards_with_results(params: Params, x: jax.Array) -> jax.Array:
    def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, Any]:
        x = _layer(x, w)
        return x, (x.sum(), w)  # nnx hands parameters on like this

    x, (sums, _) = jax.lax.scan(body, x, params["w"], reverse=True, unroll=2)
    return x + sums[:, None].sum()


def scanned_twice(params: Params, x: jax.Array) -> jax.Array:
    def outer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return _loop({"w": w}, x), None

    return jax.lax.scan(outer, x, params["w2"])[0]


def scanned_with_its_stack_used_outside(params: Params, x: jax.Array) -> jax.Array:
    def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _layer(x, w), w

    x, stack = jax.lax.scan(body, x, params["w"])
    return x @ stack[0] @ params["w"].sum(0)


def recurrent(params: Params, x: jax.Array) -> jax.Array:
    def cell(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = _layer(h + x, params["a"])
        return h, h

    return jax.lax.scan(cell, x, jnp.stack([x, 2 * x, 3 * x]))[1].sum(0)


def stacked_inside(params: Params, x: jax.Array) -> jax.Array:
    return _loop({"w": jnp.stack([params["a"], params["b"]])}, x)


def parameter_in_the_carry(params: Params, x: jax.Array) -> jax.Array:
    def body(carry: Any, _: None) -> tuple[Any, None]:
        return (_layer(*carry), carry[1]), None

    return jax.lax.scan(body, (x, params["a"]), None, length=2)[0][0]


def remat(params: Params, x: jax.Array) -> jax.Array:
    block = jax.checkpoint(lambda x, a, b: _layer(jnp.sin(_layer(x, a)), b))
    return block(x, params["a"], params["b"])


def remat_that_saves_all(params: Params, x: jax.Array) -> jax.Array:
    return jax.checkpoint(chain, policy=jax.checkpoint_policies.everything_saveable)(params, x)


def remat_in_scan(params: Params, x: jax.Array) -> jax.Array:
    layer = jax.checkpoint(_layer, prevent_cse=False)
    return jax.lax.scan(lambda x, w: (layer(x, w), None), x, params["w"])[0]


def scan_in_remat(params: Params, x: jax.Array) -> jax.Array:
    return jax.checkpoint(_loop)(params, x)


PROGRAMS: tuple[Callable[[Params, jax.Array], jax.Array], ...] = (
    chain,
    one_weight_twice,
    under_jit,
    lookup,
    custom_derivative,
    computed_from_a_parameter,
    branches,
    named,
    scanned,
    scanned_along_another_dimension,
    scanned_backwards_with_results,
    scanned_twice,
    scanned_with_its_stack_used_outside,
    recurrent,
    stacked_inside,
    parameter_in_the_carry,
    remat,
    remat_that_saves_all,
    remat_in_scan,
    scan_in_remat,
)


@pytest.fixture(scope="module")
def params() -> Params:
    return {
        "a": stored(0, WIDTH, WIDTH),
        "b": stored(1, WIDTH, WIDTH),
        "scale": stored(0, WIDTH),
        "w": stored(1, LAYERS, WIDTH, WIDTH),
        "w2": stored(3, 2, LAYERS, WIDTH, WIDTH),
    }


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (4, WIDTH))


def names(function: Any) -> str:
    return str(function.__name__)


@pytest.mark.parametrize("function", PROGRAMS, ids=names)
def test_values_and_gradients_stay(function: Any, params: Params, x: jax.Array) -> None:
    lazy = lazily(function, params, x)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(params: Params, x: jax.Array) -> Any:
        losses = (lambda params, x, f=f: (f(params, x) ** 2).sum() for f in (function, lazy))
        return [jax.value_and_grad(loss, argnums=(0, 1))(params, x) for loss in losses]

    expected, found = both(params, x)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected[1])) > 0.1
    for want, have in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5 * float(jnp.abs(want).max()), rtol=0)


# What the program makes of gathered parameters is an activation like any other.
MADE = (stacked_inside, computed_from_a_parameter, scanned_with_its_stack_used_outside)

# Their last product is outside loops and regions: the backward pass begins with its copy.
ENDS_WITH_A_PRODUCT = (
    chain,
    one_weight_twice,
    under_jit,
    custom_derivative,
    branches,
    named,
)


@pytest.mark.parametrize("function", PROGRAMS, ids=names)
def test_no_gathered_copy_is_kept_but_that_of_the_last_product(
    function: Any, params: Params, x: jax.Array
) -> None:
    kept = copies_kept(lazily(function, params, x), params, x)
    if function in MADE:
        assert kept
    else:
        assert len(kept) == (function in ENDS_WITH_A_PRODUCT), kept


@pytest.mark.parametrize(
    "function",
    [scanned, scanned_along_another_dimension, scanned_backwards_with_results, remat_in_scan],
    ids=names,
)
def test_a_stack_is_gathered_slice_by_slice(function: Any, params: Params, x: jax.Array) -> None:
    lazy = lazily(function, params, x)
    found = gathers_in(jax.make_jaxpr(lazy)(params, x))
    assert [aval for aval, _ in found] == ["float32[16,16]"]
    assert all("scan" in inside for _, inside in found)
    backward = gathers_in(jax.make_jaxpr(jax.grad(lambda p, x: lazy(p, x).sum()))(params, x))
    assert {aval for aval, _ in backward} == {"float32[16,16]"}
    assert len(backward) == 2  # once a pass


def test_the_slice_of_a_slice_is_gathered(params: Params, x: jax.Array) -> None:
    (found,) = gathers_in(jax.make_jaxpr(lazily(scanned_twice, params, x))(params, x))
    assert found[0] == "float32[16,16]" and found[1].count("scan") == 2


def test_what_every_iteration_uses_is_gathered_once(params: Params, x: jax.Array) -> None:
    (found,) = gathers_in(jax.make_jaxpr(lazily(recurrent, params, x))(params, x))
    assert "scan" not in found[1]


def test_a_stack_cut_along_its_layers_is_gathered_whole(x: jax.Array) -> None:
    params = {"w": stored(0, 8, WIDTH, WIDTH)}
    (found,) = gathers_in(jax.make_jaxpr(lazily(scanned, params, x))(params, x))
    assert found[0] == "float32[8,16,16]" and "scan" not in found[1]


def test_shards_are_cast_before_they_are_gathered_where_that_is_less(x: jax.Array) -> None:
    def narrow(params: Params, x: jax.Array) -> jax.Array:
        return x.astype("bfloat16") @ params["a"].T.astype("bfloat16").reshape(WIDTH, WIDTH)

    def wide(params: Params, x: jax.Array) -> jax.Array:
        return x @ params["a"].astype("float32")

    for function, dtype in ((narrow, "float32"), (wide, "bfloat16")):
        params = {"a": stored(0, WIDTH, WIDTH, dtype=dtype)}
        (found,) = gathers_in(jax.make_jaxpr(lazily(function, params, x))(params, x))
        assert found[0] == "bfloat16[16,16]"


def test_a_users_policy_is_obeyed(params: Params, x: jax.Array) -> None:
    def block(params: Params, x: jax.Array) -> jax.Array:
        return jnp.sin(jnp.sin(x @ params["a"]) @ params["b"])

    def kept(policy: Any) -> int:
        lazy = lazily(jax.checkpoint(block, policy=policy), params, x)
        leaves = jax.tree.leaves(jax.vjp(lazy, params, x)[1])
        return sum(leaf.shape == x.shape for leaf in leaves)

    policies = jax.checkpoint_policies
    assert kept(None) == kept(policies.nothing_saveable) == 1  # x alone
    assert kept(policies.dots_saveable) == 1 + 2


def test_effects_happen_once(params: Params, x: jax.Array) -> None:
    seen: list[float] = []

    def function(params: Params, x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda w: seen.append(float(w[0, 0])), params["a"])
        return x @ params["a"]

    lazy = lazily(function, params, x)
    jax.block_until_ready(jax.jit(jax.grad(lambda p, x: lazy(p, x).sum()))(params, x))
    jax.effects_barrier()
    assert seen == [float(params["a"][0, 0])]


def test_results_that_are_inputs(params: Params, x: jax.Array) -> None:
    lazy = lazily(lambda p, x: p["a"].T.astype("bfloat16"), params, x)
    np.testing.assert_array_equal(lazy(params, x), params["a"].T.astype("bfloat16"))


def test_compilers_are_told_whose_gather_it_is_and_where(params: Params, x: jax.Array) -> None:
    lazy = lazily(scanned, params, x)
    text = (
        jax.jit(jax.grad(lambda p, x: lazy(p, x).sum())).lower(params, x).as_text(debug_info=True)
    )
    places = [line for line in text.splitlines() if "gather:w/sharding_constraint" in line]
    assert len(places) == 2 and sum("rematted_computation" in line for line in places) == 1
    lines = {
        eqn.primitive.name: ir.source_line(eqn).split(" ")[-1]
        for eqn in ir.equations(jax.make_jaxpr(lazy)(params, x).jaxpr)
    }
    assert lines["scan"] == "(_loop)"
    assert lines["custom_vjp_call"] == lines["dot_general"] == "(_layer)"
