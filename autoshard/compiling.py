"""Compile a lowered program for devices that need not be here.

lowered program -> request -> cache -> compiler, in a process of its own -> verdict
"""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import jax

from autoshard import aot
from autoshard.compile_cache import CompileCache, fingerprint
from autoshard.compile_here import answer_lowered
from autoshard.compile_messages import CompileReply
from autoshard.compile_process import Progress, compile_isolated
from autoshard.compiled_program import CompiledProgram
from autoshard.errors import CompileError
from autoshard.out_of_memory import verdict_against, verdict_of

DEFAULT_TIMEOUT_S = 1800.0

# Whatever of these is installed had a part in the program.
_COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt")

_MESSAGE_CHARACTERS = 500


def compile_program(
    lowered: jax.stages.Lowered,
    *,
    topology: str,
    devices: tuple[Any, ...],
    compiler_options: Mapping[str, Any] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    isolate: bool = True,
    cache: bool = True,
    hbm_bytes: int | None = None,
    progress: Progress | None = None,
) -> CompiledProgram:
    """The scheduled program and its memory, as `lowered.compile()` would make them.

    Running out of the devices' memory is an answer (`out_of_memory`), not an error.

    Args:
      lowered: `jax.jit(f).lower(...)` of arguments with shardings on a mesh of `devices`.
      topology: the name that `aot.devices` made them of.
      devices: all devices of the mesh, in its order: `tuple(mesh.devices.flat)`.
      compiler_options: as for `lowered.compile`.
      timeout_s: seconds before the compiler is ended. It has no effect in this process.
      isolate: compile in a process of its own, which may crash without harm. Programs for `cpu` are
        always compiled in this one.
      cache: look on the disk first, and keep the result there; see `compile_cache`.
      hbm_bytes: memory of a device, where the program is to have less than the chip's. The TPU
        compiler refuses what does not fit a chip; what the GPU compiler makes is compared with the
        chip's memory here.
      progress: called about once a second with the seconds since the start, if isolated.

    Raises:
      CompileError: the compiler refuses the program, crashes, or takes too long.
      MeshError: the program is for another number of devices.
    """
    options = dict(compiler_options or {})
    request = aot.make_request(lowered, topology, devices, options)
    versions = compiler_versions()
    store = CompileCache() if cache else None
    key = fingerprint(lowered, request, versions) if cache else ""
    reply = store.load(key) if store is not None else None
    cached = reply is not None
    if reply is None:
        if isolate and not topology.startswith("cpu"):
            reply = compile_isolated(request, timeout_s, progress)
        else:
            reply = answer_lowered(lowered, options)
        if store is not None and (not reply.error or verdict_of(reply.error, reply.peak)):
            store.store(key, reply)
    if hbm_bytes is None:
        hbm_bytes = aot.device_memory_bytes(topology)
    return _judged(reply, topology, hbm_bytes, cached, versions)


def _judged(
    reply: CompileReply,
    topology: str,
    hbm_bytes: int | None,
    cached: bool,
    versions: tuple[tuple[str, str], ...],
) -> CompiledProgram:
    if reply.memory is None:
        verdict = verdict_of(reply.error, reply.peak)
        if verdict is None:
            raise CompileError(_refusal(topology, reply.error))
    elif hbm_bytes is not None:
        verdict = verdict_against(reply.memory, hbm_bytes, reply.peak, topology)
    else:
        verdict = None
    return CompiledProgram(
        topology=topology,
        hlo_text=reply.hlo_text if verdict is None else "",
        memory=reply.memory if verdict is None else None,
        out_of_memory=verdict,
        compile_s=reply.compile_s,
        cached=cached,
        versions=versions,
    )


def _refusal(topology: str, message: str) -> str:
    paragraph = " ".join(message.split())
    cut = paragraph[:_MESSAGE_CHARACTERS] + ("..." if len(paragraph) > _MESSAGE_CHARACTERS else "")
    return (
        f"the compiler for {topology} refuses the program: {cut} If it is an operation that this "
        "target lacks, write it otherwise; if it is the compiler's own fault, other rules or "
        "compiler_options may lead around it"
    )


def compiler_versions() -> tuple[tuple[str, str], ...]:
    """(package, version) of what is installed of JAX and its compilers."""
    found = []
    for name in _COMPILERS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)
