"""mallocGame for a lowered program: compiler options that place its buffers in VMEM better.

result = autoshard.map_memory(jax.jit(f).lower(...), "v5e:2x2")
jax.jit(f).lower(...).compile(compiler_options=dict(result.options))
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from autoshard import aot
from autoshard.errors import MeshError
from autoshard.machine import machine_model
from autoshard.memory_compiler import LoweredCompiler
from autoshard.topology import Topology
from memory_planner.mapper import Budget, Mapped
from memory_planner.mapper import map_memory as search_mapping


def map_memory(
    lowered: jax.stages.Lowered,
    topology: str,
    budget: Budget | None = None,
    *,
    devices: tuple[Any, ...] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Mapped:
    """Search for options that make the TPU compiler place a program's buffers better.

    Works on any jitted function of a user's. Everything is judged by compiler-estimated cycles plus
    simulated stalls, not run on hardware; where nothing better is found the options are empty.

    Args:
      lowered: `jax.jit(f).lower(...)` of arguments with shardings on devices of the topology.
      topology: a TPU slice such as `v5e:2x2`.
      budget: how many compilations, and who proposes.
      devices: of the program's mesh in its order; by default those of the topology.
      compiler_options: beneath those that are tried.
      progress: called with a line of text now and then.

    Raises:
      MeshError: the topology is no TPU.
      CannotMapError: there is nothing to decide, or the compiler does not follow (it says which).
      CompilerFailure: the program does not compile.
    """
    machine = machine_model(Topology.parse(topology))
    if machine.platform != "tpu":
        raise MeshError(
            f"memory mapping steers the TPU compiler, and {topology!r} is {machine.platform}: "
            "leave memory_mapping off for it"
        )
    compiler = LoweredCompiler(
        lowered,
        topology,
        aot.devices(topology) if devices is None else devices,
        tuple(sorted((compiler_options or {}).items())),
    )
    return search_mapping(compiler, machine, budget, progress)
