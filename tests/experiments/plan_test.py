"""The planning runner: what it writes, what it says, how it ends."""

import dataclasses
import io
import json
import os
import pathlib
import shlex
from typing import Any

import pytest
from absl import flags

import autoshard
from autoshard import html_report
from autoshard.compile_cache import FOLDER_VARIABLE
from autoshard.compile_report import CompileReport
from autoshard.compiled_program import CompiledProgram
from autoshard.plan import Plan
from autoshard.report_file import load_report, save_report
from experiments import plan as runner
from experiments.flag_fields import ConfigError, define_flags, from_flags
from experiments.plan_config import PlanConfig
from experiments.waiting import Waiter
from tests.autoshard import synthetic_report

FILES = {"report.html", "report.json", "plan.json", "trace.json", "hlo.txt"}


class StandInCompiled:
    """Has the interface of `autoshard.compile`'s result, and a report that is there already."""

    def __init__(self, report: CompileReport):
        self.plan = report.plan
        self._report = report
        self.settings: dict[str, Any] = {}
        self.compiled_program: CompiledProgram | None = None

    def compile_report(self, **settings: Any) -> CompileReport:
        self.settings = settings
        settings["progress"](61.0)
        fits = self._report.out_of_memory is None
        text = "HloModule stand_in" if fits else ""
        self.compiled_program = CompiledProgram(
            "v5p:2x2x2", text, self._report.memory, self._report.out_of_memory, 1.0, False, ()
        )
        return dataclasses.replace(self._report, command=settings["command"])


class StandInCompile:
    """Stands in for `autoshard.compile`: lists its calls."""

    def __init__(self) -> None:
        self.report = synthetic_report.fitting()
        self.calls: list[dict[str, Any]] = []
        self.results: list[StandInCompiled] = []

    def __call__(self, model: Any, mesh: str, **keywords: Any) -> StandInCompiled:
        self.calls.append({"mesh": mesh, **keywords})
        plan = keywords["plan"]
        report = self.report if plan is None else dataclasses.replace(self.report, plan=plan)
        self.results.append(StandInCompiled(report))
        return self.results[-1]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandInCompile:
    compile_stand_in = StandInCompile()
    monkeypatch.setattr(autoshard, "compile", compile_stand_in)
    return compile_stand_in


@pytest.fixture(autouse=True)
def kept_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner sets it, and it is not to be left behind for other tests' subprocesses."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


def main(*arguments: str) -> int:
    values = flags.FlagValues()
    define_flags(PlanConfig, values)
    rest = values(["plan", *arguments])
    return runner.main(rest, values)


def parse(*arguments: str) -> PlanConfig:
    values = flags.FlagValues()
    define_flags(PlanConfig, values)
    values(["plan", *arguments])
    return from_flags(PlanConfig, values)


def test_flags_fill_the_config_and_come_back() -> None:
    config = parse("--topology=v5p:4x4x4", "--mesh=data=16,model=4", "--nocache", "--seq_len=64")
    assert (config.dtype, config.cache, config.output) == ("bfloat16", False, "runs/plan/gpt2_tiny")
    words = shlex.split(config.command())
    assert words[:3] == ["python", "-m", "experiments.plan"]
    assert parse(*words[3:]) == config


def test_every_flag_has_a_help() -> None:
    for field in dataclasses.fields(PlanConfig):
        assert len(field.metadata["help"]) > 20, field.name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "--topology is empty: name the machine"),
        ({"topology": "cpu:8", "timeout_s": 0.0}, "--timeout_s=0.0 must be above 0"),
        ({"topology": "cpu:8", "batch_size": 0}, "--batch_size=0 must be at least 1"),
        ({"plan": "a", "compare": "b,c"}, "exclude each other"),
        ({"topology": "cpu:8", "task": "serve"}, "--task='serve' is none of train, prefill"),
        ({"topology": "cpu:8", "capacity": 8}, "--capacity is of the cache of --task=prefill"),
        ({"topology": "cpu:8", "task": "decode", "capacity": 0}, "--capacity=0 must be at least 1"),
        ({"topology": "cpu:8", "task": "decode", "remat": "full"}, "--task=decode takes no passes"),
    ],
)
def test_bad_values_are_explained(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PlanConfig(**values)


def test_tasks_of_inference_are_planned_from_sizes(
    stand_in: StandInCompile, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model=llama3_tiny", "--topology=v5p:2x2x2", f"--out={tmp_path}")
    assert main(*arguments, "--task=decode", "--batch_size=4", "--capacity=64") == 0
    assert main(*arguments, "--task=prefill", "--batch_size=4", "--seq_len=8") == 0
    assert main(*arguments, "--task=decode", "--capacity=10000") == 2
    assert "capacity=10000 is outside 1..max_seq_len=128" in capsys.readouterr().err
    decode, prefill = stand_in.calls
    assert (decode["task"], decode["batch"]) == ("decode", autoshard.InferenceShape(4, 64, 64))
    assert (prefill["task"], prefill["batch"]) == ("prefill", autoshard.InferenceShape(4, 8, 128))
    assert "optimizer" not in decode


def test_it_writes_all_files(
    stand_in: StandInCompile, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    arguments = ("--topology=v5p:2x2x2", "--mesh=data=2,model=4", "--rules=zero3+redco",
                 "--batch_size=8", "--seq_len=16", "--timeout_s=60", f"--out={out}")  # fmt: skip
    assert main(*arguments) == 0
    assert {path.name for path in out.iterdir()} == FILES
    (call,), (result,) = stand_in.calls, stand_in.results
    assert call["mesh"] == "v5p:2x2x2 data=2,model=4"
    assert (call["rules"], call["dtype"]) == (["zero3", "redco"], "bfloat16")
    assert call["batch"]["tokens"].shape == (8, 16)
    assert (result.settings["cache"], result.settings["timeout_s"]) == (True, 60.0)
    report = load_report(out / "report.json")
    assert parse(*shlex.split(report.command)[3:]) == parse(*arguments)
    assert Plan.load(out / "plan.json") == report.plan
    assert json.loads((out / "trace.json").read_text())["traceEvents"]
    assert (out / "hlo.txt").read_text() == "HloModule stand_in"
    assert 'href="trace.json"' in (out / "report.html").read_text()
    said = capsys.readouterr().out
    assert html_report.summary(report) in said
    assert f"wrote {out / 'report.html'}" in said and "61 s" in said


def test_what_does_not_fit_ends_with_4_and_is_reported(
    stand_in: StandInCompile, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--topology=v5p:2x2x2", f"--out={tmp_path}") == 0
    stand_in.report = synthetic_report.too_large()
    assert main("--topology=v5p:2x2x2", f"--out={tmp_path}") == 4
    # The earlier trace and program are not this one's.
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json", "plan.json"}
    assert "Does not fit" in capsys.readouterr().out
    assert load_report(tmp_path / "report.json").out_of_memory is not None


def test_a_saved_plan_brings_its_machine_and_mesh(
    stand_in: StandInCompile, tmp_path: pathlib.Path
) -> None:
    stand_in.report.plan.save(tmp_path / "plan.json")
    assert main(f"--plan={tmp_path / 'plan.json'}", f"--out={tmp_path}") == 0
    assert stand_in.calls[0]["mesh"] == "v5p:2x2x2 data=2,model=4"
    assert stand_in.calls[0]["plan"] == stand_in.report.plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology=cpu:8", "--model=lama3_tiny"), "llama3_tiny"),
        (("--topology=v5q:4x4x4",), "v5q"),
        (("--topology=cpu:8", "--mesh=data=3"), "data=8"),
        (("--topology=cpu:8", "--model=mlp", "--seq_len=8"), "Model 'mlp'"),
        (("--topology=cpu:8", "surplus"), "Unexpected argument 'surplus'"),
        (("--plan=missing.json",), "cannot read the plan missing.json"),
        (("--compare=missing.json,other.json",), "cannot read the plan missing.json"),
        (("--compare=one",), "--compare takes two plans or reports, not 1"),
        (("--compare=one", "two", "three"), "--compare takes two plans or reports, not 3"),
        ((), "--topology is empty"),
    ],
)
def test_bad_input_ends_with_2_and_one_paragraph(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(*arguments, f"--out={tmp_path}") == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1


def test_a_file_in_place_of_the_directory(
    stand_in: StandInCompile, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main("--topology=v5p:2x2x2", f"--out={tmp_path / 'file'}") == 2
    assert "cannot be made" in capsys.readouterr().err
    assert not stand_in.calls


def test_comparing_takes_directories_reports_and_plans(
    stand_in: StandInCompile, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        save_report(stand_in.report, tmp_path / name / "report.json")
        stand_in.report.plan.save(tmp_path / name / "plan.json")
    old, new, out = (str(tmp_path / name) for name in ("old", "new", "out"))
    assert main("--compare", old, new, f"--out={out}") == 0
    assert main(f"--compare={old}/report.json,{new}/plan.json", f"--out={out}") == 0
    assert not stand_in.calls, "there are reports of both"
    assert [path.name for path in pathlib.Path(out).iterdir()] == ["compare.html"]
    said = capsys.readouterr().out
    assert f"old is {old}" in said and f"wrote {out}/compare.html" in said


def test_comparing_compiles_a_plan_that_has_no_report_of_its_own(
    stand_in: StandInCompile, tmp_path: pathlib.Path
) -> None:
    other = dataclasses.replace(stand_in.report.plan, notes=("changed since",))
    other.save(tmp_path / "plan.json")
    save_report(stand_in.report, tmp_path / "report.json")
    stand_in.report.plan.save(tmp_path / "second.json")
    paths = (str(tmp_path / "plan.json"), str(tmp_path / "second.json"))
    assert main("--compare", *paths, f"--out={tmp_path / 'out'}") == 0
    (call,) = stand_in.calls  # The second is the plan of the report beside it.
    assert call["plan"] == other and call["mesh"] == "v5p:2x2x2 data=2,model=4"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("runs/a", "runs/b"), ("a", "b")),
        (("runs/a/plan.json", "runs/b/report.json"), ("a", "b")),
        (("a/same", "b/same"), ("A", "B")),
    ],
)
def test_short_names(paths: tuple[str, str], names: tuple[str, str]) -> None:
    assert runner.short_names(paths) == names


def test_the_whole_way_on_cpu(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    out = tmp_path / "out"
    arguments = ("--model=llama3_tiny", "--model_overrides=num_layers=1,vocab_size=64",
                 "--topology=cpu:8", "--batch_size=8", "--seq_len=16", "--rules=zero3+redco",
                 "--mesh=data=2,model=4", f"--out={out}")  # fmt: skip
    assert main(*arguments) == 0
    assert {path.name for path in out.iterdir()} == FILES
    report = load_report(out / "report.json")
    assert report.timeline is not None and report.timeline.step_s > 0 and not report.cached
    assert (out / "hlo.txt").read_text().startswith("HloModule")
    assert "step time" in capsys.readouterr().out

    assert main(f"--plan={out / 'plan.json'}", *arguments) == 0
    again = load_report(out / "report.json")
    assert again.plan == report.plan and again.cached
    assert main(*arguments, "--nocache") == 0
    assert not load_report(out / "report.json").cached


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_waiting_says_how_long_already() -> None:
    times = iter([10.0, 75.5])
    stream = io.StringIO()
    with Waiter(stream, every_s=30.0, clock=lambda: next(times)).phase("compiling") as tick:
        for seconds in (1.0, 29.0, 31.0, 32.0, 60.0, 61.0):
            tick(seconds)
    assert stream.getvalue().splitlines() == [
        "compiling ...",
        "compiling ... 31 s",
        "compiling ... 60 s",
        "compiling: 65.5 s",
    ]


def test_waiting_on_a_terminal_spins_and_leaves_one_line() -> None:
    stream = Terminal()
    with Waiter(stream).phase("compiling") as tick:
        tick(1.0)
    assert "compiling" in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].endswith(" s")


def test_a_failed_wait_is_not_called_done() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Waiter(stream).phase("compiling"):
        raise RuntimeError
    assert stream.getvalue() == "compiling ...\n"
