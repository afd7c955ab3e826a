"""precision: which products become narrow, what stays, and how near the loss is."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from autoshard import adapters, losses
from autoshard.precision import Precision
from autoshard.trace import trace_model
from passes import ir
from passes.compare import random_inputs
from passes.errors import PassError
from passes.pass_pipeline import run_passes
from passes.precision import MixedPrecision
from passes.program import Leaf, Program, Role
from passes.stack_layers import StackLayers

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

NARROW, WIDE = "bfloat16", "float32"
PRODUCTS = ("dot_general", "conv_general_dilated")


def program_of(function: Any, *arguments: Any, parameters: int = 1) -> Program:
    """The first `parameters` arguments are parameters."""
    jaxpr = jax.make_jaxpr(function)(*arguments)
    leaves = [
        Leaf(
            str(i),
            Role.PARAMETER if i < parameters else Role.BATCH,
            tuple(x.shape),
            str(x.dtype),
        )
        for i, x in enumerate(jaxpr.in_avals)
    ]
    names = tuple(f"out{i}" for i in range(len(jaxpr.out_avals)))
    return Program("test", jaxpr, tuple(leaves), names)


def model_program(name: str, batch_size: int = 2, **fields: Any) -> Program:
    spec = models.get(name, **fields)
    functions, batch = adapters.adapt(spec.build()), spec.example_batch(batch_size)
    return trace_model(functions, losses.default_loss, batch, True, Precision()).program


def products(jaxpr: Any) -> list[tuple[tuple[str, ...], str]]:
    """(dtypes of operands, dtype of the result) of each product, nested ones included."""
    return [
        (tuple(str(ir.spec(x).dtype) for x in eqn.invars), str(ir.spec(eqn.outvars[0]).dtype))
        for eqn in ir.equations(ir.closed(jaxpr)[0])
        if eqn.primitive.name in PRODUCTS
    ]


def gradient_of(program: Program) -> Any:
    positions = program.with_role(Role.PARAMETER)
    function = ir.as_function(program.jaxpr)
    return jax.value_and_grad(lambda *inputs: function(*inputs)[0], argnums=positions)


def inputs_of(program: Program) -> list[Any]:
    drawn = random_inputs(program)
    return [
        jnp.stack([drawn[f"{leaf.role.value}/{part}"] for part in leaf.parts])
        if leaf.parts
        else drawn[f"{leaf.role.value}/{leaf.path}"]
        for leaf in program.inputs
    ]


W, X = jnp.ones((4, 4)) / 3, jnp.linspace(-1, 1, 8).reshape(2, 4)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gpt2_tiny", {"max_seq_len": 16, "num_layers": 1, "dropout_rate": 0.0}),
        ("llama3_tiny", {"max_seq_len": 16, "scan_layers": True, "remat": "full"}),
        ("mixtral_tiny", {"max_seq_len": 16, "num_layers": 1, "capacity_factor": 4.0}),
        ("t5_tiny", {"max_seq_len": 16, "num_layers": 1, "remat": "full"}),
        ("resnet_tiny", {"image_size": 8, "width": 8, "stage_sizes": (1, 1)}),
    ],
)
def test_products_of_models_are_narrow_and_the_loss_is_near(
    name: str, fields: dict[str, Any]
) -> None:
    program = model_program(name, **fields)
    result, _ = run_passes(program, [MixedPrecision()])
    before, after = products(program.jaxpr), products(result.jaxpr)
    assert len(before) == len(after) > 3
    assert set(before) == {((WIDE, WIDE), WIDE)}
    # A router's scores stay wide, as its model asks.
    assert after.count(((WIDE, WIDE), WIDE)) == (name == "mixtral_tiny")
    assert after.count(((NARROW, NARROW), WIDE)) == len(after) - (name == "mixtral_tiny")
    inputs = inputs_of(program)
    (one, wide), (two, narrow) = (quick(gradient_of(p))(*inputs) for p in (program, result))
    assert float(one) != float(two)
    np.testing.assert_allclose(two, one, rtol=2e-2)
    for expected, found, leaf in zip(wide, narrow, program.inputs, strict=False):
        assert str(found.dtype) == leaf.dtype
        # The norm of what 8 bits of each factor lose; a key's bias has no gradient at all.
        lost = float(jnp.linalg.norm(found - expected) / (jnp.linalg.norm(expected) + 1e-4))
        assert lost < 0.2, (leaf.path, lost)


def test_everything_else_keeps_its_type() -> None:
    program = model_program("llama3_tiny", num_layers=1)
    result = MixedPrecision().apply(program)
    made = [
        eqn.primitive.name
        for eqn in ir.equations(ir.closed(result.jaxpr)[0])
        for x in eqn.outvars
        if str(ir.spec(x).dtype) == NARROW
    ]
    assert set(made) == {"convert_element_type"}
    assert [x.dtype for x in result.jaxpr.in_avals] == [x.dtype for x in program.jaxpr.in_avals]
    assert [x.dtype for x in result.jaxpr.out_avals] == [x.dtype for x in program.jaxpr.out_avals]


@pytest.mark.parametrize("name", ["gpt2_tiny", "mixtral_tiny", "resnet_tiny"])
def test_a_policy_of_the_programs_own_type_is_the_identity(name: str) -> None:
    program = model_program(name)
    assert MixedPrecision(compute=WIDE, accumulate=WIDE).apply(program) is program


def test_a_program_that_is_narrow_already_is_left_alone() -> None:
    program = program_of(lambda w, x: x @ w, W.astype(NARROW), X.astype(NARROW))
    assert MixedPrecision().apply(program) is program


def test_only_the_wide_operand_is_cast() -> None:
    def mixed(w: Any, x: Any) -> Any:
        return jax.lax.dot(x, w, preferred_element_type=jnp.float32)

    result = MixedPrecision().apply(program_of(mixed, W, X.astype(NARROW)))
    assert [e.primitive.name for e in result.jaxpr.jaxpr.eqns] == [
        "convert_element_type",
        "dot_general",
    ]


def test_a_parameter_is_cast_once_for_all_its_uses() -> None:
    result = MixedPrecision().apply(program_of(lambda w, x: x @ w @ w @ w, W, X))
    casts = [e for e in result.jaxpr.jaxpr.eqns if e.primitive.name == "convert_element_type"]
    of_parameter = [e for e in casts if e.invars[0] is result.jaxpr.jaxpr.invars[0]]
    assert len(of_parameter) == 1
    assert result.notes == ("3 products of bfloat16 accumulated in float32",)


def test_a_matrix_before_an_array_of_several_dimensions_is_multiplied_after_it() -> None:
    def experts(w: Any, x: Any) -> Any:
        return jnp.einsum("edf,bnecd->bnecf", w, x)

    rng = np.random.default_rng(0)
    kernel, tokens = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 16, 8), (2, 2, 3, 5, 16))
    )
    result = MixedPrecision().apply(program_of(experts, kernel, tokens))
    found = jax.jit(ir.as_function(result.jaxpr))(kernel, tokens)[0]
    assert products(result.jaxpr) == [((NARROW, NARROW), WIDE)]
    np.testing.assert_allclose(found, experts(kernel, tokens), rtol=0.1, atol=0.1)


def test_a_stack_is_cast_slice_by_slice() -> None:
    def layers(stack: Any, x: Any) -> Any:
        return jax.lax.scan(lambda c, w: (jnp.sin(c @ w), None), x, stack)[0]

    result = MixedPrecision().apply(program_of(layers, jnp.ones((5, 4, 4)), X))
    (scan,) = result.jaxpr.jaxpr.eqns
    assert scan.primitive.name == "scan"
    body = ir.closed(scan.params["jaxpr"])[0]
    casts = [e for e in body.eqns if e.primitive.name == "convert_element_type"]
    assert [ir.spec(e.outvars[0]).shape for e in casts] == [(2, 4), (4, 4)]


def test_what_was_just_widened_is_not_rounded_again() -> None:
    def widened(w: Any, x: Any) -> Any:
        return x.astype(jnp.float32) @ w

    result = MixedPrecision().apply(program_of(widened, W, X.astype(NARROW)))
    (product,) = [e for e in result.jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert product.invars[0] is result.jaxpr.jaxpr.invars[1]


def test_products_that_ask_for_a_precision_stay() -> None:
    program = model_program("mixtral_tiny", max_seq_len=16, num_layers=1)
    result = MixedPrecision().apply(program)
    wide = [p for p in products(result.jaxpr) if p == ((WIDE, WIDE), WIDE)]
    assert len(wide) == 1  # the router
    assert "1 left alone" in result.notes[-1]


def test_custom_derivatives_keep_their_own_types() -> None:
    @jax.custom_jvp
    def own(x: Any) -> Any:
        return x @ x

    own.defjvp(lambda primals, tangents: (own(primals[0]), 2 * tangents[0] @ primals[0]))

    def function(w: Any, x: Any) -> Any:
        return jnp.sum(jax.nn.gelu(x @ own(w)))

    result = MixedPrecision().apply(program_of(function, W, X))
    assert sorted(products(result.jaxpr)) == [((NARROW, NARROW), WIDE), ((WIDE, WIDE), WIDE)]
    gradient, plain = (jax.grad(f)(W, X) for f in (as_loss(result), function))
    np.testing.assert_allclose(gradient, plain, rtol=3e-2)


def as_loss(program: Program) -> Any:
    return lambda *inputs: ir.as_function(program.jaxpr)(*inputs)[0]


@pytest.mark.parametrize("kind", ["jit", "checkpoint", "cond", "while", "scan"])
def test_nested_programs_are_rewritten_and_differentiable(kind: str) -> None:
    def function(w: Any, x: Any) -> Any:
        once = lambda w, x: jnp.tanh(x @ w)  # noqa: E731
        if kind == "jit":
            y = jax.jit(once)(w, x)
        elif kind == "checkpoint":
            y = jax.checkpoint(once)(w, x)
        elif kind == "cond":
            y = jax.lax.cond(x[0, 0] < 2, once, lambda w, x: x, w, x)
        elif kind == "scan":
            y = jax.lax.scan(lambda c, _: (once(w, c), None), x, None, length=3)[0]
        else:
            y = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, once(w, s[1])), (0, x))[
                1
            ]
        return jnp.sum(y**2)

    program = program_of(function, W, X)
    for policy in (MixedPrecision(), MixedPrecision(gradients="float16")):
        result = policy.apply(program)
        assert set(products(result.jaxpr)) == {((NARROW, NARROW), WIDE)}
        np.testing.assert_allclose(as_loss(result)(W, X), function(W, X), rtol=2e-2)
        if kind != "while":
            found = jax.grad(as_loss(result))(W, X)
            assert found.dtype == W.dtype
            np.testing.assert_allclose(found, jax.grad(function)(W, X), rtol=5e-2, atol=1e-2)


def test_accumulating_narrowly_makes_the_backward_pass_narrow() -> None:
    program = model_program("llama3_tiny", max_seq_len=16, num_layers=1)
    for accumulate, operands in ((WIDE, {WIDE, NARROW}), (NARROW, {NARROW})):
        result = MixedPrecision(accumulate=accumulate).apply(program)
        assert [x.dtype for x in result.jaxpr.out_avals] == [jnp.float32]
        found = products(jax.make_jaxpr(gradient_of(result))(*inputs_of(program)).jaxpr)
        assert {dtype for both, _ in found for dtype in both} == operands


def is_rounded(x: Any) -> bool:
    return bool((x.astype(jnp.bfloat16).astype(x.dtype) == x).all())


def test_gradients_are_rounded_where_asked_and_keep_their_parameters_type() -> None:
    def function(stack: Any, bias: Any, whole: Any, x: Any) -> Any:
        def layer(c: Any, parts: Any) -> Any:
            w, b = parts
            return jnp.tanh(c @ w + b[None] * whole[None]), None

        return jnp.sum(jax.lax.scan(layer, x + whole[None], (stack, bias))[0] ** 2)

    rng = np.random.default_rng(0)
    arguments = [
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((3, 4, 4), (3, 4), (4,), (2, 4))
    ]
    program = program_of(function, *arguments, parameters=3)
    plain = MixedPrecision(compute=WIDE).apply(program)
    rounded = MixedPrecision(compute=WIDE, gradients=NARROW).apply(program)
    expected, found = (
        jax.grad(as_loss(p), argnums=(0, 1, 2))(*arguments) for p in (plain, rounded)
    )
    for number, (one, two) in enumerate(zip(expected, found, strict=True)):
        assert two.dtype == jnp.float32
        np.testing.assert_allclose(two, one, rtol=2e-2, atol=2e-2)
        assert not is_rounded(one)
        # `whole` has two gradients, which are rounded apart and then added up.
        assert is_rounded(two) is (number < 2)
    # The weights' gradients are of that type as they leave a narrow product: no identity for them.
    narrow = MixedPrecision(gradients=NARROW).apply(program)
    assert "gradients rounded to bfloat16 at 3 places" in narrow.notes[-1]
    assert "gradients rounded to bfloat16 at 4 places" in rounded.notes[-1]


def test_layers_are_found_after_the_policy() -> None:
    program = model_program("llama3_tiny", max_seq_len=16, num_layers=4)
    result, reports = run_passes(program, [MixedPrecision(), StackLayers()])
    assert "4 layers" in reports[1].notes[0]
    assert set(products(result.jaxpr)) == {((NARROW, NARROW), WIDE)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compute": "int8"}, "compute='int8' is not a floating type"),
        ({"accumulate": "flaot32"}, "accumulate='flaot32' is not a floating type"),
        ({"gradients": "bool"}, "gradients='bool' is not a floating type"),
        ({"compute": "float32", "accumulate": "bfloat16"}, "is narrower than compute='float32'"),
    ],
)
def test_refused_policies_say_why(fields: dict[str, str], message: str) -> None:
    program = program_of(lambda w, x: x @ w, W, X)
    with pytest.raises(PassError, match=message):
        MixedPrecision(**fields).apply(program)
