"""Compiling in this process and in one of its own, and what happens when that one does not live."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autoshard import aot, compile_process, compiling
from autoshard.compile_messages import CompileReply, CompileRequest
from autoshard.compile_process import compile_isolated
from autoshard.compiled_program import CompiledMemory, LargeBuffer
from autoshard.compiling import compile_program
from autoshard.errors import CompileError, DeviceError, MeshError
from autoshard.peak_buffers import PeakMemory

REQUEST = CompileRequest("v5p:2x2x1", (0, 200001), b"\x00module\n", b"\n\xffoptions")


def lowered_for(devices: tuple[Any, ...]) -> jax.stages.Lowered:
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct(
        (8, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data"))
    )
    return jax.jit(lambda x: (x @ x.T).sum() + x, donate_argnums=0).lower(x)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files and the cache go where the test can look."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("AUTOSHARD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def files_under(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def children() -> list[int]:
    """Processes that this one started and that have not ended."""
    listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(number) for path in listed for number in path.read_text().split()]


def test_a_cpu_program_is_what_jax_compiles(folders: Path) -> None:
    devices = aot.devices("cpu:4")
    lowered = lowered_for(devices)
    program = compile_program(lowered, topology="cpu:4", devices=devices)
    direct = lowered.compile()
    assert program.hlo_text == direct.as_text()
    assert program.memory == aot.compiled_memory(direct.memory_analysis())
    assert program.memory is not None and program.memory.aliased_bytes == 2 * 16 * 4
    assert not program.cached and program.out_of_memory is None
    assert dict(program.versions)["jax"] == jax.__version__
    assert not files_under(folders / "temporary")


def test_a_second_time_nothing_compiles(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = aot.devices("cpu:4")
    first = compile_program(lowered_for(devices), topology="cpu:4", devices=devices)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiling, "answer_lowered", never)
    second = compile_program(lowered_for(devices), topology="cpu:4", devices=devices)
    assert second.cached
    assert (second.hlo_text, second.memory) == (first.hlo_text, first.memory)
    assert second.compile_s == first.compile_s
    with pytest.raises(AssertionError, match="compiled again"):
        compile_program(lowered_for(devices), topology="cpu:4", devices=devices, cache=False)


def test_less_memory_than_the_program_needs_is_an_answer(folders: Path) -> None:
    devices = aot.devices("cpu:4")
    lowered = lowered_for(devices)
    fits = compile_program(lowered, topology="cpu:4", devices=devices)
    assert fits.memory is not None
    needed = fits.memory.total_bytes
    for limit in (needed, needed - 1):
        program = compile_program(lowered, topology="cpu:4", devices=devices, hbm_bytes=limit)
        assert program.cached
        assert (program.out_of_memory is None) == (limit == needed)
    assert program.out_of_memory is not None and program.memory is None and not program.hlo_text
    assert program.out_of_memory.needed_bytes == needed
    assert program.out_of_memory.available_bytes == needed - 1
    assert program.out_of_memory.buffers


def test_devices_must_be_those_of_the_program() -> None:
    devices = aot.devices("cpu:4")
    with pytest.raises(MeshError, match=r"partitioned for 4 devices .* 2"):
        compile_program(lowered_for(devices), topology="cpu:2", devices=devices[:2])


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("cpu:4000", DeviceError, "xla_force_host_platform_device_count=4000"),
        ("v5e", MeshError, "cannot read topology 'v5e'"),
        ("v5e:2x", MeshError, "cannot read"),
        ("v5e:0x4", MeshError, "cannot read"),
        ("0x v5e:2x4", MeshError, "cannot read"),
        ("", MeshError, "cannot read"),
        ("quantum:8", MeshError, "a100, b200, h100, h200"),
    ],
)
def test_names_that_no_compiler_knows(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        aot.devices(name)


@pytest.mark.parametrize(
    ("name", "package"), [("v5e:2x4", "jax[tpu]"), ("h100:8", "jax-cuda13-plugin")]
)
def test_a_missing_compiler_names_the_command(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(DeviceError, match=re.escape("pip install")) as caught:
        aot.devices(name)
    assert package in str(caught.value)


def test_gpu_descriptions_say_how_much_memory_there_is() -> None:
    assert aot.gpu_chips() == ("a100", "b200", "h100", "h200")
    sizes = [aot.device_memory_bytes(f"{chip}:8") for chip in aot.gpu_chips()]
    assert [round(size / 10**9) for size in sizes if size] == [85, 192, 85, 151]
    assert aot.device_memory_bytes("v5e:2x4") is None


def test_messages_come_through() -> None:
    assert CompileRequest.from_bytes(REQUEST.to_bytes()) == REQUEST
    reply = CompileReply(
        "HloModule é\n\n",
        CompiledMemory(1, 2, 3, 4, 5),
        "",
        0.1,
        PeakMemory(9, (LargeBuffer(1, "f32[]", "x", "argument"),)),
    )
    assert CompileReply.from_bytes(reply.to_bytes()) == reply


@pytest.mark.parametrize("length", [0, 1, 30, -1])
def test_a_message_that_is_cut_off_is_an_error(length: int) -> None:
    data = CompileReply("HloModule", None, "", 0.1, None).to_bytes()
    with pytest.raises(ValueError):
        CompileReply.from_bytes(data[:length])


def kill_the_compiler(_: float) -> None:
    for child in children():
        os.kill(child, signal.SIGKILL)


def test_a_killed_compiler_is_an_error_and_leaves_nothing(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_process, "_PROGRESS_INTERVAL_S", 0.05)
    devices = aot.devices("cpu:4")
    request = aot.make_request(lowered_for(devices), "cpu:4", devices, {})
    with pytest.raises(CompileError, match=r"killed by SIGKILL .*memory ran out"):
        compile_isolated(request, 60.0, kill_the_compiler)
    assert not children()
    assert not files_under(folders)


def test_time_is_up(folders: Path) -> None:
    with pytest.raises(CompileError, match=r"ended after 0\.1 s: pass a larger timeout_s"):
        compile_isolated(REQUEST, 0.1)
    assert not children()
    assert not files_under(folders)


def test_an_interrupt_ends_the_compiler(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_process, "_PROGRESS_INTERVAL_S", 0.05)

    def interrupt(elapsed_s: float) -> None:
        assert elapsed_s > 0 and children()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_isolated(REQUEST, 60.0, interrupt)
    assert not children()
    assert not files_under(folders)


def test_no_room_for_its_files(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folders / "gone"))
    with pytest.raises(CompileError, match=r"cannot start a process .* under .*gone"):
        compile_isolated(REQUEST, 60.0)
    assert not children()


def test_a_crash_tells_the_last_words_and_nothing_else_does(
    folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = CompileRequest("cpu:1", (0,), b"no module", b"")
    with pytest.raises(CompileError, match=r"ended with status 1.*It said last: .*MLIRError"):
        compile_isolated(broken, 60.0)
    said = capfd.readouterr()
    assert not said.out and not said.err
    assert not files_under(folders)


def test_a_compiler_whose_starter_is_gone_cleans_up_and_leaves(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.mkdir()
    (dump / "module.txt").write_text("half")
    nobody = "1"  # never the parent of what a test starts
    worker = subprocess.Popen(
        [sys.executable, "-m", "autoshard.compile_worker", "1", str(dump), nobody],
        stdin=subprocess.PIPE,  # left open: the request does not come
        cwd=Path(__file__).parents[2],
    )
    with worker:
        assert worker.wait(60) == 1
    assert not dump.exists()
