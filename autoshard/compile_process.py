"""A compiler in a process of its own: started, watched, ended.

Request, reply and whatever the compiler prints go through files without a name, and what it dumps
into a folder that goes with the processes, so that nothing is left on the disk.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TypeVar

from autoshard.aot import TPU_ENVIRONMENT
from autoshard.compile_messages import CompileReply, CompileRequest
from autoshard.errors import CompileError

_PROGRESS_INTERVAL_S = 1.0
_LOOK_INTERVAL_S = 0.02
_LAST_LINES = 5
_LAST_BYTES = 4000

Progress = Callable[[float], None]
_Found = TypeVar("_Found")


def compile_isolated(
    request: CompileRequest, timeout_s: float, progress: Progress | None = None
) -> CompileReply:
    """Compile in a new process, which is gone when this returns or raises.

    Args:
      request: what to compile.
      timeout_s: seconds before it is ended.
      progress: called about once a second with the seconds since the start.

    Raises:
      CompileError: it could not start, the time is up, or it ended without a reply.
    """
    with _running(request) as run:
        process, answer, said = run.process, run.answer, run.said
        _wait(process, request.topology, timeout_s, progress)
        if process.returncode:
            raise CompileError(_epitaph(request.topology, process.returncode, said))
        answer.seek(0)
        try:
            return CompileReply.from_bytes(answer.read())
        except ValueError as error:
            raise CompileError(
                f"the process that compiled for {request.topology} left no whole reply ({error}): "
                f"is the disk that holds {tempfile.gettempdir()} full?"
            ) from error


def compile_until(
    request: CompileRequest,
    look: Callable[[Path], _Found | None],
    timeout_s: float,
    environment: Mapping[str, str],
) -> tuple[_Found, str]:
    """Compile in a new process until something is found in what it dumps; then end it.

    Args:
      request: what to compile.
      look: called with the folder of the compiler's files about fifty times a second; ends the
        compilation by returning something.
      timeout_s: seconds before it is ended anyway.
      environment: variables of the process besides the usual ones.

    Returns:
      What `look` found, and all that the process printed.

    Raises:
      CompileError: the time is up, or the process ended with nothing found.
    """
    with _running(request, environment) as run:
        found = _look(run.process, run.dump, look, time.monotonic() + timeout_s)
        if found is None:
            status = run.process.poll()
            raise CompileError(_early_end(request.topology, status, run.answer, run.said))
        _end(run.process)
        run.said.seek(0)
        return found, run.said.read().decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class _Run:
    """A process that compiles, and the files that it writes to."""

    process: subprocess.Popen[bytes]
    answer: IO[bytes]
    said: IO[bytes]
    dump: Path


@contextlib.contextmanager
def _running(
    request: CompileRequest, environment: Mapping[str, str] | None = None
) -> Iterator[_Run]:
    """The process that compiles a request; gone, with its files, behind the block.

    Raises:
      CompileError: it could not start.
    """
    with contextlib.ExitStack() as stack:
        try:
            answer = stack.enter_context(tempfile.TemporaryFile())
            said = stack.enter_context(tempfile.TemporaryFile())
            folder = tempfile.TemporaryDirectory(prefix="autoshard-", ignore_cleanup_errors=True)
            dump = stack.enter_context(folder)
            process = _start(request, answer, said, dump, environment or {})
        except OSError as error:
            raise CompileError(
                f"cannot start a process to compile for {request.topology}: {error}. It needs some "
                f"memory, and some disk under {tempfile.gettempdir()} (TMPDIR names another place)"
            ) from error
        try:
            yield _Run(process, answer, said, Path(dump))
        finally:
            _end(process)


def _look(
    process: subprocess.Popen[bytes], dump: Path, look: Callable[[Path], _Found | None], end: float
) -> _Found | None:
    while True:
        ended = process.poll() is not None
        found = look(dump)
        if found is not None or ended or time.monotonic() > end:
            return found
        time.sleep(_LOOK_INTERVAL_S)


def _early_end(topology: str, status: int | None, answer: IO[bytes], said: IO[bytes]) -> str:
    """Why a compilation showed nothing: its own error, a crash, or the time (no status yet)."""
    if status is None:
        return (
            f"compiling for {topology} was ended before it showed what was looked for: give it "
            "more time (timeout_s)"
        )
    if status:
        return _epitaph(topology, status, said)
    answer.seek(0)
    with contextlib.suppress(ValueError):
        error = CompileReply.from_bytes(answer.read()).error
        if error:
            return f"the compiler for {topology} refuses the program: {error.splitlines()[0]}"
    return (
        f"the compiler for {topology} came to its end and did not show what was looked for: this "
        "version of it may write its files otherwise"
    )


def _start(
    request: CompileRequest,
    answer: IO[bytes],
    said: IO[bytes],
    dump: str,
    environment: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile() as question:
        question.write(request.to_bytes())
        question.seek(0)
        arguments = [str(answer.fileno()), dump, str(os.getpid())]
        return subprocess.Popen(
            [sys.executable, "-m", "autoshard.compile_worker", *arguments],
            stdin=question,
            stdout=said,
            stderr=said,
            pass_fds=(answer.fileno(),),
            env={**_environment(), **environment},
            start_new_session=True,
        )


def _environment() -> dict[str, str]:
    """The child's: this package importable, no accelerator looked for."""
    root = str(Path(__file__).parents[1])
    paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        **TPU_ENVIRONMENT,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def _wait(
    process: subprocess.Popen[bytes], topology: str, timeout_s: float, progress: Progress | None
) -> None:
    start = time.monotonic()
    while True:
        left_s = start + timeout_s - time.monotonic()
        try:
            process.wait(max(0.0, min(left_s, _PROGRESS_INTERVAL_S)))
            return
        except subprocess.TimeoutExpired:
            if left_s <= 0:
                raise CompileError(
                    f"compiling for {topology} was ended after {timeout_s:g} s: pass a larger "
                    "timeout_s, or make the program smaller (stacked layers compile once)"
                ) from None
            if progress is not None:
                progress(time.monotonic() - start)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it started, unless it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _epitaph(topology: str, code: int, said: IO[bytes]) -> str:
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += " (by the kernel, where memory ran out on this machine, or by someone)"
        elif -code == signal.SIGABRT:
            how += ", which is how the compiler says that it found a fault in itself"
    else:
        how = f"ended with status {code}"
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - _LAST_BYTES))
    lines = said.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    last = " | ".join(line.strip() for line in lines)
    return (
        f"the process that compiled for {topology} {how}; nothing was kept and this process goes "
        f"on: try again, or with isolate=False to see all of it. It said last: {last or 'nothing'}"
    )
