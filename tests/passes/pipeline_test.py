"""Pipelined programs compute what they computed, on eight devices, in every schedule."""

import dataclasses
import functools
import re
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from passes import ir
from passes.compare import random_inputs
from passes.errors import PassError
from passes.hlo.machine import MachineModel
from passes.microbatch import Microbatch
from passes.pass_pipeline import run_passes
from passes.pipeline import Pipeline
from passes.pipelining.rule import Pipelined
from passes.program import Placement, Program, Role
from passes.spec import Spec
from tests.passes import programs

MACHINE = MachineModel("cpu", "cpu", 1e9, (("f32", 1e9),), 1e9, 1 << 30, 1e9, 1 << 20, 1e9, (), ())

SIZES: dict[str, dict[str, Any]] = {
    "gpt2_tiny": {"d_model": 16, "num_heads": 2, "vocab_size": 64, "max_seq_len": 8},
    "llama3_tiny": {"d_model": 16, "num_heads": 2, "num_kv_heads": 1, "d_ff": 32, "vocab_size": 64},
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


@functools.cache
def reference(name: str, layers: int, remat: str) -> tuple[Any, Any]:
    """(loss, gradients) of the program as it was."""
    return programs.loss_and_gradients(program_of(name, layers, remat=remat))


def parameters(program: Program) -> tuple[int, ...]:
    return tuple(i for i, x in enumerate(program.whole_inputs) if x.role is Role.PARAMETER)


def step_of(program: Program) -> Any:
    """Inputs -> (loss, gradients) by the program's rule."""
    wrt = parameters(program)

    def step(*inputs: Any) -> tuple[Any, Any]:
        assert program.gradient is not None
        outputs, gradients = program.gradient(inputs, wrt, [None] * len(inputs))
        return outputs[0], gradients

    return step


def assert_same(wanted: tuple[Any, Any], program: Program) -> str:
    """Loss and gradients are the reference's; the compiled program's text."""
    drawn = random_inputs(program)
    inputs = []
    for leaf in program.whole_inputs:
        own = [drawn[f"{leaf.role.value}/{path}"] for path in leaf.parts or (leaf.path,)]
        inputs.append(np.stack(own) if leaf.parts else own[0])
    compiled = jax.jit(step_of(program)).lower(*inputs).compile(programs.FAST)
    loss, gradients = compiled(*inputs)
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-5)
    scale = max(float(np.max(np.abs(g))) for g in wanted[1].values())
    found = {}
    for i, gradient in zip(parameters(program), gradients, strict=True):
        leaf = program.whole_inputs[i]
        for k, path in enumerate(leaf.parts or (leaf.path,)):
            found[path] = gradient[k] if leaf.parts else gradient
    assert found.keys() == wanted[1].keys()
    for path, gradient in found.items():
        worst = float(np.max(np.abs(gradient - wanted[1][path])))
        assert worst <= 1e-4 * scale, (path, worst, scale)
    return str(compiled.as_text())


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("llama3_tiny", "gpipe"),
        ("llama3_tiny", "1f1b"),
        ("llama3_tiny", "interleaved"),
        ("llama3_tiny", "zero_bubble"),
        ("gpt2_tiny", "interleaved"),
    ],
)
def test_schedules(name: str, schedule: Any) -> None:
    """The other families are in `tests/autoshard/pass_pairs_test.py`."""
    remat = "none" if name == "gpt2_tiny" else "full"
    program = placed(program_of(name, remat=remat), mesh_of(stage=2))
    after = pipelined(program, Pipeline(schedule=schedule, microbatches=4))
    text = assert_same(reference(name, 4, remat), after)
    assert "collective-permute" in text
    stacks = {leaf.shape for leaf in program.inputs if leaf.shape[:1] == (4,)}
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    shapes = {tuple(int(d) for d in dims.split(",") if d) for dims in gathered}
    if schedule != "interleaved":  # whose order is another than the stacks'
        assert not shapes & stacks


@pytest.mark.parametrize(
    ("axes", "schedule", "layers", "remat"),
    [
        ({"stage": 2, "data": 2, "model": 2}, "1f1b", 4, "none"),
        ({"stage": 4, "data": 2}, "zero_bubble", 6, "full"),  # uneven
        ({"stage": 4, "data": 2}, "gpipe", 4, "none"),
    ],
)
def test_other_axes(axes: dict[str, int], schedule: Any, layers: int, remat: str) -> None:
    program = placed(program_of("llama3_tiny", layers, remat=remat), mesh_of(**axes), (("data",),))
    after = pipelined(program, Pipeline(schedule=schedule, microbatches=4))
    assert_same(reference("llama3_tiny", layers, remat), after)
    assert any("do not divide" in note for note in after.notes) == bool(layers % axes["stage"])


def test_a_program_that_is_a_microbatchs_already() -> None:
    program = placed(program_of("gpt2_tiny"), mesh_of(stage=2, data=2), (("data",),))
    after, _ = run_passes(program, [Microbatch(2), Pipeline(microbatches=2)])
    assert rule_of(after).steps.batch == ("data",)


def rule_of(program: Program) -> Pipelined:
    assert isinstance(program.gradient, Pipelined)
    return program.gradient


def test_the_vocabulary_is_split_on_request() -> None:
    program = placed(program_of("llama3_tiny"), mesh_of(stage=2))
    after = pipelined(program, Pipeline(microbatches=4))
    assert len(rule_of(after).vocabulary.dims) == 2  # embedding and head
    assert any("split over the stages along the vocabulary" in note for note in after.notes)
    whole = pipelined(program, Pipeline(microbatches=4, split_vocabulary=False))
    assert rule_of(whole).vocabulary.dims == ()
    assert Pipeline().pins == (("layers", "stage"), ("vocab", "stage"))
    assert Pipeline(axis="pp", split_vocabulary=False).pins == (("layers", "pp"),)


def test_notes() -> None:
    program = placed(program_of("llama3_tiny"), mesh_of(stage=2))
    after = pipelined(program, Pipeline(schedule="interleaved", microbatches=4))
    assert "stages wait 11.1% of the time" in after.notes[0]
    assert any("the order would be 0, 2, 1, 3" in note for note in after.notes)
    assert after.jaxpr is program.jaxpr


def test_rows_that_do_not_fill_the_ways_of_data() -> None:
    """Four microbatches of two rows on four ways of data: the partitioner is left to it."""
    program = placed(program_of("llama3_tiny"), mesh_of(stage=2, data=4), (("data",),))
    after = pipelined(program, Pipeline(microbatches=4))
    assert rule_of(after).steps.batch == ()
    assert any("2 rows cannot be computed apart on 4 ways" in note for note in after.notes)
    fewer = pipelined(program, Pipeline(microbatches=2))
    assert rule_of(fewer).steps.batch == ("data",)


def test_bad_input() -> None:
    program = program_of("llama3_tiny")

    def refuses(message: str, of: Program, **settings: Any) -> None:
        with pytest.raises(PassError, match=message):
            pipelined(of, Pipeline(**settings))

    refuses("there is no plan yet", program)
    refuses("no axis 'stage'.*it has data=2", placed(program, mesh_of(data=2)))
    two = placed(program, mesh_of(stage=2))
    refuses("batch of 8 does not divide into 3 microbatches", two, microbatches=3)
    refuses("unknown schedule 'dualpipe'", two, schedule="dualpipe")
    refuses("4 layers do not fill 8 stages", placed(program, mesh_of(stage=8)))
    refuses("4 layers do not fill 6 stages", two, schedule="interleaved", chunks=3)
    refuses("another pass already", pipelined(two, Pipeline(microbatches=4)))
    parts, _ = run_passes(two, [Microbatch(4)])
    refuses("one of 4 microbatches, and the pipeline has 8", parts, microbatches=8)
    unrolled = programs.of_spec("llama3_tiny", 8, num_layers=4, **SIZES["llama3_tiny"])
    refuses("run stack_layers before", placed(unrolled, mesh_of(stage=2)))


def test_constraints_are_left_out() -> None:
    """They say how arrays of the whole batch lie on the mesh."""
    mesh = mesh_of(stage=2, data=2)
    program = placed(program_of("gpt2_tiny"), mesh, (("data",),))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    function = ir.as_function(program.jaxpr)

    def constrained(*inputs: Any) -> list[Any]:
        rows = program.with_role(Role.BATCH)
        return function(
            *(jax.lax.with_sharding_constraint(x, sharding) if i in rows else x
              for i, x in enumerate(inputs))
        )  # fmt: skip

    jaxpr = jax.make_jaxpr(constrained)(*program.jaxpr.in_avals)
    after = pipelined(dataclasses.replace(program, jaxpr=jaxpr), Pipeline(microbatches=2))
    assert any("1 sharding constraints are left out" in note for note in after.notes)
