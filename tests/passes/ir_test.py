"""The door to JAX's program representation."""

import jax
import jax.numpy as jnp
import pytest

from passes import ir


def test_closed_takes_both_forms() -> None:
    table = jnp.arange(3.0)
    program = jax.make_jaxpr(lambda x: x + table)(table)
    jaxpr, consts = ir.closed(program)
    assert jaxpr is program.jaxpr
    assert len(consts) == len(jaxpr.constvars) == 1
    # Later releases of jax have one class for both forms, which then keeps its constants.
    assert ir.closed(jaxpr) in [(jaxpr, ()), (jaxpr, consts)]


def _custom_vjp() -> object:
    square = jax.custom_vjp(lambda x: x * x)
    square.defvjp(lambda x: (x * x, x), lambda x, g: (2 * x * g,))
    return square


def _custom_jvp() -> object:
    square = jax.custom_jvp(lambda x: x * x)
    square.defjvp(lambda x, t: (x[0] * x[0], 2 * x[0] * t[0]))
    return square


@pytest.mark.parametrize(
    "function",
    [jax.jit(lambda x: x * x), jax.checkpoint(lambda x: x * x), _custom_jvp(), _custom_vjp()],
    ids=["jit", "remat", "custom_jvp", "custom_vjp"],
)
def test_callee_of_calls(function: object) -> None:
    assert callable(function)
    (eqn,) = jax.make_jaxpr(lambda x: function(x))(1.0).eqns
    called = ir.callee(eqn)
    assert called is not None
    jaxpr, _ = called
    assert [e.primitive.name for e in jaxpr.eqns] == ["mul"]
    assert len(jaxpr.invars) == len(eqn.invars)
    assert len(jaxpr.outvars) == len(eqn.outvars)


def test_loops_and_plain_operations_are_no_calls() -> None:
    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (c + 1, None), x, None, length=3)[0] * 2

    eqns = jax.make_jaxpr(loop)(1.0).eqns
    assert [e.primitive.name for e in eqns] == ["scan", "mul"]
    assert all(ir.callee(eqn) is None for eqn in eqns)


def test_equations_goes_into_calls_loops_and_branches() -> None:
    @jax.jit
    def inner(x: jax.Array) -> jax.Array:
        return jnp.sin(x)

    def function(x: jax.Array) -> jax.Array:
        x = jax.lax.scan(lambda c, _: (inner(c), None), x, None, length=3)[0]
        return jax.lax.cond(x > 0, jnp.cos, jnp.tan, x)

    names = [e.primitive.name for e in ir.equations(jax.make_jaxpr(function)(1.0).jaxpr)]
    assert {"scan", "jit", "sin", "cond", "cos", "tan"} <= set(names)
    assert names.index("scan") < names.index("sin")


def test_as_function_can_be_differentiated() -> None:
    program = jax.make_jaxpr(lambda x, y: (x * y, x))(2.0, 3.0)
    assert ir.as_function(program)(2.0, 3.0) == [6.0, 2.0]
    assert jax.grad(lambda x: ir.as_function(program)(x, 3.0)[0])(2.0) == 3.0


def test_is_literal() -> None:
    (eqn,) = jax.make_jaxpr(lambda x: x * 2.0)(1.0).eqns
    assert [ir.is_literal(x) for x in eqn.invars] in ([False, True], [True, False])


def test_source_line_names_the_users_frame() -> None:
    (eqn,) = jax.make_jaxpr(lambda x: jnp.sin(x))(1.0).eqns
    line = ir.source_line(eqn)
    assert line.startswith("ir_test.py:")
    assert "test_source_line_names_the_users_frame" in line
