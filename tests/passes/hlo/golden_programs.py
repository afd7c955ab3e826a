"""The programs behind the golden files: a small train step for each of the three compilers.

Three scanned layers of attention and MLP, sharded over a data axis of 2 and a model axis of 4;
weights are sharded over both where `zero` is set, so that gathers and scatters appear.
"""

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autoshard import aot

FOLDER = Path(__file__).parent / "golden"


@dataclasses.dataclass(frozen=True)
class GoldenProgram:
    """Settings of one golden file.

    Attributes:
      name: of its files.
      topology: of `aot.devices`; also the machine model's.
      zero: whether weights are sharded over the data axis, too.
      layers, batch, seq_len, embed, heads, ffn: sizes.
    """

    name: str
    topology: str
    zero: bool
    layers: int = 3
    batch: int = 16
    seq_len: int = 256
    embed: int = 512
    heads: int = 8
    ffn: int = 1024

    @property
    def text_path(self) -> Path:
        """The HLO text, compressed."""
        return FOLDER / f"{self.name}.hlo.gz"

    @property
    def found_path(self) -> Path:
        """What the reader finds in it."""
        return FOLDER / f"{self.name}.json"

    @property
    def flops(self) -> int:
        """Of a step on one of 2 x 4 devices; the backward costs twice the forward."""
        tokens = self.batch // 2 * self.seq_len
        weights = 4 * self.embed**2 + 2 * self.embed * self.ffn
        scores = 2 * tokens * self.seq_len * self.embed
        return 3 * self.layers * 2 * (tokens * weights + scores) // 4

    def read(self) -> str:
        """The HLO text."""
        return gzip.decompress(self.text_path.read_bytes()).decode()


PROGRAMS = (
    GoldenProgram("tpu", "v5e:2x4", zero=True),
    GoldenProgram("tpu_slices", "2x v5e:2x2", zero=False),
    GoldenProgram("gpu", "h100:8", zero=True),
    GoldenProgram("cpu", "cpu:8", zero=True),
)


def compile_text(program: GoldenProgram) -> str:
    """The scheduled HLO of one step."""
    devices = np.array(aot.devices(program.topology)).reshape(2, 4)
    mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    weights = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=_sharding(mesh, program, spec))
        for name, (shape, spec) in _weights(program).items()
    }
    shape = (program.batch, program.seq_len, program.embed)
    x = jax.ShapeDtypeStruct(
        shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("data"))
    )

    def step(weights: Any, x: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(_loss)(weights, x, program.heads)
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient), value

    shardings = {name: weight.sharding for name, weight in weights.items()}
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    return str(jitted.lower(weights, x).compile().as_text())


def _weights(program: GoldenProgram) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]]:
    layers, embed, ffn = program.layers, program.embed, program.ffn
    return {
        "qkv": ((3, layers, embed, embed), (None, None, "data", "model")),
        "out": ((layers, embed, embed), (None, "model", "data")),
        "up": ((layers, embed, ffn), (None, "data", "model")),
        "down": ((layers, ffn, embed), (None, "model", "data")),
    }


def _sharding(mesh: Mesh, program: GoldenProgram, spec: tuple[str | None, ...]) -> NamedSharding:
    axes = spec if program.zero else tuple(None if axis == "data" else axis for axis in spec)
    return NamedSharding(mesh, PartitionSpec(*axes))


def _loss(weights: Any, x: jax.Array, heads: int) -> jax.Array:
    def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
        q, k, v = jnp.einsum("bse,nef->nbsf", x, w["qkv"]).reshape(
            3, *x.shape[:2], heads, x.shape[2] // heads
        )
        scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * 0.125)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(x.shape)
        x = x + mixed @ w["out"]
        return x + jax.nn.gelu(x @ w["up"]) @ w["down"], None

    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
    low["qkv"] = jnp.moveaxis(low["qkv"], 0, 1)
    y, _ = jax.lax.scan(layer, x, low)
    return jnp.mean(jnp.square(y.astype(jnp.float32)))
