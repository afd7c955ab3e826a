"""Shares of tokens: the program is the same, and only the rest of them is computed again."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from passes import ir
from passes.equation_cost import CostModel
from passes.errors import PassError
from passes.hlo.machine import MachineModel
from passes.pass_pipeline import run_passes
from passes.program import Placement, Program, Role
from passes.remat import (
    Remat,
    flat_loops,
    planned_blocks,
    realised,
    split_candidates,
    with_bodies,
)
from passes.remat_problem import Choice
from passes.remat_solver import trimmed
from passes.stack_layers import StackLayers
from passes.token_split import TokenSplit, split_tokens, token_splits
from tests.passes import programs

# Traffic costs little, as if sequences were long; what iterations can send to the host is less than
# some single values.
MACHINE = MachineModel(
    "test", "tpu", 1e9, (("f32", 1e11),), 1e12, 2**30, 1e14, 2**20, 4e8, (), ((),)
)
MIB = 2**20


LENGTH = 48
MOST, LEAST = 0.75, 0.25  # of the tokens, made again where one of the groups is kept


def planned(program: Program) -> Program:
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    return dataclasses.replace(program, placement=Placement(mesh, MACHINE, lambda _: {}))


def of_spec(name: str, seq_len: int = LENGTH, **overrides: Any) -> Program:
    given = {"num_layers": 3, "scan_layers": True, **overrides}
    return planned(programs.of_spec(name, batch_size=2, seq_len=seq_len, **given))


def costs() -> CostModel:
    return CostModel(MACHINE, Mesh(np.array(jax.devices()[:1]), ("data",)))


def product_flops(jaxpr: ir.Jaxpr) -> float:
    """FLOPs of all matrix products, those of loops as often as they run."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left, result = ir.spec(eqn.invars[0]).shape, ir.spec(eqn.outvars[0]).shape
            total += 2.0 * math.prod(result) * math.prod(left[d] for d in contracted)
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            if isinstance(value, (ir.Jaxpr, ir.ClosedJaxpr)):
                total += times * product_flops(ir.closed(value)[0])
    return total


def gradient(program: Program) -> Any:
    wrt = program.with_role(Role.PARAMETER)
    function = ir.as_function(program.jaxpr)
    return jax.grad(lambda *x: function(*x)[0], wrt)


def gradient_flops(program: Program) -> float:
    """FLOPs of the products of the gradient's jaxpr, without what nothing reads."""
    jaxpr, _ = ir.closed(jax.make_jaxpr(gradient(program))(*program.jaxpr.in_avals))
    return product_flops(jaxpr)


def group_kept(program: Program, group: int) -> tuple[Program, float]:
    """A program that keeps one group of its tokens wherever it can, and nothing of the others; and
    the FLOPs that are said to run again.
    """
    flat, loops = flat_loops(program)
    body, _ = split_tokens(loops[0], TokenSplit(1, LENGTH, LENGTH // 4), {})
    flat, loops = flat_loops(with_bodies(flat, {id(loops[0].eqn): body}))
    (trace,) = planned_blocks(flat, loops)
    block, tokens = trace.problem, (LENGTH // 4, LENGTH - LENGTH // 4)[group]
    carries = set(trace.loop.carries)
    kept = frozenset(
        i
        for i in block.nameable
        if trace.variable[i] in carries or tokens in ir.spec(trace.variable[i]).shape
    )
    one = trimmed(block, kept, frozenset())
    again = block.length * sum(block.steps[e].flops for e in one.repeated)
    return realised(flat, [trace], Choice((one,), 0.0, proved=True)), again


@pytest.mark.parametrize("group", [0, 1])
def test_only_the_rest_of_the_tokens_is_computed_again(group: int) -> None:
    program = of_spec("llama3_tiny")
    full = gradient_flops(Remat("full").apply(program))
    nothing = gradient_flops(Remat("none").apply(program))
    after, stated = group_kept(program, group)
    again = gradient_flops(after) - nothing
    assert again == pytest.approx(stated)
    assert again == pytest.approx((MOST, LEAST)[group] * (full - nothing), rel=1e-6)
    programs.assert_same(program, after)


def test_the_compiled_program_computes_only_the_rest_again() -> None:
    program = of_spec("llama3_tiny")

    def compiled(one: Program) -> float:
        lowered = jax.jit(gradient(one)).lower(*one.jaxpr.in_avals)
        found: Any = lowered.compile(compiler_options=programs.FAST).cost_analysis()
        return float(found["flops"])

    nothing = compiled(Remat("none").apply(program))
    full = compiled(Remat("full").apply(program)) - nothing
    most, least = (compiled(group_kept(program, group)[0]) - nothing for group in (0, 1))
    assert 0.6 < most / full < 0.9 and 0.1 < least / full < 0.4, (most / full, least / full)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("llama3_tiny", {}), ("gpt2_tiny", {"dropout_rate": 0.1})],
)
@pytest.mark.parametrize("offload", ["none", "auto"])
def test_auto_keeps_loss_and_gradients(name: str, overrides: dict[str, Any], offload: Any) -> None:
    program = of_spec(name, **overrides)
    budget = 0.4 * MIB if name == "llama3_tiny" else 0.8 * MIB
    whole = Remat(budget_bytes=budget, offload=offload).apply(program)
    after = Remat(budget_bytes=budget, offload=offload, token_wise=True).apply(program)
    assert objective_ms(after) < objective_ms(whole)
    assert any("tokens in groups of" in note for note in after.notes), after.notes
    programs.assert_same(program, after)


def objective_ms(program: Program) -> float:
    """What the pass says that its choice costs a step."""
    (found,) = [re.search(r"; ([\d.]+) ms a step", x) for x in program.notes if "; " in x][:1]
    assert found
    return float(found.group(1))


ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "softmax": jax.nn.softmax,
    "silu": jax.nn.silu,
    "norm": lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6),
    "mixed": lambda x: jnp.cumsum(x, axis=1) / x.shape[1],
    "attention": lambda x: jax.nn.softmax(x @ x.swapaxes(1, 2)) @ x,
    "over tokens": lambda x: x - jnp.mean(x, axis=1, keepdims=True),
    "flat": lambda x: jnp.tanh(x.reshape(-1, x.shape[-1])).reshape(x.shape),
    "scan": lambda x: jax.lax.scan(lambda c, y: (0.5 * c + y, c), x[:, 0], x.swapaxes(0, 1))[
        1
    ].swapaxes(0, 1),
}


@settings(max_examples=6, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=1, max_size=4),
    split=st.sampled_from([TokenSplit(0, 2, 1), TokenSplit(1, 6, 1), TokenSplit(1, 6, 4)]),
    seed=st.integers(0, 10**6),
)
def test_any_part_of_random_towers_can_be_kept(
    kinds: list[str], split: TokenSplit, seed: int
) -> None:
    def block(x: Any, w: Any) -> Any:
        for i, kind in enumerate(kinds):
            x = 0.5 * x + ACTIVATIONS[kind](x @ w[i])
        return x, jnp.sum(x)

    def loss(params: Any, batch: Any) -> Any:
        x, taps = jax.lax.scan(block, batch["x"] @ params["first"], params["layers"])
        return jnp.mean(x**2) + 1e-3 * jnp.mean(taps)

    rng = np.random.default_rng(seed)
    params = {
        "first": np.zeros((8, 8), np.float32),
        "layers": np.zeros((2, len(kinds), 8, 8), np.float32),
    }
    program = planned(programs.of_function(loss, params, {"x": np.zeros((2, 6, 8), np.float32)}))
    flat, loops = flat_loops(program)
    body, _ = split_tokens(loops[0], split, {})
    flat, loops = flat_loops(with_bodies(flat, {id(loops[0].eqn): body}))
    (trace,) = planned_blocks(flat, loops)
    carries = set(trace.loop.carries)
    kept = {i for i in trace.problem.nameable if rng.random() < 0.5}
    kept |= {i for i in trace.problem.nameable if trace.variable[i] in carries}
    one = trimmed(trace.problem, frozenset(kept), frozenset())
    programs.assert_same(program, realised(flat, [trace], Choice((one,), 0.0, proved=True)))


def loop_of(function: Any, *shapes: tuple[int, ...]) -> Any:
    """The loop of a scan of a body (carry, slice of weights) -> carry."""

    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(jax.lax.scan(lambda x, w: (function(x, w), None), batch, params)[0])

    params, batch = (np.zeros(shape, np.float32) for shape in shapes)
    return flat_loops(planned(programs.of_function(loss, params, batch)))[1][0]


def test_what_computes_tokens_alone_is_cut_and_what_mixes_them_is_whole() -> None:
    def layer(x: Any, w: Any) -> Any:
        mixed = jnp.cumsum(x @ w, axis=1)
        return x + jax.nn.relu(mixed @ w)

    body, _ = split_tokens(loop_of(layer, (3, 8, 8), (2, 6, 8)), TokenSplit(1, 6, 2), {})
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for eqn in body.jaxpr.eqns:
        shapes.setdefault(eqn.primitive.name, []).append(ir.spec(eqn.outvars[0]).shape)
    groups = [(2, 2, 8), (2, 4, 8)]
    assert shapes["dot_general"] == [*groups, *groups]
    assert shapes["custom_jvp_call"] == groups
    assert shapes["cumsum"] == [(2, 6, 8)]


def test_attention_is_cut_by_its_queries() -> None:
    def layer(x: Any, w: Any) -> Any:
        scores = jnp.einsum("bkd,bqd->bqk", x @ w, x)  # keys are the first operand
        return x + jax.nn.softmax(scores) @ x

    body, _ = split_tokens(loop_of(layer, (3, 8, 8), (2, 6, 8)), TokenSplit(1, 6, 2), {})
    made = [ir.spec(x).shape for eqn in body.jaxpr.eqns for x in eqn.outvars]
    assert (2, 2, 6) in made and (2, 4, 6) in made  # queries by keys
    assert (2, 6, 2) not in made[-10:] and (2, 6, 6) not in made


def test_tokens_lie_where_no_axis_shards_them() -> None:
    loop = loop_of(lambda x, w: x @ w, (3, 8, 8), (16, 1024, 8))
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "seq"))
    model = CostModel(MACHINE, mesh)
    carry = loop.carries[0]
    splits = token_splits(loop, {carry: (("data",), (), ())}, model)
    assert [(x.dim, x.size, x.first) for x in splits] == [
        (1, 1024, first) for first in (128, 256, 384, 512)
    ]
    by_rows = token_splits(loop, {carry: ((), ("seq",), ())}, model)
    assert [(x.dim, x.size, x.first) for x in by_rows] == [(0, 16, 8)]
    assert token_splits(loop, {carry: (("data",), ("seq",), ())}, model) == ()


def test_stacked_encoders_and_decoders_are_split() -> None:
    before = planned(programs.of_spec("t5_tiny", batch_size=2, num_layers=5))
    stacked, _ = run_passes(before, [StackLayers(required=True)])
    candidates = split_candidates(*flat_loops(stacked))
    assert candidates and all("tokens in groups of" in x for one in candidates for x in one.notes)
    one = candidates[-1]
    choices = tuple(
        trimmed(t.problem, frozenset(t.problem.nameable), frozenset()) for t in one.traces
    )
    programs.assert_same(stacked, realised(one.program, one.traces, Choice(choices, 0.0, True)))


def test_shares_of_tokens_need_the_policy_auto() -> None:
    with pytest.raises(PassError, match="no budget, offload or shares of tokens"):
        Remat("full", token_wise=True).apply(of_spec("llama3_tiny"))
