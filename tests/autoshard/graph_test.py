"""Flattening of programs: calls once per site, loops with their meaning and multiplicity."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from autoshard.errors import PlanError
from autoshard.graph import ALIAS, SCAN_XS, SCAN_YS, TIE, Op, OpGraph, build_graph
from autoshard.named_dims import Analysis, analyse
from autoshard.trace import gradient_program, trace_function
from passes.program import Program, Role
from tests.autoshard.analysis_cases import examine_function, spec


def program_of(function: Callable[..., Any], *arguments: Any) -> Program:
    return trace_function(function, arguments, (Role.PARAMETER,) * len(arguments))[0]


def graph_of(function: Callable[..., Any], *arguments: Any) -> OpGraph:
    return build_graph(program_of(function, *arguments))


def analysed(function: Callable[..., Any], *arguments: Any) -> Analysis:
    return analyse(program_of(function, *arguments))


def ops_of(graph: OpGraph, primitive: str) -> list[Op]:
    return [op for op in graph.ops if op.primitive == primitive]


def output_dims(analysis: Analysis, position: int = 0) -> tuple[tuple[int, ...], ...]:
    return analysis.dims[analysis.graph.outputs[position]]


CALLS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "custom_jvp": lambda f: _custom_jvp(f),
    "custom_vjp": lambda f: _custom_vjp(f),
}


def _custom_jvp(function: Callable[..., Any]) -> Callable[..., Any]:
    wrapped = jax.custom_jvp(function)
    wrapped.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return wrapped


def _custom_vjp(function: Callable[..., Any]) -> Callable[..., Any]:
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(
        lambda *x: (function(*x), x),
        lambda x, g: jax.vjp(function, *x)[1](g),
    )
    return wrapped


@pytest.mark.parametrize("call", CALLS)
def test_calls_are_inlined_once_per_site(call: str) -> None:
    """One callee, shared and cached by JAX, applied to unrelated arrays of equal shapes."""
    layer = CALLS[call](lambda x, w: jnp.tanh(x @ w))

    def two(x: Any, y: Any, v: Any, w: Any) -> Any:
        return layer(x, v), layer(y, w)

    arrays = spec(4, 8), spec(4, 8), spec(8, 8), spec(8, 8)
    analysis = analysed(two, *arrays)
    assert collections.Counter(op.primitive for op in analysis.graph.ops) == {
        "dot_general": 2,
        "tanh": 2,
    }
    flat = [atom for i in range(4) for dim in analysis.leaf_dims(i) for atom in dim]
    assert len(set(flat)) == 6  # x's second is v's first, y's second is w's first
    assert analysis.leaf_dims(0)[1] == analysis.leaf_dims(2)[0]
    assert analysis.leaf_dims(1)[1] == analysis.leaf_dims(3)[0]
    assert not analysis.unmodelled


@pytest.mark.parametrize("call", CALLS)
def test_gradients_of_calls_are_modelled(call: str) -> None:
    layer = CALLS[call](lambda x, w: jnp.tanh(x @ w))
    program = program_of(lambda w, x: layer(layer(x, w), w).sum(), spec(8, 8), spec(4, 8))
    assert analyse(*gradient_program(program)).unmodelled == {}


def test_convolutions_of_one_shape_do_not_merge_their_channels() -> None:
    @jax.jit
    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    analysis = analysed(
        lambda x, v, w: conv(conv(x, v), w),
        spec(2, 8, 8, 4),
        spec(3, 3, 4, 4),
        spec(3, 3, 4, 4),
    )
    (_, _, first, middle), (_, _, again, last) = analysis.leaf_dims(1), analysis.leaf_dims(2)
    assert middle == again
    assert len({first, middle, last}) == 3


def test_scan_ties_carries_and_slices_operands() -> None:
    def cumulate(x: jax.Array, ws: jax.Array) -> Any:
        return lax.scan(lambda c, w: (jnp.tanh(c @ w), c.sum(0)), x, ws)

    analysis = analysed(cumulate, spec(4, 8), spec(5, 8, 8))
    graph = analysis.graph
    (xs,), (ys,), (tie,) = (ops_of(graph, name) for name in (SCAN_XS, SCAN_YS, TIE))
    assert graph.shape(xs.inputs[0]) == (5, 8, 8)
    assert graph.shape(xs.outputs[0]) == (8, 8)
    assert graph.shape(ys.outputs[0]) == (5, 8)
    assert tie.repeats == xs.repeats == ys.repeats == 5
    assert [op.repeats for op in ops_of(graph, "dot_general")] == [5]
    assert [op.repeats for op in ops_of(graph, ALIAS)] == [1, 1]
    # The weight maps the carry to itself, so its two dimensions are one class: a conflict.
    assert analysis.leaf_dims(1)[1] == analysis.leaf_dims(1)[2] == analysis.leaf_dims(0)[1]
    assert graph.inputs[1] in analysis.conflicts
    assert output_dims(analysis) == analysis.leaf_dims(0)
    assert output_dims(analysis, 1)[1] == analysis.leaf_dims(0)[1]
    assert output_dims(analysis, 1)[0] != analysis.leaf_dims(1)[0]


def test_a_carry_that_starts_from_zeros_takes_its_layout_from_the_body() -> None:
    def accumulate(w: jax.Array, xs: jax.Array) -> jax.Array:
        start = jnp.zeros((4, 6))
        return lax.scan(lambda c, x: (c + x @ w, None), start, xs)[0]

    analysis = analysed(accumulate, spec(8, 6), spec(5, 4, 8))
    rows, columns = output_dims(analysis)
    assert rows == analysis.leaf_dims(1)[1]
    assert columns == analysis.leaf_dims(0)[1]


def test_one_zeros_for_two_loops_relates_nothing() -> None:
    def two(w: jax.Array, v: jax.Array, xs: jax.Array) -> Any:
        start = jnp.zeros((4, 6))
        first = lax.scan(lambda c, x: (c + x @ w, None), start, xs)[0]
        return first, lax.scan(lambda c, x: (c + x @ v, None), start, xs)[0]

    analysis = analysed(two, spec(8, 6), spec(8, 6), spec(5, 4, 8))
    assert analysis.leaf_dims(0)[1] != analysis.leaf_dims(1)[1]


def test_nested_scans_multiply() -> None:
    def outer(x: jax.Array, ws: jax.Array) -> jax.Array:
        def block(c: jax.Array, stacked: jax.Array) -> Any:
            return lax.scan(lambda d, w: (d @ w, None), c, stacked)[0], None

        return lax.scan(block, x, ws)[0]

    graph = graph_of(outer, spec(4, 8), spec(3, 5, 8, 8))
    assert [op.repeats for op in ops_of(graph, "dot_general")] == [15]
    assert [(op.repeats, graph.shape(op.inputs[0])) for op in ops_of(graph, SCAN_XS)] == [
        (3, (3, 5, 8, 8)),
        (15, (5, 8, 8)),
    ]
    assert sorted(op.repeats for op in ops_of(graph, TIE)) == [3, 15]


def test_the_gradient_of_a_scan_is_modelled_and_counts_both_ways() -> None:
    def loss(ws: jax.Array, x: jax.Array) -> jax.Array:
        return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, ws)[0].sum()

    program = program_of(loss, spec(5, 8, 8), spec(4, 8))
    graph = build_graph(*gradient_program(program))
    # Forward, and for each iteration the gradients of weight and carry.
    assert sum(op.repeats for op in ops_of(graph, "dot_general")) == 5 + 2 * 5


def test_while_counts_once_and_ties_its_carry() -> None:
    def loop(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x)

    analysis = analysed(loop, spec(4, 8), spec(8, 8))
    assert [op.repeats for op in ops_of(analysis.graph, "dot_general")] == [1]
    assert output_dims(analysis) == analysis.leaf_dims(0)
    assert analysis.leaf_dims(1)[0] == analysis.leaf_dims(1)[1]


def test_while_constants_reach_condition_and_body() -> None:
    def loop(x: jax.Array, bound: jax.Array, w: jax.Array) -> jax.Array:
        return lax.while_loop(lambda c: (c < bound).all(), lambda c: c + w, x)

    analysis = analysed(loop, spec(4), spec(4), spec(4))
    assert analysis.leaf_dims(0) == analysis.leaf_dims(1) == analysis.leaf_dims(2)


def test_branches_of_cond_are_laid_out_alike() -> None:
    def choose(i: jax.Array, x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
        return lax.switch(i, [lambda: x @ w, lambda: x @ v, lambda: jnp.zeros((4, 6))])

    analysis = analysed(choose, spec(dtype=jnp.int32), spec(4, 8), spec(8, 6), spec(8, 6))
    assert analysis.leaf_dims(2) == analysis.leaf_dims(3)
    assert output_dims(analysis) == (analysis.leaf_dims(1)[0], analysis.leaf_dims(2)[1])


def test_a_branch_of_zeros_may_come_first() -> None:
    def choose(i: jax.Array, x: jax.Array) -> jax.Array:
        return lax.cond(i > 0, lambda: jnp.zeros((4, 8)), lambda: x)

    analysis = analysed(choose, spec(dtype=jnp.int32), spec(4, 8))
    assert output_dims(analysis) == analysis.leaf_dims(1)


def test_literals_and_constants_have_values_of_their_own() -> None:
    table = jnp.arange(8.0)
    graph = graph_of(lambda x: x * 2.0 + table[None, :], spec(4, 8))
    for op in graph.ops:
        assert all(value < len(graph.values) for value in (*op.inputs, *op.outputs))
    assert len({value for op in graph.ops for value in op.outputs}) == sum(
        len(op.outputs) for op in graph.ops
    )


def test_operations_know_their_equations() -> None:
    graph = graph_of(lambda x: jnp.tanh(x), spec(4))
    assert graph.ops[0].eqn is not None
    assert graph.ops[0].eqn.primitive.name == "tanh"


def test_a_gradient_tied_to_its_table_shares_the_vocabulary() -> None:
    """The gradient's scatter starts from zeros: without a tie its rows are a class of their own."""

    def loss(table: Any, tokens: Any) -> Any:
        return (table[tokens] ** 2).sum()

    one = examine_function(loss, spec(32, 8), spec(4, dtype=jnp.int32))
    traced, ties = gradient_program(one.program)
    loose, tied = analyse(traced), analyse(traced, ties)
    assert output_dims(loose, 1)[0] != loose.leaf_dims(0)[0]
    assert output_dims(tied, 1) == tied.leaf_dims(0)


def test_a_tie_of_different_shapes_names_both() -> None:
    program = program_of(lambda x: x.sum(0), spec(4, 8))
    with pytest.raises(PlanError, match=r"\(8,\) to input '0' of shape \(4, 8\)"):
        build_graph(program, [(0, 0)])
