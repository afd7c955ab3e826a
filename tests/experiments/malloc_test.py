"""The runner of memory mapping: its flags, what it writes and says, how it ends."""

import ast
import dataclasses
import json
import os
import pathlib
import shlex
from typing import Any

import pytest
from absl import flags

import autoshard
from autoshard.compile_report import CompileReport
from autoshard.compiled_program import CompiledProgram
from autoshard.memory_record import BASIS, pictures_of, record_of
from autoshard.plan import Plan
from experiments import malloc as runner
from experiments.flag_fields import ConfigError, define_flags, from_flags
from experiments.malloc import MallocConfig
from memory_planner.mapper import Budget, Mapped, map_memory
from tests.autoshard import synthetic_report
from tests.memory_planner.chain_compiler import ChainCompiler, step_cycles_with
from tests.passes.hlo.texts import machine_of

FILES = {
    "options.json", "before.png", "after.png", "report.html", "report.json", "plan.json",
    "trace.json", "hlo.txt",
}  # fmt: skip


class StandIn:
    """Stands in for `autoshard.compile` and for its result, whose plan is mapped already."""

    def __init__(self) -> None:
        self.report = synthetic_report.fitting()
        self.calls: list[dict[str, Any]] = []
        self.compiled_program: CompiledProgram | None = None

    @property
    def plan(self) -> Plan:
        return self.report.plan

    def __call__(self, model: Any, mesh: str, **keywords: Any) -> "StandIn":
        self.calls.append({"mesh": mesh, **keywords})
        return self

    def compile_report(self, **settings: Any) -> CompileReport:
        self.compiled_program = CompiledProgram(
            "v5e:2x2", "HloModule x", self.report.memory, self.report.out_of_memory, 1.0, False, ()
        )
        return dataclasses.replace(self.report, command=settings["command"])

    def mapped(self, mapped: Mapped) -> None:
        plan = dataclasses.replace(
            self.plan, compiler_options=mapped.options, memory_mapping=record_of(mapped, "0.0.1")
        )
        self.report = dataclasses.replace(
            self.report, plan=plan, memory_pictures=pictures_of(mapped)
        )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand = StandIn()
    monkeypatch.setattr(autoshard, "compile", stand)
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    return stand


def main(*arguments: str) -> int:
    values = flags.FlagValues()
    define_flags(MallocConfig, values)
    return runner.main(values(["malloc", *arguments]), values)


def parse(*arguments: str) -> MallocConfig:
    values = flags.FlagValues()
    define_flags(MallocConfig, values)
    values(["malloc", *arguments])
    return from_flags(MallocConfig, values)


def test_flags_fill_the_config_and_come_back() -> None:
    config = parse(
        "--topology=v5e:2x2", "--budget_compiles=12", "--compiles=2", "--strategy=random",
        "--seed=3", "--nosweep",
    )  # fmt: skip
    assert config.budget() == Budget(12, 2, sweep=(), strategy="random", seed=3)
    assert parse("--topology=v5e:2x2").budget() == Budget()
    words = shlex.split(config.command())
    assert words[:3] == ["python", "-m", "experiments.malloc"]
    assert parse(*words[3:]) == config
    assert config.output == "runs/malloc/gpt2_tiny"


def test_every_flag_has_a_help() -> None:
    for field in dataclasses.fields(MallocConfig):
        assert len(field.metadata["help"]) > 15, field.name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "--topology is empty: name the TPU"),
        ({"topology": "v5e:2x2", "budget_compiles": 0}, "--budget_compiles=0 must be at least 1"),
        ({"topology": "v5e:2x2", "compiles": 0}, "--compiles=0 must be at least 1"),
        ({"topology": "v5e:2x2", "strategy": "luck"}, "--strategy 'luck' is none of alphazero"),
        ({"topology": "v5e:2x2", "play_seconds": 0.0}, "--play_seconds=0.0 must be above 0"),
        ({"topology": "v5e:2x2", "task": "serve"}, "--task='serve' is none of train"),
    ],
)
def test_bad_values_are_explained(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MallocConfig(**values)


def test_it_ends_with_table_options_and_pictures(
    stand_in: StandIn, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = ChainCompiler()
    budget = Budget(assignments=24, compiles=6, sweep=(), strategy="random")
    stand_in.mapped(map_memory(compiler, machine_of(), budget))
    arguments = ("--topology=v5e:2x2", "--strategy=random", f"--out={tmp_path}")
    assert main(*arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES
    (call,) = stand_in.calls
    assert call["memory_mapping"] == Budget(strategy="random") and call["mesh"] == "v5e:2x2"
    options = json.loads((tmp_path / "options.json").read_text())
    assert sorted(compiler.fast(options)) == ["v.2", "v.3"]
    assert dict(Plan.load(tmp_path / "plan.json").compiler_options) == options
    assert "<svg viewBox" in (tmp_path / "report.html").read_text()
    for name in ("before.png", "after.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert BASIS in said and "best: random" in said
    assert f"{step_cycles_with(0, 1):,}" in said and f"{step_cycles_with(2, 3):,}" in said
    # What is to be pasted is Python, and holds the options.
    pasted = said[said.index("compiler_options = {") : said.index("jax.jit(f)")]
    assert ast.literal_eval(pasted.partition("= ")[2].strip()) == options


def test_a_program_without_contention_says_so_in_one_line(
    stand_in: StandIn, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "after.png").write_bytes(b"of an earlier run")
    note = "memory mapping: jit_step has no contention for fast memory"
    plan = dataclasses.replace(stand_in.plan, notes=(*stand_in.plan.notes, note))
    stand_in.report = dataclasses.replace(stand_in.report, plan=plan)
    assert main("--topology=v5e:2x2", f"--out={tmp_path}") == 0
    assert json.loads((tmp_path / "options.json").read_text()) == {}
    assert not list(tmp_path.glob("*.png"))
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "memory mapping" in line] == [note]


def test_nothing_better_is_said(
    stand_in: StandIn, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = ChainCompiler(dies_of="v.3")
    budget = Budget(assignments=1, compiles=1, sweep=(), strategy="fixed orders")
    stand_in.mapped(map_memory(compiler, machine_of(), budget))
    stand_in.mapped(
        dataclasses.replace(
            map_memory(compiler, machine_of(), budget), options=(), method="default"
        )
    )
    assert main("--topology=v5e:2x2", f"--out={tmp_path}") == 0
    assert "Nothing better than the compiler's own mapping" in capsys.readouterr().out


def test_what_does_not_fit_ends_with_4(stand_in: StandIn, tmp_path: pathlib.Path) -> None:
    stand_in.report = synthetic_report.too_large()
    assert main("--topology=v5e:2x2", f"--out={tmp_path}") == 4


def test_a_saved_plans_own_mapping_is_searched_anew(
    stand_in: StandIn, tmp_path: pathlib.Path
) -> None:
    plan = dataclasses.replace(
        stand_in.plan, topology="v5e:2x4", compiler_options=(("xla_old", "1"),)
    )
    plan.save(tmp_path / "old.json")
    assert main(f"--plan={tmp_path / 'old.json'}", f"--out={tmp_path}") == 0
    assert stand_in.calls[0]["plan"] == dataclasses.replace(plan, compiler_options=())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology=h100:8",), "memory mapping steers the TPU compiler: name a TPU"),
        (("--topology=cpu:8",), "--topology=cpu:8 is cpu"),
        (("--topology=v5e:2x2", "surplus"), "Unexpected argument 'surplus'"),
        (("--topology=v5q:2x2",), "v5q"),
        (("--plan=missing.json",), "cannot read the plan missing.json"),
        (("--topology=v5e:2x2", "--model=lama3_tiny"), "llama3_tiny"),
    ],
)
def test_bad_input_ends_with_2_and_one_paragraph(
    stand_in: StandIn,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert main(*arguments, f"--out={tmp_path}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
