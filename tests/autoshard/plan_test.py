"""Plans are data: saved, loaded, refused where they do not fit, and validated independently."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

import autoshard
import models
from autoshard import validate
from autoshard.plan import Plan
from tests.autoshard import cases


@pytest.fixture(scope="module")
def spec() -> models.ModelSpec:
    return cases.small("gpt2", num_layers=1)


@pytest.fixture(scope="module")
def plan(spec: models.ModelSpec) -> Plan:
    return cases.compile_case(spec, "data=2,model=4", "zero3+redco").plan


def axis_sizes(plan: Plan) -> dict[str, int]:
    return dict(zip(plan.mesh.shape.names, plan.mesh.shape.sizes, strict=True))


def test_a_saved_plan_loads_equal(plan: Plan, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    rows = [line for line in path.read_text().splitlines() if '"path"' in line]
    assert len(rows) == len(plan.arrays)  # one array a line, so that plans diff well


def test_a_plan_is_used_again(spec: models.ModelSpec, plan: Plan, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    compiled = autoshard.compile(
        spec.build(), "data=2,model=4", batch=spec.example_batch(8), plan=path
    )
    assert compiled.plan == plan


def test_planning_twice_gives_the_same_plan(spec: models.ModelSpec, plan: Plan) -> None:
    assert cases.compile_case(spec, "data=2,model=4", "zero3+redco").plan == plan


def test_a_plan_for_another_mesh_is_refused(spec: models.ModelSpec, plan: Plan) -> None:
    with pytest.raises(
        autoshard.PlanError, match=r"made for mesh \(data=2,model=4\).*data=4,model=2"
    ):
        autoshard.compile(spec.build(), "data=4,model=2", batch=spec.example_batch(8), plan=plan)


@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        ({"d_model": 64}, r"h_0/attn/key/bias is float32\[8, 4\] in the plan and float32\[8, 8\]"),
        ({"num_layers": 2}, "h_1/.* is not in the plan"),
        ({"vocab_size": 128}, r"wte/embedding is float32\[64, 32\] in the plan"),
    ],
)
def test_a_plan_for_another_program_says_what_differs(
    plan: Plan, overrides: dict[str, int], difference: str
) -> None:
    other = cases.small("gpt2", **{"num_layers": 1, **overrides})
    with pytest.raises(autoshard.PlanError, match=difference):
        autoshard.compile(other.build(), "data=2,model=4", batch=other.example_batch(8), plan=plan)


def test_a_plan_for_another_batch_is_refused(spec: models.ModelSpec, plan: Plan) -> None:
    with pytest.raises(autoshard.PlanError, match=r"tokens is int32\[8, 16\] in the plan"):
        autoshard.compile(spec.build(), "data=2,model=4", batch=spec.example_batch(16), plan=plan)


def test_equal_arrays_but_other_products_are_refused() -> None:
    def first(params: dict, x):
        return (x @ params["a"]) @ params["b"]

    import jax

    square = jax.ShapeDtypeStruct((8, 8), "float32")
    arguments = ({"a": square, "b": square}, square)
    made = autoshard.compile(first, "data=2,model=4", batch=arguments, rules="redco").plan
    again = autoshard.compile(first, "data=2,model=4", batch=arguments, plan=made)
    assert again.plan == made

    def third(params: dict, x):
        return x @ params["b"] + x @ params["a"]

    with pytest.raises(autoshard.PlanError, match="program's products differ"):
        autoshard.compile(third, "data=2,model=4", batch=arguments, plan=made)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: "[]", "is not an autoshard plan"),
        (lambda text: text.replace('"version": 5', '"version": 99'), "plan version 99"),
        (lambda text: text.replace('"compute"', '"compote"'), "damaged"),
        (lambda text: text.replace('"parameter"', '"perimeter"'), "damaged"),
        (lambda text: "\x00\xff", "is not JSON|cannot read"),
    ],
)
def test_a_corrupt_plan_is_one_clear_error(
    plan: Plan,
    tmp_path: pathlib.Path,
    damage,
    message: str,
) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(autoshard.PlanError, match=message):
        Plan.load(path)


def test_a_missing_plan_and_an_unwritable_one(plan: Plan, tmp_path: pathlib.Path) -> None:
    with pytest.raises(autoshard.PlanError, match="cannot read the plan"):
        Plan.load(tmp_path / "absent.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(autoshard.PlanError, match="cannot write the plan"):
        plan.save(tmp_path / "file" / "plan.json")


def corrupted(plan: Plan, position: int, **changes: Any) -> Plan:
    arrays = list(plan.arrays)
    arrays[position] = dataclasses.replace(arrays[position], **changes)
    return dataclasses.replace(plan, arrays=tuple(arrays))


def test_the_validator_accepts_what_the_planner_makes(plan: Plan) -> None:
    inputs = tuple(a.leaf for a in plan.arrays)
    assert validate.problems(plan, inputs, axis_sizes(plan)) == []


def test_the_validator_finds_each_fault(plan: Plan) -> None:
    inputs = tuple(a.leaf for a in plan.arrays)
    position = next(i for i, a in enumerate(plan.arrays) if a.leaf.path.endswith("up/kernel"))
    whole = ((), ())
    faults: dict[str, dict[str, Any]] = {
        "which the mesh lacks": {"opt": (("pod",), ())},
        "twice": {"compute": (("model",), ("model",)), "param": (("model",), ("model",))},
        "entries for 2 dimensions": {"grad": ((),)},
        "does not refine": {"param": whole},
    }
    for message, changes in faults.items():
        found = validate.problems(corrupted(plan, position, **changes), inputs, axis_sizes(plan))
        assert any(message in problem for problem in found), (message, found)
    leaf = dataclasses.replace(inputs[position], shape=(33, 128))
    odd = corrupted(plan, position, leaf=leaf)
    found = validate.problems(
        odd, (*inputs[:position], leaf, *inputs[position + 1 :]), axis_sizes(plan)
    )
    assert any("33 does not divide by" in problem for problem in found)
    assert any("no layout" in p for p in validate.problems(
        dataclasses.replace(plan, arrays=plan.arrays[1:]), inputs, axis_sizes(plan)))  # fmt: skip
    assert any("not in the program" in p for p in validate.problems(
        plan, inputs[1:], axis_sizes(plan)))  # fmt: skip
    assert validate.problems(plan, inputs, {"data": 4, "model": 2})
    assert validate.problems(plan, inputs, {"data": 2, "model": 4, "pipe": 1})
    with pytest.raises(autoshard.PlanError, match="not valid"):
        validate.validate(plan, inputs, {"data": 8})


def test_explain_says_what_how_why_and_what_it_costs(plan: Plan) -> None:
    text = plan.explain()
    for expected in (
        "axis data=2: batch; ZeRO stage 3",
        "axis model=4: tensor: ",
        "embed x heads x head_dim",
        "redco+zero3",
        "attention is independent",
        "optimizer state",
        "estimated",
    ):
        assert expected in text, expected
    assert max(map(len, text.splitlines())) <= 140
    assert "Compiled with" not in text
    quick = dataclasses.replace(plan, compiler_options=(("xla_a", "true"), ("xla_b", "1")))
    assert "Compiled with xla_a=true, xla_b=1" in quick.explain()
