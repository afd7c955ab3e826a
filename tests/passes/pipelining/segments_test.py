"""Programs are cut at their loop over layers, and put together again they are what they were."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from passes import ir
from passes.batch_split import split_batch
from passes.compare import random_inputs
from passes.errors import PassError
from passes.pipelining.segments import Segments, Source, cut_segments
from passes.pipelining.vocabulary import find_vocabulary
from passes.program import Program
from tests.passes import programs

ROWS, WIDTH, LAYERS = 4, 3, 5


def segments_of(loss: Any, **params: tuple[int, ...]) -> tuple[Program, Segments]:
    specs = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in params.items()}
    batch = {"x": jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)}
    program = programs.of_function(loss, specs, batch)
    return program, cut_segments(program, split_batch(program, 2))


def put_together(program: Program, segments: Segments) -> tuple[Any, Any]:
    """(outputs of the program, of its segments layer by layer), on random data."""
    drawn = random_inputs(program)
    inputs = [drawn[f"{leaf.role.value}/{leaf.path}"] for leaf in program.inputs]
    split = segments.split
    whole = [x for x, is_cut in zip(inputs, split.cut, strict=True) if not is_cut]
    values = ir.as_function(segments.shared)(*whole, *ir.as_function(split.once)(*inputs))
    count = len(segments.shared_specs)
    shared, stacks = values[:count], values[count:]
    totals = 0.0
    for part in range(split.count):
        rows = [split.parts(x)[part] for x, c in zip(inputs, split.cut, strict=True) if c]
        given = [jnp.int32(part), *rows]
        carried = segments.enter(shared, given)
        constants = [shared[i] for i in segments.shared_constants]
        for layer in range(segments.layers):
            slices = [stack[layer] for stack in stacks]
            carried = segments.layer(constants, carried, slices, jnp.int32(layer))
        totals += segments.leave(shared, given, carried)[0]
    return ir.as_function(program.jaxpr)(*inputs)[0], totals


def chain(params: Any, x: Any) -> Any:
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["w"])[0]


def plain(params: Any, batch: Any) -> Any:
    return jnp.mean(chain(params, batch["x"] @ params["first"]) @ params["last"])


def residual_around(params: Any, batch: Any) -> Any:
    """The epilogue reads what the prologue made of parameters."""
    entered = batch["x"] @ params["first"]
    return jnp.mean((chain(params, entered) + entered) @ params["last"])


def masked(params: Any, batch: Any) -> Any:
    """Layers read the microbatch."""
    mask = batch["x"] > 0
    body = lambda c, w: (jnp.where(mask, jnp.tanh(c @ w), c), None)  # noqa: E731
    entered = batch["x"] @ params["first"]
    return jnp.mean(jax.lax.scan(body, entered, params["w"])[0] @ params["last"])


def emitting(params: Any, batch: Any) -> Any:
    """Layers emit something that the loss reads."""
    body = lambda c, w: (jnp.tanh(c @ w), jnp.sum(c**2))  # noqa: E731
    left, norms = jax.lax.scan(body, batch["x"] @ params["first"], params["w"])
    return jnp.mean(left @ params["last"]) + 0.1 * jnp.sum(norms)


SHAPES = {"first": (WIDTH, WIDTH), "w": (LAYERS, WIDTH, WIDTH), "last": (WIDTH, 1)}


@pytest.mark.parametrize("loss", [plain, residual_around, masked, emitting])
def test_segments_make_the_program(loss: Any) -> None:
    program, segments = segments_of(loss, **SHAPES)
    assert segments.layers == LAYERS and segments.stack_active == (True,)
    np.testing.assert_allclose(*put_together(program, segments), rtol=1e-5)


def test_what_is_carried() -> None:
    _, segments = segments_of(plain, **SHAPES)
    assert [x.shape for x in segments.carried] == [(ROWS // 2, WIDTH)]
    _, segments = segments_of(residual_around, **SHAPES)
    assert segments.carried_active == (True, True)
    _, segments = segments_of(masked, **SHAPES)
    assert segments.carried_active == (True, False)
    assert [x.source for x in segments.constants] == [Source.CARRIED]
    _, segments = segments_of(emitting, **SHAPES)
    assert segments.emitted == (1,) and segments.carried[1].shape == (LAYERS,)


def test_the_longest_loop_is_cut() -> None:
    def loss(params: Any, batch: Any) -> Any:
        x = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), batch["x"], params["short"])[0]
        return jnp.mean(chain(params, x) @ params["last"])

    program, segments = segments_of(loss, short=(2, WIDTH, WIDTH), **SHAPES)
    assert segments.layers == LAYERS and segments.others == 1
    np.testing.assert_allclose(*put_together(program, segments), rtol=1e-5)


def unrolled(params: Any, batch: Any) -> Any:
    return jnp.mean(batch["x"] @ params["w"][0] @ params["w"][1])


def of_rows(params: Any, batch: Any) -> Any:
    left = jax.lax.scan(lambda c, _: (jnp.tanh(c @ params["w"][0]), None), batch["x"], length=3)[0]
    return jnp.mean(left)


def reverse(params: Any, batch: Any) -> Any:
    body = lambda c, w: (jnp.tanh(c @ w), None)  # noqa: E731
    return jnp.mean(jax.lax.scan(body, batch["x"], params["w"], reverse=True)[0])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (unrolled, "it has no loop at all.*run stack_layers before"),
        (of_rows, "loop 1: it scans over no parameter"),
        (reverse, "loop 1: it runs from the last layer to the first"),
    ],
)
def test_what_cannot_be_cut(loss: Any, message: str) -> None:
    with pytest.raises(PassError, match=message):
        segments_of(loss, w=(LAYERS, WIDTH, WIDTH))


def lookup(params: Any, batch: Any) -> Any:
    """Tied: the table is looked up by the prologue and multiplied with by the epilogue."""
    table = params["table"]
    tokens = (batch["x"][:, 0] > 0).astype(jnp.int32)
    scores = chain(params, table[tokens]) @ table.T
    return jnp.mean(jax.nn.logsumexp(scores, axis=-1))


def test_vocabulary_dimensions() -> None:
    _, segments = segments_of(lookup, w=(LAYERS, WIDTH, WIDTH), table=(8, WIDTH))
    places = find_vocabulary(segments, 4)
    shapes = [(segments.shared_specs[i].shape, dim) for i, dim in places]
    assert shapes == [((8, WIDTH), 0), ((WIDTH, 8), 1)]  # transposed once, for all microbatches
    assert find_vocabulary(segments, 3) == ()  # 8 words do not divide
    _, segments = segments_of(plain, **{**SHAPES, "last": (WIDTH, 8)})
    places = find_vocabulary(segments, 4)
    assert [(segments.shared_specs[i].shape, dim) for i, dim in places] == [((WIDTH, 8), 1)]
