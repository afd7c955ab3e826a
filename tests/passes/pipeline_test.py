"""Pipelined programs compute what they computed, on eight devices, in every schedule."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from passes.errors import PassError
from passes.hlo.machine import MachineModel
from passes.pass_pipeline import run_passes
from passes.pipeline import Pipeline
from passes.pipelining.rule import Pipelined
from passes.program import Placement, Program, Role, Spec
from passes.stack_layers import StackLayers
from tests.passes import programs

MACHINE = MachineModel("cpu", "cpu", 1e9, (("f32", 1e9),), 1e9, 1 << 30, 1e9, 1 << 20, 1e9, (), ())

SIZES: dict[str, dict[str, Any]] = {
    "gpt2_tiny": {"d_model": 16, "num_heads": 2, "vocab_size": 64, "max_seq_len": 8},
    "llama3_tiny": {"d_model": 16, "num_heads": 2, "num_kv_heads": 1, "d_ff": 32, "vocab_size": 64},
    "vit_tiny": {"d_model": 16, "num_heads": 2, "d_ff": 32, "image_size": 16},
}


@functools.cache
def program_of(name: str, layers: int = 4, rows: int = 8, remat: str = "none") -> Program:
    return programs.of_spec(
        name, rows, num_layers=layers, scan_layers=True, remat=remat, **SIZES[name]
    )


def mesh_of(**axes: int) -> Mesh:
    count = int(np.prod(list(axes.values())))
    return Mesh(np.array(jax.devices()[:count]).reshape(tuple(axes.values())), tuple(axes))


def placed(program: Program, mesh: Mesh, rows: Spec = ()) -> Program:
    """The program on a mesh, its batch's rows sharded over the axes of `rows`."""

    def specs(of: Program) -> dict[Any, Spec]:
        inputs = zip(of.jaxpr.jaxpr.invars, of.inputs, strict=True)
        return {
            var: (*rows, *((),) * (len(leaf.shape) - 1))
            for var, leaf in inputs
            if leaf.role is Role.BATCH and rows
        }

    return dataclasses.replace(program, placement=Placement(mesh, MACHINE, specs))


def pipelined(program: Program, one: Pipeline) -> Program:
    result, _ = run_passes(program, [one])
    return result


ALL = ("gpipe", "1f1b", "interleaved", "zero_bubble")


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("name", list(SIZES))
def test_zoo(name: str, schedule: Any) -> None:
    remat = "full" if name == "llama3_tiny" else "none"
    program = placed(program_of(name, remat=remat), mesh_of(stage=2))
    programs.assert_same(program, pipelined(program, Pipeline(schedule=schedule, microbatches=4)))


@pytest.mark.parametrize(
    ("axes", "schedule", "layers", "remat"),
    [
        ({"stage": 2, "data": 2, "model": 2}, "1f1b", 4, "none"),
        ({"stage": 4, "data": 2}, "zero_bubble", 6, "full"),  # uneven
        ({"stage": 4, "data": 2}, "gpipe", 6, "none"),
    ],
)
def test_other_axes(axes: dict[str, int], schedule: Any, layers: int, remat: str) -> None:
    program = placed(program_of("llama3_tiny", layers, remat=remat), mesh_of(**axes), (("data",),))
    after = pipelined(program, Pipeline(schedule=schedule, microbatches=4))
    programs.assert_same(program, after)
    assert any("do not divide" in note for note in after.notes) == bool(layers % axes["stage"])
