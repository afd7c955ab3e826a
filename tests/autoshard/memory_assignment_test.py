"""Compilations that end early, and the compiler of a lowered program as the mapper sees it."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pytest

import autoshard
from autoshard import (
    aot,
    compile_process,
    memory_assignment,
    memory_compiler,
    memory_mapping,
)
from autoshard.compile_messages import CompileReply, CompileRequest
from autoshard.compile_process import compile_until
from autoshard.compiled_program import CompiledProgram
from autoshard.errors import CompileError, MeshError
from autoshard.memory_assignment import AssignedProgram, assign_memory
from autoshard.memory_compiler import LoweredCompiler
from memory_planner.evaluation import CompilerFailure
from memory_planner.mapper import Budget
from tests.autoshard.compiling_test import REQUEST, children, lowered_for
from tests.memory_planner.chain_compiler import ChainCompiler, step_cycles_with

DUMPED = "module_0001.jit_f.after_optimizations_after_buffer_assignment.txt"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def request_for_cpu() -> CompileRequest:
    devices = aot.devices("cpu:4")
    return aot.make_request(lowered_for(devices), "cpu:4", devices, {})


def test_what_is_found_ends_the_compilation(temporary: Path) -> None:
    folders: list[Path] = []

    def look(folder: Path) -> str | None:
        folders.append(folder)
        return "found" if len(folders) == 3 else None

    found, said = compile_until(REQUEST, look, 60.0, {"AUTOSHARD_TEST": "1"})
    assert found == "found" and isinstance(said, str)
    assert len(folders) == 3 and not children()
    assert not folders[0].exists() and not list(temporary.iterdir())


def test_a_look_that_never_finds_ends_with_the_process(temporary: Path) -> None:
    # There is no compiler for devices of the CPU that are not here.
    with pytest.raises(CompileError, match="the compiler for cpu:4 refuses the program: NOT_FOUND"):
        compile_until(request_for_cpu(), lambda folder: None, 120.0, {})
    assert not children() and not list(temporary.iterdir())


def test_a_compilation_that_shows_nothing_says_so(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    def start(request: Any, answer: IO[bytes], *_: Any) -> subprocess.Popen[bytes]:
        answer.write(CompileReply("HloModule x", None, "", 0.1, None).to_bytes())
        answer.flush()
        return subprocess.Popen(["true"], start_new_session=True)

    monkeypatch.setattr(compile_process, "_start", start)
    with pytest.raises(CompileError, match="did not show what was looked for"):
        compile_until(REQUEST, lambda folder: None, 60.0, {})


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
def test_a_process_that_dies_is_told(temporary: Path, name: str) -> None:
    def kill(folder: Path) -> None:
        for child in children():
            os.kill(child, signal.Signals[name])

    with pytest.raises(CompileError, match=f"killed by {name}"):
        compile_until(REQUEST, kill, 60.0, {})
    assert not children() and not list(temporary.iterdir())


def test_time_is_up(temporary: Path) -> None:
    with pytest.raises(CompileError, match="give it more time"):
        compile_until(REQUEST, lambda folder: None, 0.1, {})
    assert not children() and not list(temporary.iterdir())


def test_the_largest_dump_is_taken_once_it_has_stopped_growing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments: list[Mapping[str, str]] = []

    def until(request: Any, look: Any, timeout_s: float, environment: Any) -> tuple[str, str]:
        environments.append(environment)
        large, small = tmp_path / DUMPED, tmp_path / DUMPED.replace("0001", "0002")
        assert look(tmp_path) is None  # nothing there
        (tmp_path / "module_0001.before.txt").write_text("another file")
        small.write_text("small")
        large.write_text("")
        assert look(tmp_path) is None
        large.write_text("large, half")
        assert look(tmp_path) is None  # it grew
        large.write_text("large, all of it")
        assert look(tmp_path) is None
        return look(tmp_path), "the log"

    monkeypatch.setattr(memory_assignment, "compile_until", until)
    assert assign_memory(REQUEST, with_log=True) == AssignedProgram("large, all of it", "the log")
    assert assign_memory_again(tmp_path).log_text == ""
    with_log, without = environments
    assert "memory_space_assignment=3" in with_log["TPU_VMODULE"] and not without


def assign_memory_again(folder: Path) -> AssignedProgram:
    """Without the log, in an empty folder."""
    for path in folder.iterdir():
        path.unlink()
    return assign_memory(REQUEST, with_log=False)


def test_a_lowered_programs_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = aot.devices("cpu:4")
    lowered = lowered_for(devices)
    compiler = LoweredCompiler(lowered, "cpu:4", devices, (("a", "1"), ("b", "1")), 9.0)
    asked: list[Any] = []

    def assign(request: CompileRequest, *, with_log: bool, timeout_s: float) -> AssignedProgram:
        asked.append((request, with_log, timeout_s))
        return AssignedProgram("hlo", "log")

    made: list[Mapping[str, Any]] = []

    def compiled(found: Any, **settings: Any) -> CompiledProgram:
        made.append(settings)
        return CompiledProgram("cpu:4", "code", None, None, 0.1, False, ())

    requests: list[Mapping[str, Any]] = []

    def request_of(found: Any, topology: str, devices: Any, options: Any) -> CompileRequest:
        requests.append(options)
        return REQUEST

    monkeypatch.setattr(memory_compiler, "assign_memory", assign)
    monkeypatch.setattr(memory_compiler, "compile_program", compiled)
    monkeypatch.setattr(memory_compiler.aot, "make_request", request_of)
    assert compiler.assign({"b": "2"}, with_log=True) == ("hlo", "log")
    assert asked == [(REQUEST, True, 9.0)]
    assert compiler.compile({"b": "2"}) == "code"
    # What is tried goes before the user's.
    assert requests == [{"a": "1", "b": "2"}] and made[0]["compiler_options"] == requests[0]


def test_refusals_and_what_does_not_fit_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = aot.devices("cpu:4")
    compiler = LoweredCompiler(lowered_for(devices), "cpu:4", devices)

    def refuse(*_: Any, **__: Any) -> Any:
        raise CompileError("the compiler refuses")

    monkeypatch.setattr(memory_compiler, "assign_memory", refuse)
    with pytest.raises(CompilerFailure, match="the compiler refuses"):
        compiler.assign({}, with_log=False)

    def too_large(*_: Any, **__: Any) -> CompiledProgram:
        verdict: Any = "20 GiB of 16 GiB"
        return CompiledProgram("cpu:4", "", None, verdict, 0.1, False, ())

    monkeypatch.setattr(memory_compiler, "compile_program", too_large)
    with pytest.raises(CompilerFailure, match="does not fit: 20 GiB of 16 GiB"):
        compiler.compile({})
    monkeypatch.setattr(memory_compiler, "compile_program", refuse)
    with pytest.raises(CompilerFailure, match="the compiler refuses"):
        compiler.compile({})


def test_map_memory_is_for_tpus(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered: Any = object()
    for topology in ("cpu:8", "h100:8"):
        with pytest.raises(MeshError, match=f"steers the TPU compiler, and '{topology}' is"):
            autoshard.map_memory(lowered, topology)
    chain = ChainCompiler()
    monkeypatch.setattr(memory_mapping, "LoweredCompiler", lambda *arguments: chain)
    budget = Budget(assignments=24, compiles=6, sweep=(), strategy="random")
    mapped = autoshard.map_memory(lowered, "v5e:1x1", budget, devices=())
    assert mapped.default.total == step_cycles_with(0, 1)
    assert chain.count("assign") == mapped.assignments > 1
