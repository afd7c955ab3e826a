"""The cache of compiled programs: what makes an entry another one, and what can happen to it."""

import concurrent.futures
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autoshard import aot
from autoshard.compile_cache import CompileCache, default_folder, fingerprint
from autoshard.compile_messages import CompileReply
from autoshard.compiled_program import CompiledMemory, LargeBuffer
from autoshard.peak_buffers import PeakMemory

VERSIONS = (("jax", "1.2.3"),)
BUFFER = LargeBuffer(2**40, "bf16[3,5]", "jit(f)/a\"b'", "model.py:3 (f)")
REPLY = CompileReply(
    "HloModule f, é\n", CompiledMemory(1, 2, 3, 4, 5), "", 1.5, PeakMemory(7, (BUFFER,))
)


def reply_of(size: int) -> CompileReply:
    """A reply whose entry takes somewhat more than so many bytes."""
    noise = np.random.default_rng(size).integers(0, 26, 2 * size)
    return CompileReply("".join(chr(97 + n) for n in noise), None, "", 0.0, None)


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path / "made" / "when needed")
    assert cache.load("k") is None
    refused = CompileReply("", None, "Ran out of memory", 0.25, None)
    cache.store("k", REPLY)
    cache.store("other", refused)
    assert cache.load("k") == REPLY
    assert cache.load("other") == refused


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: data[:3],
        lambda data: b"",
        lambda data: b"\x00" * 100,
        lambda data: data[:40] + b"\x00\x00\x00\x00" + data[44:],
        lambda data: b"\x1f\x8b" + b"garbage" * 9,
    ],
)
def test_a_damaged_entry_is_ignored_and_written_again(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    cache = CompileCache(tmp_path)
    cache.store("k", REPLY)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load("k") is None
    cache.store("k", REPLY)
    assert cache.load("k") == REPLY


def test_the_entry_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path)
    for age, key in enumerate("abc"):
        cache.store(key, reply_of(10_000))
        os.utime(tmp_path / f"{key}.reply.gz", (1000 + age, 1000 + age))
    assert cache.load("a") is not None  # and so becomes the newest
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    small = CompileCache(tmp_path, max_bytes=3 * max(sizes) + 100)
    small.store("d", reply_of(10_000))
    assert {path.name[0] for path in tmp_path.iterdir()} == {"a", "c", "d"}


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    old, new = tmp_path / "unfinished-old", tmp_path / "unfinished-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    CompileCache(tmp_path).store("k", REPLY)
    assert {path.name for path in tmp_path.iterdir()} == {"unfinished-new", "k.reply.gz"}


def test_processes_can_write_one_entry_at_once(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path)
    replies = [reply_of(20_000) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        stores = [pool.submit(cache.store, "k", reply) for reply in replies * 5]
        loads = [pool.submit(cache.load, "k") for _ in range(40)]
        assert all(store.result() is None for store in stores)
        assert {load.result() for load in loads} <= {None, replies[0]}
    assert [path.name for path in tmp_path.iterdir()] == ["k.reply.gz"]


def test_a_full_disk_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    warned: list[str] = []
    monkeypatch.setattr(logging, "log_first_n", lambda level, text, n, *rest: warned.append(text))
    monkeypatch.setattr(os, "replace", full)
    CompileCache(tmp_path).store("k", REPLY)
    assert len(warned) == 1 and "cannot keep" in warned[0]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_warns_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    program = (
        "from pathlib import Path; from tests.autoshard.compile_cache_test import *;"
        f"cache = CompileCache(Path({str(tmp_path / 'file' / 'cache')!r}));"
        "[cache.store('k', REPLY) for _ in range(3)]; print(cache.load('k'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "None"
    assert done.stderr.count("cannot keep compiled programs") == 1
    assert "AUTOSHARD_CACHE_DIR" in done.stderr


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOSHARD_CACHE_DIR", str(tmp_path / "chosen"))
    assert default_folder() == tmp_path / "chosen"
    monkeypatch.delenv("AUTOSHARD_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "autoshard"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache/autoshard"


def mesh_of(devices: tuple[Any, ...]) -> Mesh:
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def double(x: jax.Array) -> jax.Array:
    return 2 * x


def key_of(
    function: Callable[..., Any] = double,
    count: int = 2,
    spec: PartitionSpec | None = None,
    options: dict[str, Any] | None = None,
    versions: tuple[tuple[str, str], ...] = VERSIONS,
    backwards: bool = False,
) -> str:
    devices = aot.devices(f"cpu:{count}")[:: -1 if backwards else 1]
    sharding = NamedSharding(mesh_of(devices), PartitionSpec("data") if spec is None else spec)
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)
    lowered = jax.jit(function).lower(x)
    request = aot.make_request(lowered, f"cpu:{count}", devices, options or {})
    return fingerprint(lowered, request, versions)


def test_a_program_that_moves_in_its_file_keeps_its_key() -> None:
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    for lines, namespace in ((1, first), (9, second)):
        code = compile("\n" * lines + "def double(x):\n    return 2 * x", "model.py", "exec")
        exec(code, namespace)
    assert key_of(first["double"]) == key_of(second["double"]) == key_of()


def test_everything_that_matters_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(x: jax.Array) -> jax.Array:
        return 3 * x

    keys = [
        key_of(),
        key_of(other),
        key_of(count=4),
        key_of(spec=PartitionSpec(None, "data")),
        key_of(options={"xla_cpu_enable_fast_math": True}),
        key_of(versions=(("jax", "1.2.4"),)),
        key_of(backwards=True),
    ]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_something=1")
    keys.append(key_of())
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {64}
