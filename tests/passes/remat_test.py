"""Remat keeps loss and gradients, saves what it says, and gets by with its budget."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from passes import ir
from passes.errors import PassError
from passes.hlo.machine import MachineModel
from passes.microbatch import Microbatch
from passes.pass_pipeline import run_passes
from passes.program import Leaf, Placement, Program, Role
from passes.remat import Remat, default_budget, flat_loops, planned_blocks
from passes.remat_body import reads_own_result
from passes.spec import Spec
from passes.stack_layers import StackLayers
from tests.passes import programs

MACHINE = MachineModel(
    "test", "tpu", 1e9, (("f32", 1e11), ("bf16", 1e11)), 1e10, 2**30, 1e11, 2**20, 1e10, (), ((),)
)
MIB = 2**20


def planned(program: Program, specs: dict[str, Spec] | None = None) -> Program:
    """The program on one device, or on eight with inputs' specs by path."""
    count = 8 if specs else 1
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))

    def of(flat: Program) -> dict[ir.Var, Spec]:
        variables = zip(ir.closed(flat.jaxpr)[0].invars, flat.inputs, strict=True)
        return {x: (specs or {})[leaf.path] for x, leaf in variables if leaf.path in (specs or {})}

    machine = dataclasses.replace(MACHINE, coordinates=((),) * count)
    return dataclasses.replace(program, placement=Placement(mesh, machine, of))


def llama(**overrides: Any) -> Program:
    settings = {"num_layers": 4, "scan_layers": True, **overrides}
    return planned(programs.of_spec("llama3_tiny", batch_size=3, **settings))


def saved_arrays(program: Program) -> dict[tuple[int, ...], int]:
    """Shapes of what a program's derivative keeps, and how many of each."""
    function = ir.as_function(program.jaxpr)
    wrt = program.with_role(Role.PARAMETER)

    def residuals(*inputs: Any) -> Any:
        def loss(*parameters: Any) -> Any:
            arguments = list(inputs)
            for i, x in zip(wrt, parameters, strict=True):
                arguments[i] = x
            return function(*arguments)[0]

        return jax.tree.leaves(jax.vjp(loss, *(inputs[i] for i in wrt))[1])

    jaxpr, _ = ir.closed(jax.make_jaxpr(residuals)(*program.jaxpr.in_avals))
    given = set(jaxpr.invars)
    shapes: dict[tuple[int, ...], int] = {}
    made: list[Any] = [x for x in jaxpr.outvars if not ir.is_literal(x)]
    for x in dict.fromkeys(made):
        if x not in given:
            shapes[x.aval.shape] = shapes.get(x.aval.shape, 0) + 1
    return shapes


def saved_bytes(program: Program, length: int) -> float:
    """Bytes of the stacks that loops of some length keep."""
    shapes = saved_arrays(program)
    return sum(4 * math.prod(s) * n for s, n in shapes.items() if s and s[0] == length)


def choice_note(program: Program, start: str) -> str:
    return next(note for note in program.notes if note.startswith(start))


def stated_bytes(program: Program) -> float:
    found = re.search(r"saved on a device: ([\d.]+) MiB", choice_note(program, "saved on a"))
    assert found
    return float(found.group(1)) * MIB


@pytest.mark.parametrize("policy", ["full", "dots_no_batch", "offload_dots"])
def test_presets_keep_loss_and_gradients(policy: Any) -> None:
    before = llama()
    programs.assert_same(before, Remat(policy=policy).apply(before))


@pytest.mark.parametrize("policy", ["full", "dots_no_batch", "dots", "none"])
def test_presets_are_those_of_unrolled_layers_too(policy: Any) -> None:
    before = llama(num_layers=2, scan_layers=False, remat="full")
    after = Remat(policy=policy).apply(before)
    programs.assert_same(before, after)
    assert f"2 regions under JAX's policy {policy!r}" in after.notes
    regions = [e for e in after.jaxpr.jaxpr.eqns if e.primitive.name in ir.CHECKPOINTS]
    assert len(regions) == (0 if policy == "none" else 2)


def test_presets_save_what_they_say_of_unrolled_layers() -> None:
    before = llama(num_layers=2, scan_layers=False, remat="full")
    kept = [saved_arrays(Remat(p).apply(before)) for p in ("full", "dots_no_batch", "dots", "none")]
    totals = [sum(math.prod(shape) * n for shape, n in arrays.items()) for arrays in kept]
    assert totals == sorted(set(totals))


def test_loops_and_regions_are_changed_together() -> None:
    def layer(x: Any, w: Any) -> Any:
        return jnp.tanh(x @ w)

    def loss(params: Any, batch: Any) -> Any:
        x = jax.checkpoint(layer)(batch, params["first"])
        x, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), x, params["rest"])
        return jnp.mean(x**2)

    shapes = {"first": (8, 8), "rest": (4, 8, 8)}
    params = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in shapes.items()}
    before = programs.of_function(loss, params, jax.ShapeDtypeStruct((2, 8), jnp.float32))
    after = Remat(policy="dots").apply(before)
    programs.assert_same(before, after)
    assert "1 loops and 1 regions under JAX's policy 'dots'" in after.notes


@pytest.mark.parametrize(
    ("budget_mib", "remat"), [(0.1, "none"), (0.2, "full"), (0.2, "none"), (100, "full")]
)
def test_auto_keeps_loss_and_gradients_within_its_budget(budget_mib: float, remat: str) -> None:
    before = llama(remat=remat)
    after = Remat(budget_bytes=budget_mib * MIB).apply(before)
    programs.assert_same(before, after)
    assert stated_bytes(after) <= budget_mib * MIB + 0.01 * MIB
    # What JAX keeps of the loop is what the note says.
    assert saved_bytes(after, 4) == pytest.approx(stated_bytes(after), abs=0.01 * MIB)


def test_a_large_budget_repeats_no_product() -> None:
    after = Remat(budget_bytes=100 * MIB).apply(llama())
    assert "0.0% of the forward FLOPs run again" in choice_note(after, "block0, 4")
    none = programs.count(Remat(policy="none").apply(llama()), "dot_general")
    assert programs.count(after, "dot_general") == none


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("gpt2_tiny", {"num_layers": 4, "dropout_rate": 0.1}),
        ("t5_tiny", {"num_layers": 5}),
    ],
)
def test_stacked_models_keep_loss_and_gradients(name: str, overrides: dict[str, Any]) -> None:
    before = programs.of_spec(name, batch_size=2, **overrides)
    stacked, _ = run_passes(planned(before), [StackLayers(required=True)])
    least = Remat(policy="auto", budget_bytes=0)
    with pytest.raises(PassError, match="must be kept") as error:
        least.apply(stacked)
    found = re.search(r"backward pass, ([\d.]+) MiB", str(error.value))
    assert found
    budget = float(found.group(1)) * 2 * MIB + 0.1 * MIB
    after, _ = run_passes(stacked, [Remat(budget_bytes=budget)])
    programs.assert_same(before, after)


def test_offload_keeps_loss_and_gradients_and_the_carry_leaves_the_device() -> None:
    before = llama()
    after = Remat(budget_bytes=0, offload="all").apply(before)
    assert stated_bytes(after) == 0
    assert "block0/carry" in choice_note(after, "host an iteration")
    programs.assert_same(before, after)


def _tower(activations: Sequence[str], width: int, layers: int) -> tuple[Any, Any, Any]:
    kinds = {
        "tanh": jnp.tanh,
        "exp": lambda x: jnp.exp(-jnp.abs(x)),
        "silu": jax.nn.silu,
        "softmax": jax.nn.softmax,
        "norm": lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6),
        "relu": jax.nn.relu,
        "sin": jnp.sin,
        "residual": lambda x: x,
        "cumsum": lambda x: jnp.cumsum(x, axis=0) / x.shape[0],
        "max": lambda x: jnp.maximum(x, jnp.max(x, -1, keepdims=True) * 0.5),
    }

    def block(carry: Any, w: Any) -> Any:
        x, count = carry
        for i, kind in enumerate(activations):
            x = 0.5 * x + kinds[kind](x @ w[f"w{i}"])
        return (x, count + 1), jnp.sum(x)

    def loss(params: Any, batch: Any) -> Any:
        start = (batch["x"] @ params["first"], jnp.zeros((), jnp.int32))
        (x, count), taps = jax.lax.scan(block, start, params["layers"])
        return jnp.mean(x**2) + 1e-3 * jnp.mean(taps) + 0.0 * count

    rng = np.random.default_rng(0)
    params = {
        "first": rng.normal(size=(width, width)).astype(np.float32),
        "layers": {
            f"w{i}": rng.normal(size=(layers, width, width)).astype(np.float32)
            for i in range(len(activations))
        },
    }
    return loss, params, {"x": rng.normal(size=(3, width)).astype(np.float32)}


ACTIVATIONS = ["tanh", "exp", "silu", "softmax", "norm", "relu", "sin", "residual", "cumsum", "max"]


@settings(max_examples=8, deadline=None)
@given(
    activations=st.lists(st.sampled_from(ACTIVATIONS), min_size=1, max_size=4),
    layers=st.integers(1, 3),
    share=st.floats(0, 1),
    offload=st.sampled_from(["none", "auto", "all"]),
)
def test_random_towers_keep_loss_and_gradients(
    activations: list[str], layers: int, share: float, offload: Any
) -> None:
    program = planned(programs.of_function(*_tower(activations, 8, layers)))
    least = layers * 3 * 8 * 4
    budget = least * (1 + 5 * share * len(activations))
    after, _ = run_passes(program, [Remat(budget_bytes=budget, offload=offload)])
    programs.assert_same(program, after)


@pytest.mark.parametrize("kind", ["tanh", "exp", "silu", "softmax"])
def test_a_derivative_that_reads_its_result_reads_the_saved_one(kind: str) -> None:
    program = planned(programs.of_function(*_tower([kind], 8, 2)))
    after = Remat(budget_bytes=MIB).apply(program)
    function = ir.as_function(after.jaxpr)
    specs = list(after.jaxpr.in_avals)
    jaxpr = jax.make_jaxpr(jax.grad(lambda *x: function(*x)[0], (0, 1)))(*specs)
    dear = {"tanh": "tanh", "exp": "exp", "silu": "logistic", "softmax": "exp"}[kind]
    eqns = list(ir.equations(ir.closed(jaxpr)[0]))
    assert sum(eqn.primitive.name == dear for eqn in eqns) == 1  # not again in the backward pass


def test_microbatches_keep_what_was_chosen() -> None:
    before = llama()
    after, _ = run_passes(before, [Remat(budget_bytes=0.1 * MIB), Microbatch(count=3)])
    programs.assert_same(before, after)


def test_which_derivatives_read_their_result() -> None:
    def one(function: Any) -> ir.JaxprEqn:
        x = jax.ShapeDtypeStruct((3,), jnp.float32)
        return ir.closed(jax.make_jaxpr(function)(x))[0].eqns[0]

    assert reads_own_result(one(jnp.exp)) and reads_own_result(one(jax.lax.rsqrt))
    assert not reads_own_result(one(jnp.sin)) and not reads_own_result(one(lambda x: x * x))


def test_names_are_those_of_parameters_and_unique() -> None:
    (trace,) = planned_blocks(*flat_loops(llama()))
    names = [value.name for value in trace.problem.values if value.name]
    assert len(names) == len(set(names))
    assert any(re.fullmatch(r"block0/layers/mlp/up_proj/kernel:dot_general", n) for n in names)
    assert "block0/carry" in names
    assert any(n.startswith("block0/LlamaMLP:") for n in names), names


def test_sharded_values_count_by_device() -> None:
    loss, params, batch = _tower(["tanh"], 8, 2)
    batch = {"x": np.zeros((16, 8), np.float32)}
    program = programs.of_function(loss, params, batch)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))

    def by_rows(flat: Program) -> dict[ir.Var, Spec]:
        eqns = ir.equations(ir.closed(flat.jaxpr)[0])
        variables: list[Any] = [
            x for e in eqns for x in (*e.invars, *e.outvars) if not ir.is_literal(x)
        ]
        return {x: (("data",), ()) for x in variables if x.aval.shape == (16, 8)}

    machine = dataclasses.replace(MACHINE, coordinates=((),) * 8)
    sharded = dataclasses.replace(program, placement=Placement(mesh, machine, by_rows))
    whole = planned(program)
    sizes = []
    for one in (whole, sharded):
        (trace,) = planned_blocks(*flat_loops(one))
        sizes.append({v.name: v.size_bytes for v in trace.problem.values if v.name})
    assert sizes[0]["block0/carry"] == 16 * 8 * 4
    assert sizes[1]["block0/carry"] == 2 * 8 * 4


def test_the_default_budget_is_what_parameters_leave() -> None:
    program = llama()
    leaves = [leaf for leaf in program.inputs if leaf.role is Role.PARAMETER]
    held = sum(leaf.size_bytes for leaf in leaves)
    assert default_budget(program) == pytest.approx(0.9 * 2**30 - 4 * held)
    assert "of a budget of" in choice_note(Remat().apply(program), "saved on a")


def test_bad_input_is_refused() -> None:
    program = llama()
    with pytest.raises(PassError, match="unknown policy 'some'"):
        Remat(policy="some").apply(program)  # type: ignore[arg-type]
    with pytest.raises(PassError, match="offload='disk'"):
        Remat(offload="disk").apply(program)  # type: ignore[arg-type]
    with pytest.raises(PassError, match="has no budget"):
        Remat(policy="full", budget_bytes=1).apply(program)
    with pytest.raises(PassError, match="below zero"):
        Remat(budget_bytes=-1).apply(program)
    with pytest.raises(PassError, match="there is no plan yet"):
        Remat().apply(dataclasses.replace(program, placement=None))
    with pytest.raises(PassError, match="no loop over layers"):
        Remat().apply(planned(programs.of_spec("mlp")))
    with pytest.raises(PassError, match=r"scanned layers, or jax\.checkpoint around its layers"):
        Remat("dots").apply(planned(programs.of_spec("mlp")))
    with pytest.raises(PassError, match=r"less than what must be kept .* allow offload='auto'"):
        Remat(budget_bytes=1).apply(program)


def test_dropout_masks_are_the_same_in_both_passes() -> None:
    def block(x: Any, inputs: Any) -> Any:
        w, key = inputs
        mask = jax.random.bernoulli(key, 0.5, x.shape)
        return x + jnp.where(mask, jnp.tanh(x @ w), 0.0), None

    def loss(w: Any, x: Any, key: Any) -> Any:
        return jnp.sum(jax.lax.scan(block, x, (w, jax.random.split(key, 4)))[0] ** 2)

    specs = (
        jax.ShapeDtypeStruct((4, 8, 8), jnp.float32),
        jax.ShapeDtypeStruct((2, 8), jnp.float32),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    roles = (Role.PARAMETER, Role.BATCH, Role.RNG)
    leaves = tuple(
        Leaf(role.value, role, s.shape, str(s.dtype)) for role, s in zip(roles, specs, strict=True)
    )
    program = planned(Program("dropout", jax.make_jaxpr(loss)(*specs), leaves, ("loss",)))
    for budget in (4 * 2 * 8 * 4, MIB):
        programs.assert_same(program, Remat(budget_bytes=budget).apply(program))
