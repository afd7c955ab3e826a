"""Predicted collectives against closed forms, and against the programs of XLA's CPU compiler."""

import collections
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import autoshard
import models
from autoshard.collective_rows import collective_rows, differs
from autoshard.named_dims import analyse
from autoshard.predicted_collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    GRADIENT_NORM,
    REDUCE_SCATTER,
    CompilerHabits,
    Phase,
    PredictedCollective,
    Purpose,
    predict_collectives,
)
from autoshard.trace import gradient_program
from passes.hlo.parse import parse
from tests.autoshard import cases
from tests.autoshard.hlo import hlo_of

BATCH, SEQUENCE = 8, 16


def collective(**changes: Any) -> PredictedCollective:
    made = PredictedCollective(
        ALL_REDUCE, Purpose.ACTIVATIONS, Phase.FORWARD, "", "dot_general", ("model",), 4, 3, 800
    )
    return dataclasses.replace(made, **changes)


def predicted(spec: models.ModelSpec, mesh: str, rules: str) -> tuple[PredictedCollective, ...]:
    return cases.compile_case(spec, mesh, rules, BATCH).plan.cost.collectives


def summed(
    found: tuple[PredictedCollective, ...], **wanted: Any
) -> collections.Counter[tuple[str, int]]:
    """Arrays by (operation, payload), of the collectives whose fields are as wanted."""
    chosen = [c for c in found if all(getattr(c, k) == v for k, v in wanted.items())]
    return sum(
        (collections.Counter({(c.operation, c.payload_bytes): c.count}) for c in chosen),
        collections.Counter(),
    )


def test_bytes_sent_around_a_ring_have_their_closed_forms() -> None:
    assert collective().sent_bytes == 3 * 2 * 800 * 3 / 4
    assert collective(kind=ALL_GATHER).sent_bytes == 3 * 800 * 3 / 4
    assert collective(kind=REDUCE_SCATTER, devices=8, count=1).sent_bytes == 700


def test_a_product_of_row_split_weights_is_reduced_once() -> None:
    """x [B, 32] @ w1 [32, 64/model] @ w2 [64/model, 16]: one all-reduce of [B/data, 16]."""

    def forward(w1: jax.Array, w2: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ w1) @ w2

    shapes = [(32, 64), (64, 16), (BATCH, 32)]
    arguments = tuple(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes)
    plan = autoshard.compile(forward, "data=2,model=4", batch=arguments, rules="redco").plan
    (only,) = plan.cost.collectives
    assert (only.kind, only.count, only.devices) == (ALL_REDUCE, 1, 4)
    assert (only.axes, only.phase) == (("model",), Phase.FORWARD)
    assert only.payload_bytes == BATCH // 2 * 16 * 4
    assert only.source.startswith("predicted_collectives_test.py:")


def test_zero3_of_three_dense_layers() -> None:
    """Kernels are gathered for each product that needs them, gradients scattered; biases are whole.

    The backward pass needs no first kernel (the data has no gradient), and has the last one from
    the forward pass.
    """
    spec = models.get("mlp", in_features=32, hidden=(64, 128), num_classes=16)
    plan = cases.compile_case(spec, "data=8", "zero3", 16).plan
    found = plan.cost.collectives
    sizes = {
        a.leaf.path: a.leaf.size_bytes for a in plan.arrays if a.leaf.role.value == "parameter"
    }
    kernels = {path: size for path, size in sizes.items() if "kernel" in path}
    assert len(kernels) == 3
    gathers = summed(found, kind=ALL_GATHER)
    assert gathers == {(p, size): 1 + (size == 4 * 64 * 128) for p, size in kernels.items()}
    scattered = summed(found, kind=REDUCE_SCATTER, phase=Phase.BACKWARD)
    by_size = collections.Counter(size for (_, size), n in scattered.items() for _ in range(n))
    assert by_size == collections.Counter(kernels.values())
    reduced = summed(found, kind=ALL_REDUCE, purpose=Purpose.GRADIENTS)
    assert sum(size * n for (_, size), n in reduced.items()) == 4 * (64 + 128 + 16)
    scalars = summed(found, kind=ALL_REDUCE, purpose=Purpose.SCALARS)
    # A sum of squares a kernel, and those of the loss: of losses, and of labels that count.
    assert scalars[GRADIENT_NORM, 4] == len(kernels)
    assert {size for _, size in scalars} == {4}


def test_few_rows_are_looked_up_in_the_shards_of_a_table() -> None:
    """Rows go to their batch and their gradients back; the table is not gathered.

    8 x 4 tokens on 8 devices: 4 rows of 1024 to each, of a table of 64. With 128 tokens to each it
    is gathered.
    """
    spec = cases.small("llama", num_layers=1, d_model=1024, vocab_size=64, max_seq_len=128)
    for tokens, moves in ((4, True), (128, False)):
        compiled = autoshard.compile(
            spec.build(), "data=8", batch=spec.example_batch(8, tokens), rules="zero3",
            optimizer=optax.sgd(0.1),
        )  # fmt: skip
        found = compiled.plan.cost.collectives
        table = [c for c in found if c.operation == "embed/embedding"]
        kinds = {c.kind: c.payload_bytes for c in table if c.phase is Phase.FORWARD}
        expected = {"all-to-all": tokens * 1024 * 4, ALL_GATHER: 8 * tokens * 4}
        assert kinds == (expected if moves else {ALL_GATHER: 64 * 1024 * 4})
        if moves:
            rows = collective_rows(found, parse(hlo_of(compiled.lower())))
            assert [r.kind for r in rows if differs(r)] == ["all-to-all"]  # it counts eight slices
            (both,) = (r for r in rows if r.kind == "all-to-all")
            assert both.compiled_bytes == both.predicted_bytes == 2 * 4 * 1024 * 4


def test_a_vocabulary_sharded_lookup_is_reduced() -> None:
    """Each device has some rows of the table: the picked ones are summed, [B/data, S, D]."""
    spec = cases.small("llama", num_layers=1, d_model=32, num_kv_heads=4)
    found = predicted(spec, "data=2,model=4", "redco")
    rows = summed(found, operation="gather", purpose=Purpose.ACTIVATIONS)
    stream, targets = BATCH // 2 * SEQUENCE * 32 * 4, BATCH // 2 * SEQUENCE * 4
    assert rows == {("gather", stream): 1, ("gather", targets): 1}


@pytest.mark.parametrize(("merges", "backward"), [(True, 2), (False, 5)])
def test_a_layer_reduces_as_megatron_does(merges: bool, backward: int) -> None:
    """Two arrays forward; backward two, or q, k, v and gate, up apart."""

    def activations(layers: int) -> dict[str, int]:
        spec = cases.small("llama", num_layers=layers, d_model=32, num_kv_heads=4)
        compiled = cases.compile_case(spec, "data=2,model=4", "redco", BATCH)
        layout: Any = compiled.plan  # it has a layout's mesh, arrays and parts
        analysis = analyse(*gradient_program(compiled.traced.program))
        found = predict_collectives(
            analysis, layout, trains=True, habits=CompilerHabits(merges_reductions=merges)
        )
        stream = BATCH // 2 * SEQUENCE * 32 * 4
        counts = {
            phase: sum(summed(found, phase=phase, payload_bytes=stream).values()) for phase in Phase
        }
        return {phase.value: count for phase, count in counts.items()}

    one, two = activations(1), activations(2)
    assert {k: two[k] - one[k] for k in one} == {
        "forward": 2, "backward": backward, "optimizer": 0
    }  # fmt: skip


def test_recomputation_reduces_and_gathers_again() -> None:
    """A block computed again from its input reduces its attention once more; the product that ends
    it is not needed."""
    stream = BATCH // 2 * SEQUENCE * 64 * 4
    counts = {}
    for remat in ("none", "full"):
        spec = cases.small("llama", num_layers=3, scan_layers=True, remat=remat)
        found = predicted(spec, "data=2,model=4", "redco")
        counts[remat] = sum(
            summed(found, phase=Phase.BACKWARD, payload_bytes=stream).values()
        )  # fmt: skip
    assert counts["full"] - counts["none"] == 3


@pytest.mark.parametrize("rules", ["data", "zero3", "redco", "zero3+redco"])
def test_a_loop_over_layers_moves_what_unrolled_layers_do(rules: str) -> None:
    mesh = "data=8,model=1" if "redco" not in rules else "data=2,model=4"

    def totals(scanned: bool) -> collections.Counter[tuple[str, str, int]]:
        spec = cases.small("llama", num_layers=3, scan_layers=scanned, remat="none")
        counts: collections.Counter[tuple[str, str, int]] = collections.Counter()
        for c in predicted(spec, mesh, rules):
            if c.operation != GRADIENT_NORM:  # one for each array, and the stack is one
                counts[c.kind, c.phase.value, c.payload_bytes] += c.count
        return counts

    assert totals(True) == totals(False)


# The partitioner moves halves of the embedding's gradient between devices that hold its padding.
_EXPLAINED = {"zero3+redco": {("collective-permute", "Llama.__call__")}}


@pytest.mark.parametrize("rules", ["data", "zero3", "redco", "zero3+redco"])
@pytest.mark.parametrize("scanned", [False, True])
def test_the_cpu_compiler_moves_what_is_predicted(rules: str, scanned: bool) -> None:
    mesh = "data=8,model=1" if "redco" not in rules else "data=2,model=4"
    spec = cases.small(
        "llama", num_layers=2, scan_layers=scanned, remat="full" if scanned else "none"
    )
    compiled = cases.compile_case(spec, mesh, rules, 16, optimizer=optax.adam(1e-3))
    rows = collective_rows(compiled.plan.cost.collectives, parse(hlo_of(compiled.lower())))
    different = {(r.kind, r.source.split("(")[-1].rstrip(")")) for r in rows if differs(r)}
    assert different <= _EXPLAINED.get(rules, set()), [r for r in rows if differs(r)]
    payload = sum(r.compiled_bytes for r in rows)
    assert math.isclose(sum(r.predicted_bytes for r in rows), payload, rel_tol=0.01)
    assert sum(r.predicted_count for r in rows) >= 20


def test_plans_keep_their_collectives() -> None:
    plan = cases.compile_case(cases.small("llama"), "data=2,model=4", "zero3+redco", BATCH).plan
    again = type(plan).from_json(plan.to_json())
    assert again.cost.collectives == plan.cost.collectives
    assert {c.purpose for c in again.cost.collectives} == set(Purpose)
    text = plan.explain()
    assert "reduce-scatter   gradients     backward" in text
