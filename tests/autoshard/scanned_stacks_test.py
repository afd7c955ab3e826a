"""Stacks of layers: planned like the layers, stored and gathered slice by slice."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from autoshard import planning, rule_sets
from autoshard.layouts import lay_out
from autoshard.mesh_shape import MeshShape
from autoshard.scanned_stacks import scanned_atoms, scans_made_stacks
from autoshard.trace import gradient_program, trace_function
from passes.program import Role
from tests.autoshard import cases
from tests.autoshard.hlo import hlo_of, moved_arrays

LAYERS = 16  # divides by every mesh axis, and is larger than what the axis could take instead


def stack_program(function: Any, *shape: int) -> Any:
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((8, 8), "float32"))
    return trace_function(function, arguments, (Role.PARAMETER, Role.BATCH))[0]


def loop(weights: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]


def loop_along_dimension_1(weights: jax.Array, x: jax.Array) -> jax.Array:
    return loop(jnp.swapaxes(weights, 0, 1), x)


def loop_over_products(weights: jax.Array, x: jax.Array) -> jax.Array:
    return loop(weights * 2, x)


def pairs(weights: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (loop(w, x), None), x, weights)[0]


@pytest.mark.parametrize(
    ("function", "shape", "stored"),
    [
        (loop, (LAYERS, 8, 8), ((), ("data",), ())),
        (loop_along_dimension_1, (8, LAYERS, 8), (("data",), (), ())),
        (pairs, (LAYERS, LAYERS, 8, 8), ((), (), ("data",), ())),
        (lambda w, x: x @ w[0], (LAYERS, 8, 8), (("data",), (), ())),
    ],
    ids=["leading", "second", "nested", "not scanned"],
)
def test_a_scanned_dimension_is_stored_whole(function: Any, shape: Any, stored: Any) -> None:
    subject = planning.examine(stack_program(function, *shape))
    layout = lay_out(subject, MeshShape.parse("data=8"), rule_sets.parse("zero3"))
    assert layout.arrays[0].param == layout.arrays[0].opt == stored


def test_nothing_is_cut_where_only_the_scanned_dimension_divides() -> None:
    program = stack_program(lambda w, x: x + loop_sum(w), LAYERS, 1)
    layout = lay_out(planning.examine(program), MeshShape.parse("data=8"), rule_sets.parse("zero3"))
    assert layout.arrays[0].param == ((), ())


def loop_sum(weights: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda s, w: (s + w, None), jnp.zeros((1,)), weights)[0][None]


def test_made_stacks_are_told_from_parameters() -> None:
    for function, made in (
        (loop, False),
        (loop_along_dimension_1, False),
        (loop_over_products, True),
    ):
        shape = (8, 8, 8)
        analysis = planning.examine(stack_program(function, *shape)).analysis
        assert scans_made_stacks(analysis) == made
        assert bool(scanned_atoms(analysis)) != made


def test_the_gradient_program_knows_its_stacks() -> None:
    """There a parameter also depends on the batch, by the tie to its gradient."""
    program = stack_program(lambda w, x: loop(w, x).sum(), LAYERS, 8, 8)
    analysis = planning.analyse(*gradient_program(program))
    assert {analysis.sizes[a] for a in scanned_atoms(analysis)} == {LAYERS}
    assert set(analysis.leaf_dims(0)[0]) <= scanned_atoms(analysis)


def test_one_slice_is_estimated_to_be_gathered() -> None:
    def gathered_bytes(**layers: Any) -> int:
        spec = cases.small("llama", vocab_size=8, num_layers=4, **layers)
        return cases.compile_case(spec, "data=8", "zero3").plan.cost.memory.gathered_bytes

    slice_bytes = 4 * 64 * 160
    assert gathered_bytes(scan_layers=True) == 2 * slice_bytes  # one in use, the next fetched
    assert gathered_bytes() == slice_bytes


@pytest.mark.parametrize("family", ["gpt2", "llama", "vit"])
def test_scanned_layers_are_planned_as_unrolled_ones(family: str) -> None:
    def used(**layers: Any) -> dict[str, Any]:
        plan = cases.compile_case(cases.small(family, **layers), "data=2,model=4", "redco").plan
        assert not plan.unmodelled
        return {
            re.sub(r"(layers/|h_|block_)\d+/?", lambda m: m[1].rstrip("_/") + "/", a.leaf.path): (
                a.dims, a.compute, a.rule)
            for a in plan.arrays
        }  # fmt: skip

    unrolled, scanned = used(), used(scan_layers=True, remat="full")
    assert unrolled.keys() == scanned.keys()
    stacks = 0
    for path, (dims, spec, rule) in scanned.items():
        if dims[:1] == ("layers",):
            stacks += 1
            assert spec[0] == ()
            dims, spec = dims[1:], spec[1:]
        assert (dims, spec, rule) == unrolled[path], path
    assert stacks >= 9


def test_no_stack_is_gathered_whole_and_remat_is_kept() -> None:
    """Compiled under zero3, where one policy around the program once replaced the model's own."""
    temporaries = {}
    for remat in ("none", "full"):
        spec = cases.small("llama", num_layers=8, max_seq_len=64, scan_layers=True, remat=remat)
        compiled = cases.compile_case(spec, "data=8", "zero3")
        gathered = {
            m.shape for m in moved_arrays(hlo_of(compiled.lower())) if m.kind == "all-gather"
        }
        assert {(64, 160), (160, 64), (64, 64)} <= {shape[-2:] for shape in gathered}
        assert not [shape for shape in gathered if len(shape) == 3 and shape[0] == 8]
        temporaries[remat] = compiled.memory_report().temporaries_bytes
    assert temporaries["full"] < 0.6 * temporaries["none"]
