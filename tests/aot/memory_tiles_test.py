"""What the TPU compiler allots to a program's arguments is what `held_bytes` says."""

import importlib.util
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autoshard import aot
from autoshard.memory_tiles import held_bytes

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]

SHAPES = (
    (100,), (3000,), (30, 128), (64, 32), (32, 4), (3, 200), (1, 200), (64, 8, 8), (12, 64, 64),
    (8, 32, 32, 3), (2, 2049), (1000, 3), (3, 3, 64, 64), (50257, 160),
)  # fmt: skip
DTYPES = ("float32", "bfloat16", "int8")


def test_arguments_take_what_the_tiles_say() -> None:
    mesh = Mesh(np.array(aot.devices("v5e:2x2")), ("x",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    specs = [jax.ShapeDtypeStruct(s, d, sharding=whole) for s in SHAPES for d in DTYPES]
    compiled = jax.jit(lambda xs: [x.sum() for x in xs]).lower(specs).compile()
    expected = sum(held_bytes(x.shape, x.dtype.itemsize, "tpu") for x in specs)
    analysis: Any = compiled.memory_analysis()
    assert analysis.argument_size_in_bytes == expected
