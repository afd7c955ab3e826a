"""The TPU compiler's memory and schedule of pipelines: what is kept is bounded, and stages wait as
long as the closed forms say.
"""

import functools
import importlib.util
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from autoshard.losses import default_loss
from benchmarks.pipeline import MICROBATCHES, Compiled, compiled, imbalance, program_of, waits
from passes.pipeline import Pipeline
from passes.pipelining.closed_forms import ScheduleName
from passes.precision import MixedPrecision
from passes.program import Program
from tests.passes import programs

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]

STAGES = 4
NAMES: tuple[ScheduleName, ...] = ("gpipe", "1f1b", "interleaved", "zero_bubble")


@functools.cache
def made(name: ScheduleName) -> Compiled:
    return compiled(program_of(2048), Pipeline(schedule=name, microbatches=MICROBATCHES))


def test_temporaries() -> None:
    sizes = {name: made(name).temporaries_bytes for name in NAMES}
    assert sizes["1f1b"] <= 0.75 * sizes["gpipe"], sizes
    assert sizes["interleaved"] <= sizes["gpipe"], sizes
    assert sizes["zero_bubble"] < sizes["1f1b"], sizes


@pytest.mark.parametrize("name", NAMES)
def test_stages_wait_as_long_as_the_closed_form_says(name: ScheduleName) -> None:
    found = waits(made(name).timeline, Pipeline(schedule=name, microbatches=MICROBATCHES), STAGES)
    # That of zero_bubble needs the times of the halves of the backward pass.
    closed = found.closed if name == "zero_bubble" else found.plain
    assert found.simulated == pytest.approx(closed, rel=0.05)


def test_collectives() -> None:
    """Activations go from stage to stage; no stage sees another's weights."""
    text = made("1f1b").text
    assert re.search(r"collective-permute(-start)?\(", text)
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\].*? all-gather(?:-start)?\(", text)
    assert not [dims for dims in gathered if "2816" in dims.split(",")]
    reductions = [
        c
        for c in made("1f1b").timeline.collectives
        if c.repeats > 1 and c.kind in ("all-reduce", "reduce-scatter", "all-gather")
    ]
    # What stages share in a tick; gradients are summed over the two ways of data after the ticks.
    assert reductions and {c.group_size for c in reductions} == {STAGES}


def plain_layers(vocabulary: int, rows: int, length: int) -> Program:
    """An embedding, MLP layers and a vocabulary layer: less for the compiler to do than a Llama."""
    layers, width, hidden = 24, 1024, 4096

    def array(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    @jax.checkpoint
    def layer(x: Any, w: Any) -> tuple[Any, None]:
        y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        return x + jax.nn.gelu(y @ w["up"]) @ w["down"], None

    def loss(params: Any, batch: Any) -> Any:
        x = jnp.take(params["embed"]["embedding"], batch["tokens"], axis=0, mode="clip")
        x, _ = jax.lax.scan(layer, x, params["layers"])
        return default_loss(x @ params["lm_head"]["kernel"], batch)

    params = {
        "embed": {"embedding": array(vocabulary, width)},
        "layers": {"up": array(layers, width, hidden), "down": array(layers, hidden, width)},
        "lm_head": {"kernel": array(width, vocabulary)},
    }
    tokens = jax.ShapeDtypeStruct((rows * MICROBATCHES, length), jnp.int32)
    return MixedPrecision().apply(programs.of_function(loss, params, {"tokens": tokens}))


def test_a_vocabulary_of_256k_words_is_balanced() -> None:
    program = plain_layers(256 * 1024, rows=4, length=512)
    found = []
    for split in (True, False):
        one = Pipeline(microbatches=MICROBATCHES, split_vocabulary=split)
        found.append(waits(compiled(program, one).timeline, one, STAGES))
    assert found[0].costs.always < 0.5 * found[1].costs.always
    assert imbalance(found[0], found[1], STAGES) < 0.05
