"""Compiled layouts are ranked by what their compiler says; a wrong estimate is corrected."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Any

import optax
import pytest

import autoshard
import models
from autoshard.compiler_options import OptionSet
from autoshard.errors import CompileError, PlanError
from autoshard.plan import Plan
from autoshard.planning import Candidate
from autoshard.search.options import SearchOptions
from autoshard.verified_choice import Trial, choose

GIB = 2**30
LIMIT = 10 * GIB
OTHERS = OptionSet("haste", (("xla_hurry", "true"),))


@pytest.fixture(scope="module")
def plan() -> Plan:
    spec = models.get("mlp", hidden=(16,))
    return autoshard.compile(
        spec.build(), "data=8", batch=spec.example_batch(8), optimizer=optax.sgd(0.1), rules="data"
    ).plan


def candidate(plan: Plan, number: int, estimated_gib: float) -> Candidate:
    memory = dataclasses.replace(plan.cost.memory, activations_bytes=int(estimated_gib * GIB))
    cost = dataclasses.replace(plan.cost, memory=memory)
    return Candidate(dataclasses.replace(plan, cost=cost, rules=(f"r{number}",)), ())


def report(plan: Plan, compiled_gib: float, step_s: float) -> Any:
    """What `choose` reads of a report."""
    needed = types.SimpleNamespace(needed_bytes=int(compiled_gib * GIB))
    fits = compiled_gib * GIB <= LIMIT
    return types.SimpleNamespace(
        plan=plan,
        memory=needed if fits else None,
        out_of_memory=None if fits else needed,
        timeline=types.SimpleNamespace(step_s=step_s) if fits else None,
    )


def run(
    plan: Plan,
    table: Mapping[int, tuple[float, float, float]],
    count: int = 4,
    other: tuple[float, float] | None = None,
) -> tuple[Any, list[str]]:
    """Choose among candidates: number -> (estimated GiB, compiled GiB, simulated seconds).

    With `other`, there are other options of the compiler: GiB and seconds under them.
    """
    compiled: list[str] = []

    def search(ratio: float) -> Iterator[Candidate]:
        for number, (estimated, _, _) in table.items():
            if estimated * GIB * ratio <= LIMIT:
                yield candidate(plan, number, estimated)

    def compile_one(one: Candidate) -> Any:
        name = one.plan.rules[0]
        compiled.append(name)
        _, needed, step_s = table[int(name[1:])]
        if one.plan.compiler_options:
            assert other is not None and one.plan.compiler_options == OTHERS.options
            needed, step_s = other
        if step_s < 0:
            raise CompileError("the compiler crashed")
        return report(one.plan, needed, step_s)

    trial = Trial(compile_one, LIMIT, (OTHERS,) if other else ())
    return choose(search, trial, SearchOptions(), count), compiled


def test_the_quickest_by_the_compiler_is_chosen_not_by_the_estimate(plan: Plan) -> None:
    table = {1: (4, 4, 3.0), 2: (4, 4, 2.0), 3: (4, 4, 1.0), 4: (4, 4, 2.5), 5: (4, 4, 0.1)}
    chosen, compiled = run(plan, table)
    assert chosen.plan.rules == ("r3",)
    assert compiled == ["r1", "r2", "r3", "r4"]
    rows = chosen.plan.verified
    assert [(r.rules, r.verdict) for r in rows] == [
        ("r3", "chosen"), ("r2", ""), ("r4", ""), ("r1", ""),
    ]  # fmt: skip
    assert [r.simulated_s for r in rows] == [1.0, 2.0, 2.5, 3.0]
    assert rows[0].compiled_bytes == 4 * GIB


def test_an_estimate_that_is_too_low_keeps_others_from_being_compiled(plan: Plan) -> None:
    """The first two take twice their estimate: what would be too large by that is left out."""
    table = {1: (6, 12, 1.0), 2: (6, 12, 1.0), 3: (6, 12, 1.0), 4: (4, 8, 5.0), 5: (3, 6, 6.0)}
    chosen, compiled = run(plan, table)
    assert compiled == ["r1", "r2", "r4", "r5"]
    assert chosen.plan.rules == ("r4",)
    assert [r.verdict for r in chosen.plan.verified] == [
        "chosen",
        "",
        "does not fit",
        "does not fit",
    ]


@pytest.mark.parametrize(
    ("other", "is_taken"),
    [((9, 1.5), True), ((4, 2.5), False), ((11, 0.1), False), ((4, -1.0), False)],
)
def test_other_options_are_tried_on_the_quickest_and_kept_where_it_is_quicker_and_fits(
    plan: Plan, other: tuple[float, float], is_taken: bool
) -> None:
    chosen, compiled = run(plan, {1: (4, 4, 3.0), 2: (4, 4, 2.0), 3: (4, 4, 2.5)}, other=other)
    assert compiled == ["r1", "r2", "r3", "r2"] and chosen.plan.rules == ("r2",)
    assert chosen.plan.compiler_options == (OTHERS.options if is_taken else ())
    assert next(r.rules for r in chosen.plan.verified) == ("r2 with haste" if is_taken else "r2")
    assert chosen.plan.verified[0].verdict == "chosen"


def test_what_the_compiler_refuses_is_passed_over(plan: Plan) -> None:
    table = {1: (4, 4, -1.0), 2: (4, 4, 2.0), 3: (4, 4, 3.0)}
    chosen, compiled = run(plan, table)
    assert compiled == ["r1", "r2", "r3"]
    assert chosen.plan.rules == ("r2",)


def test_nothing_that_fits_is_an_error_with_the_figures(plan: Plan) -> None:
    with pytest.raises(PlanError, match=r"no layout of MLP fits .* the least of 2 needs \d+ bytes"):
        run(plan, {1: (6, 12, 1.0), 2: (6, 13, 1.0)})


def test_all_refused_says_what_the_compiler_said(plan: Plan) -> None:
    with pytest.raises(PlanError, match="the compiler crashed"):
        run(plan, {1: (6, 12, -1.0)})
