"""The real compilers, in a process of their own, for devices that are not here."""

import importlib.util
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import autoshard
import models
from autoshard import aot, compile_process
from autoshard.compiled_program import CompiledProgram
from autoshard.compiling import compile_program
from autoshard.out_of_memory import explain
from tests.hlo_checks import understood

pytestmark = [pytest.mark.aot, pytest.mark.xdist_group("libtpu")]

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
)
needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="jax-cuda13-plugin and jax-cuda13-pjrt are not installed",
)

SLICE = "v5e:2x2"

# On so little memory small programs do not fit; they are refused within a second.
SMALL_HBM_MIB = 160


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files and the cache go where the test can look."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("AUTOSHARD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def mesh_on(topology: str) -> Mesh:
    return Mesh(np.array(aot.devices(topology)), ("data",), axis_types=(AxisType.Auto,))


def spec(mesh: Mesh, shape: tuple[int, ...], *names: str | None) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, PartitionSpec(*names))
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)


def compiled(
    lowered: jax.stages.Lowered, topology: str, mesh: Mesh, **settings: Any
) -> CompiledProgram:
    devices = tuple(mesh.devices.flat)
    program = compile_program(lowered, topology=topology, devices=devices, **settings)
    assert program.out_of_memory is not None or understood(program.hlo_text)
    return program


@needs_libtpu
def test_a_training_step_is_what_jax_compiles_to_the_letter(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mesh = Mesh(np.array(aot.devices(SLICE)).reshape(2, 2), ("data", "model"))
    model = models.get("llama3_tiny", num_layers=1)
    step: Any = autoshard.compile(
        model.build(),
        mesh,
        batch=model.example_batch(4, 32),
        rules="zero3+redco",
        optimizer=optax.sgd(0.1),
    )
    lowered = step.lower()
    times: list[float] = []
    capfd.readouterr()
    program = compiled(lowered, SLICE, step.mesh, progress=times.append)
    said = capfd.readouterr()
    assert not said.out and not said.err
    direct = lowered.compile()
    assert program.hlo_text == direct.as_text()
    assert program.memory == aot.compiled_memory(direct.memory_analysis())
    assert program.memory is not None and program.memory.aliased_bytes > 0
    assert '"LlamaBlock.__call__"' in program.hlo_text  # sources of the user's model
    assert times == sorted(times) and all(seconds > 0 for seconds in times)

    def never(*_: Any) -> Any:
        raise AssertionError("a process was started")

    monkeypatch.setattr("autoshard.compiling.compile_isolated", never)
    again = compiled(step.lower(), SLICE, step.mesh)
    assert again.cached and again.hlo_text == program.hlo_text and again.memory == program.memory
    assert not list((folders / "temporary").iterdir())


def cross_entropy_gradient(w: jax.Array, x: jax.Array) -> jax.Array:
    def loss(w: jax.Array) -> jax.Array:
        return jax.nn.logsumexp((x @ w).astype(jnp.float32), -1).mean()

    return jax.grad(loss)(w)


@needs_libtpu
@pytest.mark.parametrize("isolate", [True, False])
def test_activations_that_do_not_fit(isolate: bool) -> None:
    mesh = mesh_on(SLICE)
    x, w = spec(mesh, (16384, 1024)), spec(mesh, (1024, 12800))
    lowered = jax.jit(cross_entropy_gradient).lower(w, x)
    options = {"xla_tpu_max_hbm_size_mib": SMALL_HBM_MIB}
    program = compiled(lowered, SLICE, mesh, compiler_options=options, isolate=isolate)
    verdict = program.out_of_memory
    assert verdict is not None and program.memory is None and program.hlo_text == ""
    assert verdict.available_bytes == SMALL_HBM_MIB * 2**20
    logits = 16384 * 12800 * 2
    arguments = 16384 * 1024 * 2 + 1024 * 12800 * 2
    result = 1024 * 12800 * 2
    assert logits <= verdict.needed_bytes <= 1.01 * (logits + arguments + result)
    largest = verdict.buffers[0]
    assert largest.size_bytes == logits and largest.shape == "bf16[16384,12800]"
    assert largest.op_name == "jit(cross_entropy_gradient)/jvp()/dot_general"
    assert largest.source.startswith("compiling_test.py:") and "loss" in largest.source
    assert "compiling_test.py" in explain(verdict)
    assert compiled(lowered, SLICE, mesh, compiler_options=options).cached


@needs_libtpu
def test_a_program_that_does_not_fit_only_with_its_code() -> None:
    """The compiler finds out when all else is done, and lists its allocations."""
    mesh = mesh_on(SLICE)

    def correlate(x: jax.Array) -> jax.Array:
        return jnp.tanh(x).T @ x

    lowered = jax.jit(correlate).lower(spec(mesh, (8192, 512)))
    options = {"xla_tpu_max_hbm_size_mib": 9}  # 8 for x, a half for the result
    verdict = compiled(lowered, SLICE, mesh, compiler_options=options).out_of_memory
    assert verdict is not None
    assert "Largest program allocations in hbm" in verdict.message
    assert 9 * 2**20 == verdict.available_bytes < verdict.needed_bytes < 10 * 2**20
    given, made = verdict.buffers
    assert (given.size_bytes, given.op_name, given.source) == (8 * 2**20, "x", "argument")
    assert (made.size_bytes, made.op_name) == (2**19, "jit(correlate)/dot_general")
    assert made.source.startswith("compiling_test.py:") and "correlate" in made.source


@needs_libtpu
def test_arguments_alone_that_do_not_fit() -> None:
    mesh = mesh_on(SLICE)
    whole = spec(mesh, (65536, 65536))
    lowered = jax.jit(lambda x, y: (x @ y).sum()).lower(whole, whole)
    verdict = compiled(lowered, SLICE, mesh).out_of_memory
    assert verdict is not None
    assert verdict.needed_bytes >= 2 * 65536 * 65536 * 2
    assert [(b.size_bytes, b.op_name, b.source) for b in verdict.buffers[:2]] == [
        (65536 * 65536 * 2, "x", "argument"),
        (65536 * 65536 * 2, "y", "argument"),
    ]


@needs_libtpu
def test_a_compiler_that_is_killed_half_way_keeps_nothing(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_process, "_PROGRESS_INTERVAL_S", 0.05)

    def kill(_: float) -> None:
        # Once it has begun: then it has opened the library.
        for listed in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
            for child in map(int, listed.read_text().split()):
                if "libtpu.so" in Path(f"/proc/{child}/maps").read_text():
                    os.kill(child, signal.SIGKILL)

    mesh = mesh_on(SLICE)
    lowered = jax.jit(cross_entropy_gradient).lower(
        spec(mesh, (1024, 12800)), spec(mesh, (4096, 1024))
    )
    with pytest.raises(autoshard.AutoshardError, match="killed by SIGKILL"):
        compiled(lowered, SLICE, mesh, progress=kill)
    assert not [path for path in folders.rglob("*") if path.is_file()]


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:3x5", "nearest larger one is 'v5e:4x6'"),
        ("2x v6e:3x4", "nearest larger one is '2x v6e:4x4'"),
        ("v9:2x2", "Invalid TPU external name"),
    ],
)
def test_slices_that_libtpu_refuses(name: str, message: str) -> None:
    with pytest.raises(autoshard.MeshError, match=message):
        aot.devices(name)


@needs_libtpu
@pytest.mark.parametrize("isolate", [True, False])
def test_a_refusal_is_one_paragraph_and_is_not_kept(folders: Path, isolate: bool) -> None:
    mesh = mesh_on(SLICE)
    lowered = jax.jit(lambda x: x + 1).lower(spec(mesh, (8, 8)))
    options = {"xla_tpu_no_such_option": 1}
    with pytest.raises(
        autoshard.AutoshardError, match=r"refuses the program.*such_option"
    ) as caught:
        compiled(lowered, SLICE, mesh, compiler_options=options, isolate=isolate)
    assert "\n" not in str(caught.value)
    assert not (folders / "cache").exists()


@needs_cuda_plugin
def test_gpu_programs(folders: Path) -> None:
    """Two hosts of two, with libtpu in the same process."""
    name = "h100:2x2"
    mesh = mesh_on(name)
    assert [device.process_index for device in mesh.devices.flat] == [0, 0, 1, 1]

    def contract(x: jax.Array, w: jax.Array) -> jax.Array:
        return (x @ w).sum()

    x, w = spec(mesh, (4096, 1024), "data"), spec(mesh, (1024, 1024))
    lowered = jax.jit(contract).lower(x, w)
    program = compiled(lowered, name, mesh)
    direct = lowered.compile()
    assert program.hlo_text == direct.as_text() and "all-reduce" in program.hlo_text
    assert program.memory == aot.compiled_memory(direct.memory_analysis())
    assert program.memory is not None
    assert program.memory.arguments_bytes == (4096 // 4 + 1024) * 1024 * 2
    verdict = compiled(lowered, name, mesh, hbm_bytes=10**6).out_of_memory
    assert verdict is not None
    assert verdict.needed_bytes == program.memory.total_bytes
    assert {(b.op_name, b.size_bytes) for b in verdict.buffers if b.source == "argument"} == {
        ("x", 1024 * 1024 * 2),
        ("w", 1024 * 1024 * 2),
    }


@needs_cuda_plugin
def test_a_gpu_program_that_needs_more_than_the_chip_has() -> None:
    mesh = mesh_on("h100:1")
    lowered = jax.jit(lambda x: x + 1).lower(spec(mesh, (2**36,)))
    verdict = compiled(lowered, "h100:1", mesh).out_of_memory
    assert verdict is not None
    assert verdict.needed_bytes == 2 * 2**36 * 2
    assert verdict.available_bytes == aot.device_memory_bytes("h100:1")
