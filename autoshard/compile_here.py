"""One compilation in this process. Whatever the compiler says is an answer."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from autoshard import aot
from autoshard.compile_messages import CompileReply, CompileRequest
from autoshard.compiled_program import CompiledMemory
from autoshard.peak_buffers import read_peak


def answer_request(request: CompileRequest, dump: Path) -> CompileReply:
    """Compile what another process asks for.

    Args:
      request: the program.
      dump: an empty folder for the compiler's own files.
    """
    return _answer(lambda: aot.compile_request(request, dump), dump)


def answer_lowered(
    lowered: jax.stages.Lowered, compiler_options: Mapping[str, Any]
) -> CompileReply:
    """Compile a program of this process, by JAX itself."""
    with tempfile.TemporaryDirectory(prefix="autoshard-") as folder:
        dump = Path(folder)
        return _answer(lambda: aot.compile_lowered(lowered, compiler_options, dump), dump)


def _answer(compile_it: Callable[[], tuple[str, CompiledMemory]], dump: Path) -> CompileReply:
    start = time.perf_counter()
    text: str = ""
    memory: CompiledMemory | None = None
    problem = ""
    try:
        text, memory = compile_it()
    except jax.errors.JaxRuntimeError as error:
        problem = str(error)
    elapsed_s = time.perf_counter() - start
    return CompileReply(text, memory, problem, elapsed_s, read_peak(dump))
