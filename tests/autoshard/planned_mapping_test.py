"""`memory_mapping=`: what it may be, what is searched when, and what a plan keeps of it."""

import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import pytest

import autoshard
from autoshard import planned_mapping
from autoshard.html_report.single import page
from autoshard.memory_record import BASIS, MappedCost, MemoryMappingRecord
from autoshard.plan import Plan
from autoshard.planned_mapping import (
    NOTE_PREFIX,
    MemoryMappingWarning,
    PlannedMapping,
    as_budget,
    libtpu_version,
)
from autoshard.report_file import from_json, to_json
from autoshard.target import Target
from autoshard.topology import Topology
from memory_planner.mapper import Budget, map_memory
from memory_planner.overrides import ORDER_OPTION
from tests.autoshard import synthetic_report
from tests.memory_planner.chain_compiler import ChainCompiler, step_cycles_with
from tests.passes.hlo.texts import machine_of

BUDGET = Budget(assignments=24, compiles=6, sweep=(), strategy="random")
RECORD = MemoryMappingRecord(
    MappedCost(100.0, 20.0, 2.0**20), MappedCost(90.0, 0.0, 2.0**21), "luck", 7, 40, 6, "0.0.1"
)


@functools.cache
def tpu_target() -> Target:
    return Target(Topology.parse("v5e:1x1"), (), None)


class Stage:
    """A planned program on a TPU whose compiler is a `ChainCompiler`; counts searches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, compiler: ChainCompiler) -> None:
        self.searches: list[Budget] = []
        self.user_options: Mapping[str, Any] = {}

        def made(lowered: Any, topology: str, devices: Any, options: Any) -> ChainCompiler:
            assert topology == "v5e:1x1"
            self.user_options = dict(options)
            return compiler

        def search(found: Any, machine: Any, budget: Budget, say: Any) -> Any:
            self.searches.append(budget)
            return map_memory(found, machine_of(), budget, say)

        monkeypatch.setattr(planned_mapping, "LoweredCompiler", made)
        monkeypatch.setattr(planned_mapping, "map_memory", search)
        mesh = type("FakeMesh", (), {"devices": type("D", (), {"flat": ()})})
        monkeypatch.setattr(Target, "mesh", lambda self, split: mesh)
        monkeypatch.setattr(Target, "machine", lambda self, split: machine_of())


def settle(
    plan: Plan, budget: Budget | None, target: Target | None = None, **options: Any
) -> tuple[Plan, PlannedMapping, list[str]]:
    lines: list[str] = []
    mapping = PlannedMapping(budget, target or tpu_target(), lines.append)
    lowered: Any = object()
    return mapping.settled(plan, lowered, options), mapping, lines


def test_what_memory_mapping_may_be() -> None:
    assert as_budget("off") is None
    assert as_budget("auto") == Budget()
    assert as_budget(BUDGET) is BUDGET
    for bad in ("on", None, True, 40):
        with pytest.raises(autoshard.ModelError, match="use 'off', 'auto' or an autoshard"):
            as_budget(bad)
    with pytest.raises(autoshard.ModelError, match="memory_mapping='fast' is unknown"):
        autoshard.compile(lambda x: x, "cpu:8", memory_mapping="fast")  # type: ignore[arg-type]


def test_options_are_found_once_and_kept_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = ChainCompiler()
    stage = Stage(monkeypatch, compiler)
    plan, mapping, lines = settle(synthetic_report.tiny_plan(), BUDGET, xla_mine="7")
    assert dict(plan.compiler_options).keys() >= {ORDER_OPTION}
    assert sorted(compiler.fast(dict(plan.compiler_options))) == ["v.2", "v.3"]
    record = plan.memory_mapping
    assert record is not None and record.libtpu == libtpu_version() and record.method == "random"
    assert record.default == MappedCost(step_cycles_with(0, 1), 0.0, 0.0)
    assert record.best == MappedCost(step_cycles_with(2, 3), 0.0, 0.0)
    assert stage.user_options == {"xla_mine": "7"} and stage.searches == [BUDGET]
    assert [picture.name for picture in mapping.pictures] == ["default", "best"]
    assert f"memory mapping: {record}" in lines
    lowered: Any = object()
    assert mapping.settled(plan, lowered) is plan and len(stage.searches) == 1
    # The user's own options win.
    merged = mapping.options(plan, {ORDER_OPTION: "mine", "other": 1})
    assert merged[ORDER_OPTION] == "mine" and merged["other"] == 1
    assert mapping.options(plan) == dict(plan.compiler_options)


def test_a_loaded_plan_is_not_searched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    stage = Stage(monkeypatch, ChainCompiler())
    plan, _, _ = settle(synthetic_report.tiny_plan(), BUDGET)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    for budget in (None, BUDGET):
        again, mapping, _ = settle(loaded, budget)
        assert again is loaded and mapping.options(again) == dict(plan.compiler_options)
    # Not even where nothing better than the compiler's own was found.
    nothing = dataclasses.replace(loaded, compiler_options=())
    assert settle(nothing, BUDGET)[0] is nothing
    assert len(stage.searches) == 1


def test_another_libtpu_is_warned_about_and_the_options_are_used() -> None:
    plan = dataclasses.replace(
        synthetic_report.tiny_plan(), compiler_options=(("a", "b"),), memory_mapping=RECORD
    )
    with pytest.warns(MemoryMappingWarning, match=r"found with libtpu 0\.0\.1, and this is"):
        again, mapping, _ = settle(plan, None)
    assert mapping.options(again) == {"a": "b"}


def test_off_and_other_platforms_search_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, ChainCompiler())
    plan = synthetic_report.tiny_plan()
    assert settle(plan, None)[0] is plan
    cpu = Target(Topology("cpu", 8), (), None)
    noted, mapping, _ = settle(plan, Budget(), cpu)
    assert noted.notes[-1] == f"{NOTE_PREFIX} steers the TPU compiler; cpu has none"
    assert not stage.searches
    carried = dataclasses.replace(plan, compiler_options=(("xla_tpu_x", "1"),))
    assert mapping.options(carried, {"xla_cpu_y": 1}) == {"xla_cpu_y": 1}


def test_options_of_chip_plan_and_user_in_this_order(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(Topology.parse("v6e:2x2"), (), None)
    scoped = "xla_tpu_scoped_vmem_limit_kib"
    plan, mapping, _ = settle(synthetic_report.tiny_plan(), None, target)
    assert mapping.options(plan) == mapping.options_of_chip == {scoped: "65536"}
    quick = dataclasses.replace(plan, compiler_options=((scoped, "1"), ("xla_a", "1")))
    assert mapping.options(quick) == {scoped: "1", "xla_a": "1"}
    assert mapping.options(quick, {"xla_a": "2"}) == {scoped: "1", "xla_a": "2"}
    # A mapping is searched for under the options that the plan has, and joins them.
    stage = Stage(monkeypatch, ChainCompiler())
    mapped, _, _ = settle(quick, BUDGET)
    assert stage.user_options == {scoped: "1", "xla_a": "1"}
    assert dict(mapped.compiler_options).keys() >= {scoped, "xla_a", ORDER_OPTION}


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (ChainCompiler(heeds=False), "does not follow xla_tpu_msa_sort_order_overrides"),
        (ChainCompiler(explains=False), "log holds no memory-space assignment"),
        (ChainCompiler(dies_of="v.0"), "no code for v.0"),
    ],
)
def test_what_cannot_be_mapped_stays_as_it_is_and_says_why(
    monkeypatch: pytest.MonkeyPatch, compiler: ChainCompiler, reason: str
) -> None:
    Stage(monkeypatch, compiler)
    with pytest.warns(MemoryMappingWarning, match=reason) as caught:
        plan, mapping, _ = settle(synthetic_report.tiny_plan(), BUDGET)
    assert f"libtpu {libtpu_version()}" in str(caught[0].message)
    assert plan.compiler_options == () and plan.memory_mapping is None and not mapping.pictures
    assert plan.notes[-1] == str(caught[0].message)


def test_no_contention_is_noted_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    Stage(monkeypatch, ChainCompiler(capacity=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan, _, _ = settle(synthetic_report.tiny_plan(), BUDGET)
    assert "no contention for fast memory" in plan.notes[-1]


def test_plans_of_the_version_before_are_read() -> None:
    data = json.loads(json.dumps(synthetic_report.tiny_plan().to_json()))
    assert data["version"] == 5
    old = {k: v for k, v in data.items() if k not in ("compiler_options", "memory_mapping")}
    plan = Plan.from_json({**old, "version": 4})
    assert plan == synthetic_report.tiny_plan() and plan.compiler_options == ()
    with pytest.raises(autoshard.PlanError, match="plan version 3 and this autoshard reads 4 and"):
        Plan.from_json({**old, "version": 3})
    for damage in ({"memory_mapping": {"default": 1}}, {"compiler_options": [["one"]]}):
        with pytest.raises(autoshard.PlanError, match="damaged"):
            Plan.from_json({**data, **damage})


def test_explanation_and_page_show_before_and_after(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    plan = dataclasses.replace(
        synthetic_report.tiny_plan(), compiler_options=(("xla_a", "<b>"),), memory_mapping=RECORD
    )
    text = " ".join(plan.explain().split())
    assert BASIS in text and "best: luck 90 0 90 2.00 MiB 25.00%" in text
    assert "default 100 20 120 1.00 MiB 0.00%" in text
    Stage(monkeypatch, ChainCompiler())
    _, mapping, _ = settle(synthetic_report.tiny_plan(), BUDGET)
    report = dataclasses.replace(
        synthetic_report.fitting(), plan=plan, memory_pictures=mapping.pictures
    )
    assert from_json(json.loads(json.dumps(to_json(report)))) == report
    html = page(report, tmp_path)
    assert html.count("<svg viewBox") == 2 and 'id="memory-mapping"' in html and "25.00%" in html
    assert "xla_a = &lt;b&gt;" in html and BASIS in html
    bare = page(dataclasses.replace(report, memory_pictures=()), tmp_path)
    assert "<svg viewBox" not in bare and "nothing was searched" in bare
    assert "memory-mapping" not in page(synthetic_report.fitting(), tmp_path)


def test_auto_on_cpu_runs_and_is_noted() -> None:
    x = jax.ShapeDtypeStruct((8, 8), "float32")
    compiled: Any = autoshard.compile(
        lambda p, x: x @ p, "data=8", batch=(x, x), rules="data", memory_mapping="auto"
    )
    compiled.memory_report()
    assert any(note.startswith(NOTE_PREFIX) for note in compiled.plan.notes)
    assert compiled.plan.compiler_options == ()
