"""`auto` costs every combination, takes the cheapest, and tells what it considered."""

import jax
import optax
import pytest

import autoshard
import models
from autoshard.mesh_shape import MeshShape
from passes.program import Role
from tests.autoshard import cases


def compiled(mesh: str, rules: object = "auto") -> autoshard.CompiledModel:
    spec = models.get("gpt2_tiny", num_layers=1)
    return autoshard.compile(
        spec.build(), mesh, batch=spec.example_batch(8, 32), optimizer=optax.adam(1e-3), rules=rules
    )


@pytest.mark.parametrize("mesh", ["data=8,model=1", "data=2,model=4", "data=1,model=8"])
def test_auto_is_never_worse_than_a_rule_set_by_its_own_measure(mesh: str) -> None:
    found = compiled(mesh).plan
    assert [a.verdict for a in found.alternatives].count("chosen") == 1
    for rules in ("data", "redco", "zero3", "zero1+redco", "zero3+redco"):
        if mesh.endswith("model=1") and "redco" in rules:
            continue
        assert found.cost.score_s <= compiled(mesh, rules).plan.cost.score_s * (1 + 1e-6)


def test_an_open_mesh_is_chosen_among_its_factorisations() -> None:
    plan = compiled("cpu:8").plan
    assert plan.mesh.shape.device_count == 8
    fixed = [compiled(f"data={8 // n},model={n}").plan.cost.score_s for n in (1, 2, 4, 8)]
    assert plan.cost.score_s == pytest.approx(min(fixed), rel=1e-6)
    assert plan.search is not None
    assert "mesh" in [other.choice for other in plan.search.runner_ups]


def test_wide_layers_and_small_batches_make_tensor_parallelism_pay() -> None:
    """With few rows a device there is little to sum over tensors, and much of gradients."""
    spec = models.get("mlp", hidden=(8192, 8192))
    plan = autoshard.compile(
        spec.build(), "data=2,model=4", batch=spec.example_batch(8), optimizer=optax.adam(1e-3)
    ).plan
    assert plan.tensor_parts == ("model",)
    assert not compiled("data=8,model=1").plan.tensor_parts


def test_impossible_candidates_are_listed_with_the_reason() -> None:
    spec = models.get("gpt2_tiny", num_layers=1)
    plan = autoshard.compile(spec.build(), "data=2,model=4", batch=spec.example_batch(4, 32)).plan
    verdicts = [a.verdict for a in plan.alternatives]
    assert any(v.startswith("impossible: the batch dimension 4") for v in verdicts)
    assert plan.tensor_parts == ("model",)


def test_what_is_forbidden_is_not_done() -> None:
    """A dimension, by `forbid` or by a pair with None; an axis of an open mesh."""
    spec = models.get("gpt2_tiny", num_layers=1)

    def sharded(mesh: str, rules: object, forbid: tuple[str, ...]) -> set[str]:
        plan = autoshard.compile(
            spec.build(), mesh, batch=spec.example_batch(4, 32), rules=rules,
            search=autoshard.SearchOptions(forbid=forbid),
        ).plan  # fmt: skip
        arrays = [a for a in plan.arrays if "batch" not in a.dims]
        return {n for a in arrays for n, d in zip(a.dims, a.compute, strict=True) if d}

    assert "vocab" in sharded("data=2,model=4", "auto", ())
    assert "vocab" not in sharded("data=2,model=4", "auto", ("vocab",))
    assert "vocab" not in sharded("data=2,model=4", ["auto", ("vocab", None)], ())
    plan = autoshard.compile(
        spec.build(), "cpu:4", batch=spec.example_batch(8, 32),
        search=autoshard.SearchOptions(forbid=("model",)),
    ).plan  # fmt: skip
    assert plan.mesh.shape.by_name == {"data": 4, "model": 1}


def test_a_pinned_pair_is_obeyed_and_its_price_is_told() -> None:
    free = compiled("data=2,model=4").plan
    bound = compiled("data=2,model=4", ["auto", ("embed", "model")]).plan
    carrying = [a for a in bound.arrays if a.leaf.role is Role.PARAMETER and "embed" in a.dims]
    assert carrying
    assert all(a.compute[a.dims.index("embed")] == ("model",) for a in carrying)
    assert bound.cost.score_s >= free.cost.score_s
    assert any("embed=model" in note and "slower" in note for note in bound.notes)


def test_contradicting_wishes_are_named() -> None:
    with pytest.raises(autoshard.RuleError, match=r"auto.*chooses the ZeRO stage"):
        compiled("data=2,model=4", "auto+zero3")
    with pytest.raises(autoshard.PlanError, match="cannot be forbidden"):
        autoshard.SearchOptions(forbid=("data",))


def test_operations_are_counted_by_their_closed_form() -> None:
    """2 m k n a product; each device does its share; backward is twice forward."""
    batch, wide = 16, 64

    def forward(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ w

    arguments = (
        jax.ShapeDtypeStruct((32, wide), "float32"), jax.ShapeDtypeStruct((batch, 32), "float32"),
    )  # fmt: skip
    plan = autoshard.compile(forward, "data=2,model=4", batch=arguments, rules="redco").plan
    assert plan.cost.flops == 2 * batch * 32 * wide / 8
    spec = models.get("mlp", in_features=32, hidden=(64,), num_classes=16)
    trained = autoshard.compile(
        spec.build(), "data=8", batch=spec.example_batch(16), rules="data"
    ).plan
    first, second = 2 * 16 * 32 * 64, 2 * 16 * 64 * 16
    # The gradient of the data is not needed for the first layer.
    assert trained.cost.flops == (2 * first + 3 * second) / 8


def test_moved_bytes_of_data_parallelism_and_zero() -> None:
    spec = cases.small("gpt2", num_layers=1)
    parameters = 4 * spec.num_params
    tied = 4 * 64 * 32  # the embedding's gradients as lookup and as head are summed apart
    made = {
        rules: cases.compile_case(spec, "data=8", rules, optimizer=optax.adam(1e-3)).plan
        for rules in ("data", "zero2", "zero3")
    }
    plans = {rules: plan.cost for rules, plan in made.items()}
    assert plans["data"].gradient_bytes == 2 * (parameters + tied) * 7 / 8
    arrays = [a for a in made["zero3"].arrays if a.leaf.role is Role.PARAMETER]
    # Scales and biases stay whole.
    vectors = sum(a.leaf.size_bytes for a in arrays if a.leaf.path.endswith(("bias", "scale")))
    cut = parameters - vectors
    assert plans["zero2"].gradient_bytes == (cut + tied + 2 * vectors) * 7 / 8
    assert plans["zero2"].gather_bytes == cut * 7 / 8
    # The backward pass gathers again, but not what is only looked up in, nor the head.
    once = sum(a.leaf.size_bytes for a in arrays if a.leaf.path.startswith(("wpe", "wte")))
    assert plans["zero3"].gather_bytes == (2 * cut - once) * 7 / 8
    assert all(plan.tensor_bytes == 0 for plan in plans.values())


def test_mesh_shapes_parse_and_count() -> None:
    shape = MeshShape.parse("data=2, model=4")
    assert (shape.names, shape.sizes, shape.device_count) == (("data", "model"), (2, 4), 8)
