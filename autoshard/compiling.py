"""Compile a lowered program for devices that need not be here."""

import importlib.metadata
import time
from collections.abc import Mapping
from typing import Any

import jax

from autoshard import aot
from autoshard.compile_messages import CompileReply
from autoshard.compile_process import Progress, compile_isolated
from autoshard.compiled_program import CompiledProgram
from autoshard.errors import CompileError

DEFAULT_TIMEOUT_S = 1800.0

# Whatever of these is installed had a part in the program.
_COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt")


def compile_program(
    lowered: jax.stages.Lowered,
    *,
    topology: str,
    devices: tuple[Any, ...],
    compiler_options: Mapping[str, Any] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    isolate: bool = True,
    progress: Progress | None = None,
) -> CompiledProgram:
    """The scheduled program and its memory, as `lowered.compile()` would make them.

    Args:
      lowered: `jax.jit(f).lower(...)` of arguments with shardings on a mesh of `devices`.
      topology: the name that `aot.devices` made them of.
      devices: all devices of the mesh, in its order: `tuple(mesh.devices.flat)`.
      compiler_options: as for `lowered.compile`.
      timeout_s: seconds before the compiler is ended. It has no effect in this process.
      isolate: compile in a process of its own, which may crash without harm. Programs for `cpu` are
        always compiled in this one.
      progress: called about once a second with the seconds since the start, if isolated.

    Raises:
      CompileError: the compiler refuses the program, crashes, or takes too long.
      MeshError: the program is for another number of devices.
    """
    options = dict(compiler_options or {})
    if isolate and not topology.startswith("cpu"):
        request = aot.make_request(lowered, topology, devices, options)
        reply = compile_isolated(request, timeout_s, progress)
    else:
        reply = _compile_here(lowered, options)
    if reply.error:
        raise CompileError(_refusal(topology, reply.error))
    return CompiledProgram(
        topology=topology,
        hlo_text=reply.hlo_text,
        memory=reply.memory,
        out_of_memory=None,
        compile_s=reply.compile_s,
        cached=False,
        versions=compiler_versions(),
    )


def _compile_here(lowered: jax.stages.Lowered, options: dict[str, Any]) -> CompileReply:
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        return CompileReply("", None, str(error), time.perf_counter() - start)
    memory = aot.compiled_memory(compiled.memory_analysis())
    return CompileReply(compiled.as_text() or "", memory, "", time.perf_counter() - start)


def _refusal(topology: str, message: str) -> str:
    first = message.strip().splitlines()[0]
    return f"the compiler for {topology} refuses the program: {first}"


def compiler_versions() -> tuple[tuple[str, str], ...]:
    """(package, version) of what is installed of JAX and its compilers."""
    found = []
    for name in _COMPILERS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)
