"""The programs of `benchmarks.malloc`: quick to compile, with more values than VMEM holds.

Each is lowered for one chip. Where a registered model is meant its published widths are kept and
its depth or batch is cut.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import autoshard
import models
from autoshard import aot

CHIPS = ("v5e:1x1", "v6e:1x1")


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of the benchmark.

    Attributes:
      name: in the table.
      lower: makes it for a topology of one chip.
    """

    name: str
    lower: Callable[[str], jax.stages.Lowered]


def lower_function(
    function: Callable[..., Any], *shapes: Any
) -> Callable[[str], jax.stages.Lowered]:
    """How to lower a plain function of bfloat16 arrays of some shapes for one chip."""

    def lower(topology: str) -> jax.stages.Lowered:
        device = aot.devices(topology)[0]
        mesh = Mesh([device], ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        everywhere = NamedSharding(mesh, P())
        arguments = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=everywhere),
            shapes,
            is_leaf=lambda shape: all(isinstance(size, int) for size in shape),
        )
        return jax.jit(function).lower(*arguments)

    return lower


def skip_mlp(x: jax.Array, weights: tuple[jax.Array, ...]) -> jax.Array:
    """Layers that add the output of three layers before; the sum of all outputs."""
    outputs = [x, x, x]
    total = jnp.zeros_like(x)
    for weight in weights:
        outputs.append(jax.nn.relu(outputs[-1] @ weight) + outputs[-3])
        total = total + outputs[-1]
    return total


def strassen(a: jax.Array, b: jax.Array, levels: int = 2) -> jax.Array:
    """Strassen's product of square matrices ("Gaussian elimination is not optimal")."""
    if not levels:
        return a @ b
    (a11, a12), (a21, a22) = (jnp.split(rows, 2, axis=1) for rows in jnp.split(a, 2))
    (b11, b12), (b21, b22) = (jnp.split(rows, 2, axis=1) for rows in jnp.split(b, 2))
    m1 = strassen(a11 + a22, b11 + b22, levels - 1)
    m2 = strassen(a21 + a22, b11, levels - 1)
    m3 = strassen(a11, b12 - b22, levels - 1)
    m4 = strassen(a22, b21 - b11, levels - 1)
    m5 = strassen(a11 + a12, b22, levels - 1)
    m6 = strassen(a21 - a11, b11 + b12, levels - 1)
    m7 = strassen(a12 - a22, b21 + b22, levels - 1)
    top = jnp.concatenate([m1 + m4 - m5 + m7, m3 + m5], axis=1)
    return jnp.concatenate([top, jnp.concatenate([m2 + m4, m1 - m2 + m3 + m6], axis=1)])


def train_step(model: str, batch: int, seq: int | None, **overrides: Any) -> Callable[[str], Any]:
    """How to lower a model's train step for one chip."""

    def lower(topology: str) -> jax.stages.Lowered:
        spec = models.get(model, dtype="bfloat16", **overrides)
        compiled = autoshard.compile(
            spec.build(), topology, batch=spec.example_batch(batch, seq), rules="data",
            dtype="bfloat16",
        )  # fmt: skip
        return compiled.lower()

    return lower


def decode_step(model: str, batch: int, capacity: int, **overrides: Any) -> Callable[[str], Any]:
    """How to lower one token's decoding with a cache for one chip."""

    def lower(topology: str) -> jax.stages.Lowered:
        spec = models.get(model, dtype="bfloat16", **overrides)
        shape = autoshard.InferenceShape(
            batch_size=batch, prompt_len=capacity // 2, capacity=capacity
        )
        compiled: Any = autoshard.compile(
            spec.build(), topology, task="decode", batch=shape, rules="data"
        )
        return compiled.lower()

    return lower


_LLAMA = {"num_layers": 1, "num_heads": 16, "num_kv_heads": 16, "vocab_size": 4096, "remat": "none"}
_NARROW = {**_LLAMA, "d_model": 1024, "d_ff": 2816, "num_heads": 8, "num_kv_heads": 8}
_WIDE = {**_LLAMA, "d_model": 2048, "d_ff": 5632}
_EXPERTS = {**_NARROW, "d_ff": 2048}
_CACHE = {**_WIDE, "num_layers": 2, "scan_layers": False}

PROGRAMS = (
    Program("skip_mlp", lower_function(skip_mlp, (4096, 3072), ((3072, 3072),) * 12)),
    Program("strassen_4096", lower_function(strassen, (4096, 4096), (4096, 4096))),
    Program("llama_1024", train_step("llama3_8b", 4, 512, scan_layers=False, **_NARROW)),
    Program("llama_2048", train_step("llama3_8b", 4, 512, scan_layers=False, **_WIDE)),
    Program(
        "llama_1024_scanned",
        train_step("llama3_8b", 4, 512, scan_layers=True, **{**_NARROW, "num_layers": 4}),
    ),
    Program(
        "gpt2_small_scanned",
        train_step("gpt2_small", 4, 512, num_layers=4, scan_layers=True, dropout_rate=0.0),
    ),
    Program("llama_decode", decode_step("llama3_8b", 8, 2048, **_CACHE)),
    Program("mixer_b16", train_step("mixer_b16", 16, None, num_layers=1)),
    Program("vit_l16", train_step("vit_l16", 16, None, num_layers=1)),
    Program("resnet50_stage", train_step("resnet50", 8, None, stage_sizes=(3,))),
    Program("expert_layer", train_step("mixtral_8x7b", 2, 512, scan_layers=False, **_EXPERTS)),
)


def get(name: str) -> Program:
    """A program by name.

    Raises:
      KeyError: there is none.
    """
    return {program.name: program for program in PROGRAMS}[name]
