"""Constraints stand where a partitioner would guess, and nowhere else."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from passes import ir
from passes.constrain import Constrain
from passes.errors import PassError
from passes.hlo.machine import MachineModel
from passes.pass_pipeline import run_passes
from passes.program import Placement, Program
from passes.spec import Spec, partition_spec
from tests.passes import programs

MACHINE = MachineModel("cpu", "cpu", 1e9, (("f32", 1e9),), 1e9, 1 << 30, 1e9, 1 << 20, 1e9, (), ())
ROWS, WIDTH, LAYERS, WORDS = 16, 8, 3, 24


def looped(params: Any, batch: Any) -> Any:
    """A running sum over layers that begins with zeros, which no layout comes from."""

    def layer(carry: Any, w: Any) -> tuple[Any, None]:
        x, total = carry
        x = jnp.tanh(x @ w)
        return (x, total + x), None

    start = batch["x"], jnp.zeros((ROWS, WIDTH))
    (_, total), _ = jax.lax.scan(layer, start, params["w"])
    return jnp.mean(jnp.square(total))


def looked_up(params: Any, batch: Any) -> Any:
    """Rows of a table whose columns are sharded, by indices whose rows are."""
    found = jnp.take(params["table"], batch["tokens"], axis=0, mode="clip")
    return jnp.mean(jnp.square(found @ params["w"]))


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def loop_program(function: Any = looped) -> Program:
    params = {"w": shape(LAYERS, WIDTH, WIDTH)}
    return programs.of_function(function, params, {"x": shape(ROWS, WIDTH)})


def lookup_program() -> Program:
    params = {"table": shape(WORDS, WIDTH), "w": shape(WIDTH, 5)}
    return programs.of_function(looked_up, params, {"tokens": shape(ROWS, dtype=jnp.int32)})


def placed(program: Program, by_shape: Mapping[tuple[int, ...], Spec]) -> Program:
    """The program on eight devices, data=4 and model=2; values are sharded by their shapes."""
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))

    def specs(of: Program) -> dict[ir.Var, Spec]:
        jaxpr, _ = ir.closed(of.jaxpr)
        made: list[Any] = [*jaxpr.invars]
        for eqn in ir.equations(jaxpr):
            made += [*eqn.outvars]
            if eqn.primitive.name == "scan":
                made += ir.closed(eqn.params["jaxpr"])[0].invars
        found = {}
        for var in made:
            spec = by_shape.get(tuple(getattr(var.aval, "shape", ())))
            if not ir.is_dropped(var) and spec is not None:
                found[var] = spec
        return found

    return dataclasses.replace(program, placement=Placement(mesh, MACHINE, specs))


def constraints(program: Program) -> list[tuple[tuple[int, ...], PartitionSpec]]:
    """(shape, spec) of each constraint of a program, nested ones included."""
    eqns = ir.equations(ir.closed(program.jaxpr)[0])
    return [
        (ir.spec(eqn.invars[0]).shape, eqn.params["sharding"].spec)
        for eqn in eqns
        if eqn.primitive.name == "sharding_constraint"
    ]


ACTIVATIONS: Mapping[tuple[int, ...], Spec] = {(ROWS, WIDTH): (("data",), ("model",))}


def test_carries_alone_are_constrained() -> None:
    before = placed(loop_program(), ACTIVATIONS)
    after, _ = run_passes(before, [Constrain()])
    # Two carries; not the product, the tanh or the sum between them.
    assert constraints(after) == [((ROWS, WIDTH), PartitionSpec("data", "model"))] * 2
    assert after.notes == ("2 constraints: 2 carries",)
    programs.assert_same(before, after)


def test_lookups_are_constrained() -> None:
    by_shape: dict[tuple[int, ...], Spec] = {(ROWS, WIDTH): (("data", "model"), ())}
    before = placed(lookup_program(), by_shape)
    after, _ = run_passes(before, [Constrain()])
    assert constraints(after) == [((ROWS, WIDTH), PartitionSpec(("data", "model"), None))]
    assert after.notes == ("1 constraints: 1 lookups",)
    programs.assert_same(before, after)


def test_all_points_are_more() -> None:
    before = placed(loop_program(), ACTIVATIONS)
    after, _ = run_passes(before, [Constrain(points="all")])
    assert len(constraints(after)) > 4
    assert "2 carries" in after.notes[0] and "others" in after.notes[0]
    programs.assert_same(before, after)


def test_what_is_whole_is_left_alone() -> None:
    by_shape: dict[tuple[int, ...], Spec] = {(ROWS, WIDTH): ((), ())}
    before = placed(loop_program(), by_shape)
    after, _ = run_passes(before, [Constrain()])
    assert constraints(after) == []
    assert after.notes == ("no value that a partitioner would have to guess is sharded",)


def test_checkpoint_regions_are_kept() -> None:
    def regions(params: Any, batch: Any) -> Any:
        def layer(x: Any, w: Any) -> tuple[Any, None]:
            return jax.checkpoint(lambda x, w: jnp.tanh(x @ w))(x, w), None

        return jnp.mean(jnp.square(jax.lax.scan(layer, batch["x"], params["w"])[0]))

    before = placed(loop_program(regions), ACTIVATIONS)
    after, _ = run_passes(before, [Constrain()])
    assert len(constraints(after)) == 1
    names = [eqn.primitive.name for eqn in ir.equations(ir.closed(after.jaxpr)[0])]
    assert len(ir.CHECKPOINTS & set(names)) == 1
    programs.assert_same(before, after)


def compiled_text(program: Program, shardings: Mapping[str, Spec]) -> str:
    assert program.placement is not None
    mesh = program.placement.mesh
    arguments = [
        jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype,
            sharding=NamedSharding(mesh, partition_spec(shardings.get(leaf.path, ()))),
        )
        for leaf in program.inputs
    ]  # fmt: skip
    jitted = jax.jit(ir.as_function(program.jaxpr))
    return str(jitted.lower(*arguments).compile().as_text())


def carried_shapes(text: str) -> set[str]:
    """Shapes of [rows, width] arrays, or parts of them, that the compiled loop carries."""
    (loop,) = re.findall(r"= \((.*?)\) while\(", text)
    found = set(re.findall(r"f32\[(\d+,\d+)\]", loop))
    return {dims for dims in found if int(dims.split(",")[0]) <= ROWS}


def test_a_partitioner_that_is_not_told_guesses_a_carry() -> None:
    """Weights are whole, rows come whole, and the plan shards what is carried."""
    by_shape: dict[tuple[int, ...], Spec] = {(ROWS, WIDTH): (("data",), ())}
    before = placed(loop_program(), by_shape)
    after, _ = run_passes(before, [Constrain()])
    assert carried_shapes(compiled_text(before, {})) == {f"{ROWS},{WIDTH}"}
    assert carried_shapes(compiled_text(after, {})) == {f"{ROWS // 4},{WIDTH}"}


def test_a_partitioner_that_is_not_told_guesses_a_lookup() -> None:
    """The table's columns are sharded and the indices' rows: the result could follow either."""
    by_shape: dict[tuple[int, ...], Spec] = {(ROWS, WIDTH): (("data",), ())}
    before = placed(lookup_program(), by_shape)
    after, _ = run_passes(before, [Constrain()])
    given: dict[str, Spec] = {"table": ((), ("data",)), "tokens": (("data",),)}

    def products(text: str) -> set[str]:
        return set(re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text))

    assert products(compiled_text(before, given)) == {f"{ROWS},5"}  # of a quarter of the columns
    assert products(compiled_text(after, given)) == {f"{ROWS // 4},5"}


def test_bad_input_is_refused() -> None:
    with pytest.raises(PassError, match="there is no plan yet"):
        Constrain().apply(loop_program())
