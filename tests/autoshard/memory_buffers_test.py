"""What a step holds in memory, on small programs whose answer is known."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from autoshard.memory_buffers import Buffer, FusionHabits, Kind, find_buffers, fusion_habits_of
from autoshard.named_dims import Analysis, analyse
from autoshard.program_flow import program_flow
from autoshard.topology import Topology
from autoshard.trace import gradient_program, trace_function
from passes.program import Role

LAYERS, ROWS, WIDTH = 6, 32, 16


def spec(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def analysed(function: Callable[..., Any], *arguments: Any, gradient: bool = True) -> Analysis:
    """Of a function of parameters, and last the batch."""
    roles = (Role.PARAMETER,) * (len(arguments) - 1) + (Role.BATCH,)
    program, _ = trace_function(function, arguments, roles)
    return analyse(*gradient_program(program)) if gradient else analyse(program)


def buffers(analysis: Analysis) -> tuple[Buffer, ...]:
    return find_buffers(analysis, program_flow(analysis))


def shapes(analysis: Analysis, kind: Kind = Kind.ACTIVATION, rank: int = 2) -> list[Any]:
    """Shapes of the buffers of at least some rank."""
    found = [analysis.graph.shape(b.value) for b in buffers(analysis) if b.kind is kind]
    return sorted(shape for shape in found if len(shape) >= rank)


def saved(analysis: Analysis) -> list[Any]:
    """Shapes of the activations of rank 2 that the forward pass leaves to the backward pass."""
    flow = program_flow(analysis)
    return [
        analysis.graph.shape(b.value)
        for b in find_buffers(analysis, flow)
        if b.kind is Kind.ACTIVATION and flow.forward[b.begin] and not flow.forward[b.end]
        if len(analysis.graph.shape(b.value)) == 2
    ]


def layer(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w) * jnp.exp(x) + jnp.sin(x)


def scanned(body: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (body(x, w), None), x, weights)[0].sum()

    return loss


def test_a_rematerialised_loop_saves_the_inputs_of_its_layers() -> None:
    again = jax.checkpoint(layer, prevent_cse=False)
    analysis = analysed(scanned(again), spec(LAYERS, WIDTH, WIDTH), spec(ROWS, WIDTH))
    assert shapes(analysis, rank=3) == [(LAYERS, ROWS, WIDTH)]
    assert shapes(analysis, Kind.GRADIENT_STACK) == [(LAYERS, WIDTH, WIDTH)]


def test_a_loop_saves_what_its_backward_pass_reads() -> None:
    analysis = analysed(scanned(layer), spec(LAYERS, WIDTH, WIDTH), spec(ROWS, WIDTH))
    assert len(shapes(analysis, rank=3)) > 2
    assert set(shapes(analysis, rank=3)) == {(LAYERS, ROWS, WIDTH)}


def test_stacks_are_held_from_the_beginning_of_their_loop_to_the_end_of_the_other() -> None:
    again = jax.checkpoint(layer, prevent_cse=False)
    analysis = analysed(scanned(again), spec(LAYERS, WIDTH, WIDTH), spec(ROWS, WIDTH))
    forward, backward = sorted(analysis.graph.loops, key=lambda loop: loop.begin)
    held = {b.kind: b for b in buffers(analysis) if analysis.graph.shape(b.value)[:1] == (LAYERS,)}
    inputs, gradients = held[Kind.ACTIVATION], held[Kind.GRADIENT_STACK]
    assert (inputs.begin, inputs.end) == (forward.begin, backward.end - 1)
    assert gradients.begin == backward.begin
    assert gradients.end >= backward.end - 1


def test_elementwise_operations_are_made_again_from_products() -> None:
    """Of x @ v and all that is made of it, the backward pass is left only the product."""

    def loss(v: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
        hidden = x @ v
        return (jnp.tanh(hidden) * jax.nn.sigmoid(hidden) @ w).sum()

    analysis = analysed(loss, spec(8, 32), spec(32, 4), spec(ROWS, 8))
    assert saved(analysis) == [(ROWS, 32)]
    # Both products that read it have it made for them.
    operands = [b for b in buffers(analysis) if b.begin == b.end]
    assert [analysis.graph.shape(b.value) for b in operands].count((ROWS, 32)) >= 2


def test_what_alone_reads_a_product_is_done_before_it_is_written() -> None:
    def loss(w: jax.Array, b: jax.Array, x: jax.Array) -> jax.Array:
        return (x @ w).astype(jnp.bfloat16) + b

    bias = spec(1, 32, dtype="bfloat16")
    analysis = analysed(loss, spec(8, 32), bias, spec(ROWS, 8), gradient=False)
    (only,) = [b for b in buffers(analysis) if b.kind is Kind.ACTIVATION]
    assert only.value == analysis.graph.outputs[0]


def test_a_rectifier_between_products_is_written_beside_its_input() -> None:
    def loss(v: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
        return (jax.nn.relu(x @ v) @ w).sum()

    analysis = analysed(loss, spec(8, 32), spec(32, 4), spec(ROWS, 8))
    assert saved(analysis) == [(ROWS, 32)] * 2


def test_a_residual_sum_is_written_once() -> None:
    """Else the last block would be made of the products of all blocks before it."""

    def loss(ws: Any, x: jax.Array) -> jax.Array:
        for _ in range(LAYERS):
            x = x + jnp.max(x @ ws, axis=1, keepdims=True) * (x @ ws)
        return (x @ ws).sum()

    analysis = analysed(loss, spec(WIDTH, WIDTH), spec(ROWS, WIDTH), gradient=False)
    per_block = 2  # the product and the sum
    wide = [s for s in shapes(analysis) if s == (ROWS, WIDTH)]
    assert per_block * LAYERS <= len(wide) <= per_block * LAYERS + 1


def test_masks_that_depend_on_no_input_are_free() -> None:
    def body(x: jax.Array, w: jax.Array) -> jax.Array:
        positions = jnp.arange(ROWS)
        scores = jnp.where(positions[:, None] >= positions[None], x @ x.T, -1e9)
        return jax.nn.softmax(scores) @ x @ w

    again = jax.checkpoint(body, prevent_cse=False)
    analysis = analysed(scanned(again), spec(LAYERS, WIDTH, WIDTH), spec(ROWS, WIDTH))
    kinds = {analysis.graph.values[b.value].dtype for b in buffers(analysis)}
    assert "bool" not in kinds


def test_parameters_cast_before_a_loop_are_held_through_both_loops() -> None:
    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        return scanned(layer)(weights.astype(jnp.bfloat16), x.astype(jnp.bfloat16))

    analysis = analysed(loss, spec(LAYERS, WIDTH, WIDTH), spec(ROWS, WIDTH))
    (cast,) = [b for b in buffers(analysis) if b.kind is Kind.PARAMETER]
    assert analysis.graph.values[cast.value].dtype == "bfloat16"
    assert cast.position == 0
    assert cast.end == max(loop.end for loop in analysis.graph.loops) - 1


def test_an_operand_is_written_over_what_nothing_else_reads() -> None:
    def once(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.exp(x @ w) @ w @ x.T

    def twice(w: jax.Array, x: jax.Array) -> jax.Array:
        product = x @ w
        return jnp.exp(product) @ w @ product.T

    counts = [
        len(shapes(analysed(f, spec(WIDTH, WIDTH), spec(ROWS, WIDTH), gradient=False)))
        for f in (once, twice)
    ]
    assert counts == [3, 4]


def test_parameters_are_gathered_while_the_product_before_them_runs() -> None:
    def loss(v: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ v @ w

    analysis = analysed(loss, spec(8, 32), spec(32, 4), spec(ROWS, 8), gradient=False)
    gathered = {b.position: b for b in buffers(analysis) if b.kind is Kind.GATHERED}
    first, second = (
        index for index, op in enumerate(analysis.graph.ops) if op.primitive == "dot_general"
    )
    assert (gathered[0].begin, gathered[0].end) == (first, first)
    assert (gathered[1].begin, gathered[1].end) == (first, second)


def test_a_compiler_that_makes_nothing_again_writes_what_is_shared() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        product = x @ w
        hidden = jnp.tanh(product)
        return jnp.sin(hidden).sum() * jnp.cos(hidden).max() + product.min()

    analysis = analysed(loss, spec(8, 32), spec(ROWS, 8), gradient=False)
    flow = program_flow(analysis)
    again, written = (
        [
            b
            for b in find_buffers(analysis, flow, FusionHabits(makes_again))
            if b.kind is Kind.ACTIVATION
        ]
        for makes_again in (True, False)
    )
    assert sum(analysis.graph.shape(b.value) == (ROWS, 32) for b in again) == 1
    assert sum(analysis.graph.shape(b.value) == (ROWS, 32) for b in written) == 2


def test_operands_are_written_once_for_kernels_that_read_memory() -> None:
    """The weights of a softmax, say: on TPU made inside the products, on GPU held between them."""

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        product = x @ w
        hidden = jnp.exp(product)
        return (hidden @ w @ hidden.T).sum() + product.max()

    analysis = analysed(loss, spec(8, 8), spec(ROWS, 8), gradient=False)
    ops, flow = analysis.graph.ops, program_flow(analysis)
    made = next(index for index, op in enumerate(ops) if op.primitive == "exp")
    last = max(index for index, op in enumerate(ops) if op.primitive == "dot_general")
    hidden = ops[made].outputs[0]
    on_gpu, on_tpu = (
        [
            (b.begin, b.end)
            for b in find_buffers(analysis, flow, fusion_habits_of(platform))
            if b.value == hidden
        ]
        for platform in ("gpu", "tpu")
    )
    assert on_gpu == [(made, last)]
    assert on_tpu == [(made + 1, made + 1)]  # its transpose is made from the product, too


@pytest.mark.parametrize(("platform", "dtype"), [("tpu", "bfloat16"), ("cpu", "float32")])
def test_a_product_that_is_only_widened_is_held_as_it_was_made(platform: str, dtype: str) -> None:
    """The gradient of a softmax is computed in float32 from a product in bfloat16."""

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        weights = (x @ w).astype("float32")
        return ((weights - weights.sum(-1, keepdims=True)).astype("bfloat16") @ w.T).sum()

    specs = spec(8, 32, dtype="bfloat16"), spec(ROWS, 8, dtype="bfloat16")
    analysis = analysed(loss, *specs, gradient=False)
    found = find_buffers(analysis, program_flow(analysis), fusion_habits_of(platform))
    assert next(b.dtype for b in found if analysis.graph.shape(b.value) == (ROWS, 32)) == dtype


def test_every_topology_has_the_habits_of_its_compiler() -> None:
    found = [fusion_habits_of(Topology.parse(t).platform) for t in ("v5e:2x2", "h100:8x1", "cpu:8")]
    assert len(set(found)) == 3 and not found[1].makes_operands
    with pytest.raises(KeyError):
        fusion_habits_of("cuda")


def test_convolutions_on_gpus_read_memory_and_sums_go_into_what_they_read() -> None:
    """A residual block: the sum of its branches is made again from them, its positive part held."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def loss(a: jax.Array, b: jax.Array, c: jax.Array, x: jax.Array) -> jax.Array:
        first = jax.nn.relu(convolve(x, a))
        second = convolve(first, b)
        block = jax.nn.relu(second - second.mean() + first)
        return jnp.square(convolve(block, c)).sum()

    kernel = spec(3, 3, 8, 8)
    analysis = analysed(loss, kernel, kernel, kernel, spec(ROWS, 16, 16, 8))
    flow, ops = program_flow(analysis), analysis.graph.ops
    made = {
        value: op.primitive for op in ops for value in op.outputs if op.primitive in ("add", "max")
    }

    def held(platform: str) -> list[str]:
        buffers = find_buffers(analysis, flow, fusion_habits_of(platform))
        return sorted(made[b.value] for b in buffers if b.value in made)

    assert held("gpu") == ["max", "max"]
    assert "add" in held("tpu")


@pytest.mark.parametrize(("platform", "held"), [("tpu", False), ("gpu", True)])
def test_gradients_before_the_backward_loop_are_put_off_on_gpus(platform: str, held: bool) -> None:
    """The head's gradient is made of the loop's result and the cotangent: both wait, or neither."""
    again = jax.checkpoint(layer, prevent_cse=False)

    def loss(weights: jax.Array, head: jax.Array, x: jax.Array) -> jax.Array:
        x = jax.lax.scan(lambda x, w: (again(x, w), None), x, weights)[0]
        return jnp.square(x @ head).sum()

    arguments = (spec(LAYERS, WIDTH, WIDTH), spec(WIDTH, 64), spec(ROWS, WIDTH))
    analysis = analysed(loss, *arguments)
    backward = max(analysis.graph.loops, key=lambda loop: loop.begin)
    found = find_buffers(analysis, program_flow(analysis), fusion_habits_of(platform))
    logits = [b for b in found if analysis.graph.shape(b.value) == (ROWS, 64)]
    assert any(b.end >= backward.end for b in logits) == held
    gradient = next(b for b in found if b.kind is Kind.GRADIENT and b.position == 1)
    assert (gradient.begin >= backward.end) == held


def test_dead_code_holds_nothing() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        jnp.sort(x @ x.T)
        return (x @ w).sum()

    analysis = analysed(loss, spec(8, 4), spec(ROWS, 8), gradient=False)
    assert (ROWS, ROWS) not in shapes(analysis)


@pytest.mark.parametrize("rounds", [1, 3])
def test_loops_inside_loops(rounds: int) -> None:
    def inner(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (layer(x, w), None), x, None, length=rounds)[0]

    again = jax.checkpoint(inner, prevent_cse=False)
    analysis = analysed(scanned(again), spec(LAYERS, WIDTH, WIDTH), spec(ROWS, WIDTH))
    outer = [s for s in shapes(analysis, rank=3) if s[0] == LAYERS]
    assert outer == [(LAYERS, ROWS, WIDTH)]
    for buffer in buffers(analysis):
        assert 0 <= buffer.begin <= buffer.end < len(analysis.graph.ops)
