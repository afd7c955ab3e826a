"""simplify: what goes, what must stay, and that random programs keep their values to the bit."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from autoshard import adapters, losses
from autoshard.precision import Precision
from autoshard.trace import trace_model
from passes import ir
from passes.compare import random_inputs
from passes.pass_pipeline import Checks, run_passes
from passes.program import Leaf, Program, Role
from passes.simplify import Simplify
from passes.verify import verify

X = jnp.arange(1.0, 5.0)


def program_of(function: Any, *arguments: Any) -> Program:
    jaxpr = jax.make_jaxpr(function)(*arguments)
    leaves = [
        Leaf(str(i), Role.BATCH, tuple(x.shape), str(x.dtype)) for i, x in enumerate(jaxpr.in_avals)
    ]
    names = tuple(f"out{i}" for i in range(len(jaxpr.out_avals)))
    return Program("test", jaxpr, tuple(leaves), names)


def simplified(function: Any, *arguments: Any, **fields: Any) -> Program:
    """The simplified program, checked, its values those of the function."""
    program = program_of(function, *arguments)
    result = Simplify(**fields).apply(program)
    verify(result)
    flat = jax.tree.leaves(arguments)
    expected = jax.core.eval_jaxpr(program.jaxpr.jaxpr, program.jaxpr.consts, *flat)
    found = jax.core.eval_jaxpr(result.jaxpr.jaxpr, result.jaxpr.consts, *flat)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    return result


def primitives(program: Program) -> list[str]:
    return [eqn.primitive.name for eqn in program.jaxpr.jaxpr.eqns]


def test_dead_code_goes() -> None:
    assert primitives(simplified(lambda x: (jnp.cos(x), jnp.sin(x))[1], X)) == ["sin"]


def test_dead_code_in_a_loop_goes() -> None:
    def loop(x: Any) -> Any:
        def body(carry: Any, _: None) -> Any:
            jnp.cos(carry)
            return jnp.sin(carry), None

        return jax.lax.scan(body, x, None, length=3)[0]

    result = simplified(loop, X)
    (scan,) = result.jaxpr.jaxpr.eqns
    assert [e.primitive.name for e in ir.closed(scan.params["jaxpr"])[0].eqns] == ["sin"]
    assert "1 dead" in result.notes[-1]


def test_repeats_are_shared_and_so_are_what_follows_them() -> None:
    result = simplified(lambda x: jnp.sin(x) * 2 + jnp.sin(x) * 2, X)
    assert primitives(result) == ["sin", "mul", "add"]
    assert result.notes[-1].endswith("2 repeated")


def test_equations_that_differ_in_a_parameter_a_literal_or_its_sign_stay() -> None:
    cast = simplified(lambda x: (x.astype(jnp.bfloat16), x.astype(jnp.float16)), X)
    assert len(primitives(cast)) == 2
    assert len(primitives(simplified(lambda x: (x + 1.0, x + 2.0), X))) == 2
    assert len(primitives(simplified(lambda x: (x * 0.0, x * -0.0), -X))) == 2


def test_repeated_calls_of_one_function_are_shared() -> None:
    @jax.jit
    def long(x: Any) -> Any:
        for _ in range(9):
            x = jnp.sin(x)
        return x

    assert primitives(simplified(lambda x: long(x) + long(x), X)) == ["jit", "add"]


def test_small_calls_are_inlined_and_long_ones_are_not() -> None:
    @jax.jit
    def small(x: Any) -> Any:
        return jnp.cos(jnp.sin(x))

    result = simplified(lambda x: small(x) + small(x), X)
    assert primitives(result) == ["sin", "cos", "add"]
    kept = simplified(lambda x: small(x) + small(x + 1), X, max_inlined_equations=1)
    assert primitives(kept) == ["jit", "add", "jit", "add"]


def test_a_call_that_asks_for_a_sharding_is_not_inlined() -> None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.jit(jnp.sin, out_shardings=device)
    assert primitives(simplified(lambda x: placed(x) + 1, X)) == ["jit", "add"]


def test_scalars_are_folded() -> None:
    two = np.float32(2)
    result = simplified(lambda x: x * jax.lax.add(jax.lax.mul(two, two), two), X)
    assert primitives(result) == ["mul"]
    (literal,) = [a for a in result.jaxpr.jaxpr.eqns[0].invars if ir.is_literal(a)]
    assert literal.val == 6.0


@pytest.mark.parametrize(("size", "folded"), [(4, True), (256, True), (257, False)])
def test_constants_are_folded_while_they_are_small(size: int, folded: bool) -> None:
    held = jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32)
    result = simplified(lambda x: x[0] + jnp.sin(held), X)
    assert ("sin" not in primitives(result)) is folded
    assert len(result.jaxpr.consts) == 1


def test_equal_constants_become_one() -> None:
    one, other = (jnp.asarray(np.ones(3, np.float32)) for _ in range(2))
    result = simplified(lambda x: (x[0] + jnp.exp(one)) * (x[0] + jnp.exp(other)), X)
    assert len(result.jaxpr.consts) == 1


def test_nothing_large_is_made_of_little() -> None:
    result = simplified(lambda x: x[0] + jnp.zeros((8, 8)) + jnp.arange(8.0)[None], X)
    assert not result.jaxpr.consts
    assert {"broadcast_in_dim", "iota"} <= set(primitives(result))


def test_effects_stay_in_number_and_order() -> None:
    said: list[float] = []

    def speaks(x: Any) -> Any:
        jax.debug.callback(lambda v: said.append(float(v)), x[0], ordered=True)
        jax.debug.callback(lambda v: said.append(float(v)), x[0], ordered=True)
        return jnp.sin(x)

    result = Simplify().apply(program_of(speaks, X))
    assert primitives(result).count("debug_callback") == 2


def test_barriers_are_not_shared() -> None:
    def apart(x: Any) -> Any:
        return jax.lax.optimization_barrier(x) * jax.lax.optimization_barrier(x)

    assert primitives(simplified(apart, X)).count("optimization_barrier") == 2


def test_random_bits_are_a_function_of_their_key() -> None:
    def draws(key: Any) -> Any:
        return jax.random.uniform(key, (3,)) + jax.random.uniform(key, (3,))

    key = jax.random.key(3)
    result = simplified(draws, key)
    assert primitives(result).count("jit") <= 1
    other = simplified(
        lambda k: jax.random.bits(k) + jax.random.bits(jax.random.fold_in(k, 1)), key
    )
    assert primitives(other).count("random_bits") == 2


def _scaled_backward(scale: float) -> Any:
    @jax.custom_vjp
    def rule(x: Any) -> Any:
        return jnp.sin(x)

    rule.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (scale * g * jnp.cos(x),))
    return rule


def test_rules_that_differ_in_their_backward_alone_stay_apart() -> None:
    one, other = _scaled_backward(1.0), _scaled_backward(5.0)

    def loss(x: Any) -> Any:
        return (one(x) + other(x)).sum()

    result = simplified(loss, X)
    assert primitives(result).count("custom_vjp_call") == 2
    gradient = jax.grad(lambda x: ir.as_function(result.jaxpr)(x)[0])(X)
    np.testing.assert_allclose(gradient, 6 * jnp.cos(X), rtol=1e-6)


def test_one_rule_called_twice_within_a_shared_function_is_shared() -> None:
    rule = jax.jit(_scaled_backward(5.0))
    result = simplified(lambda x: (rule(x) + rule(x)).sum(), X)
    assert primitives(result).count("custom_vjp_call") == 1
    gradient = jax.grad(lambda x: ir.as_function(result.jaxpr)(x)[0])(X)
    np.testing.assert_allclose(gradient, 10 * jnp.cos(X), rtol=1e-6)


def test_a_simple_program_is_handed_back() -> None:
    program = program_of(jnp.sin, X)
    assert Simplify().apply(program) is program


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gpt2_tiny", {"dropout_rate": 0.1, "num_layers": 2}),
        ("llama3_tiny", {"scan_layers": True, "remat": "full"}),
        ("mixtral_tiny", {}),
        ("t5_tiny", {"remat": "full"}),
    ],
)
def test_models_get_shorter_and_keep_their_loss_and_gradients(
    name: str, fields: dict[str, Any]
) -> None:
    spec = models.get(name, max_seq_len=16, **fields)
    functions, batch = adapters.adapt(spec.build()), spec.example_batch(2)
    program = trace_model(functions, losses.default_loss, batch, True, Precision()).program
    result, (report,) = run_passes(program, [Simplify()], Checks(compare=True, tolerance=1e-6))
    assert report.equations_after < report.equations_before
    again = Simplify().apply(result)
    assert again is result
    inputs = [random_inputs(program)[f"{leaf.role.value}/{leaf.path}"] for leaf in program.inputs]
    one, other = (_gradient(p)(*inputs) for p in (program, result))
    for expected, found in zip(one, other, strict=True):
        largest = float(jnp.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest)


def _gradient(program: Program) -> Any:
    positions = program.with_role(Role.PARAMETER)
    function = ir.as_function(program.jaxpr)
    gradient = jax.grad(lambda *inputs: function(*inputs)[0], argnums=positions)
    return jax.jit(gradient, compiler_options={"xla_backend_optimization_level": 0})


# Random programs.

_HELD = np.linspace(0.5, 1.5, 4, dtype=np.float32)
_RULES = (_scaled_backward(1.0), _scaled_backward(-2.0))
_CALLED = jax.jit(lambda x, y: jnp.where(x > y, x, 0.5 * y))

Step = tuple[str, int, int]


def _loop(x: Any, y: Any) -> Any:
    def body(carry: Any, _: None) -> Any:
        return jnp.sin(carry) + jnp.sin(carry) * y, None

    return jax.lax.scan(body, x, None, length=2)[0]


_OPERATIONS: dict[str, Any] = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "sin": lambda x, _: jnp.sin(x),
    "constant": lambda x, _: x * (jnp.float32(3.0) - jnp.float32(1.0)),
    "held": lambda x, _: x + jnp.cos(_HELD),
    "call": _CALLED,
    "rule": lambda x, _: _RULES[0](x),
    "other rule": lambda x, _: _RULES[1](x),
    "loop": _loop,
    "branch": lambda x, y: jax.lax.cond(x[0] > y[0], jnp.sin, lambda v: v + y, x),
    "again": lambda x, y: jax.checkpoint(lambda a, b: jnp.sin(a) * jnp.sin(a) + b)(x, y),
    "noise": lambda x, y: x + jax.random.uniform(jax.random.key(7), (4,)) + y,
    "mean": lambda x, y: x - y.mean(),
}

steps = st.lists(
    st.tuples(st.sampled_from(sorted(_OPERATIONS)), st.integers(0, 3), st.integers(0, 3)),
    min_size=1,
    max_size=7,
)


def _run(plan: list[Step], x: Any, y: Any) -> Any:
    values = [x, y]
    for operation, first, second in plan:
        one, two = values[-1 - first % len(values)], values[-1 - second % len(values)]
        values.append(_OPERATIONS[operation](one, two))
    return values[-1], sum(v.sum() for v in values[-3:])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(steps)
def test_random_programs_keep_their_values_and_gradients(plan: list[Step]) -> None:
    function = functools.partial(_run, plan)
    result = simplified(function, X, X[::-1] / 3)
    verify(result)

    def gradient(jaxpr: Any) -> Any:
        run = ir.as_function(jaxpr)
        return jax.grad(lambda x, y: run(x, y)[1], argnums=(0, 1))(X, X[::-1] / 3)

    before = jax.make_jaxpr(function)(X, X[::-1] / 3)
    for one, other in zip(gradient(result.jaxpr), gradient(before), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert Simplify().apply(result) is result
