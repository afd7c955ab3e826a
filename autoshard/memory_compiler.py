"""The compiler of one lowered program, as `memory_planner` wants it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from autoshard import aot
from autoshard.compiling import DEFAULT_TIMEOUT_S, compile_program
from autoshard.errors import CompileError
from autoshard.memory_assignment import assign_memory
from memory_planner.evaluation import CompilerFailure


@dataclasses.dataclass(frozen=True)
class LoweredCompiler:
    """A `memory_planner.evaluation.Compiler`.

    Attributes:
      lowered: the program.
      topology: the name that `aot.devices` made the devices of.
      devices: of the program's mesh, in its order.
      options: of the user, beneath those that are tried.
      timeout_s: for one compilation.
    """

    lowered: jax.stages.Lowered
    topology: str
    devices: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S

    def assign(self, options: Mapping[str, str], *, with_log: bool) -> tuple[str, str]:
        """See `memory_planner.evaluation.Compiler`."""
        merged = {**dict(self.options), **options}
        try:
            request = aot.make_request(self.lowered, self.topology, self.devices, merged)
            program = assign_memory(request, with_log=with_log, timeout_s=self.timeout_s)
        except CompileError as error:
            raise CompilerFailure(str(error)) from error
        return program.hlo_text, program.log_text

    def compile(self, options: Mapping[str, str]) -> str:
        """See `memory_planner.evaluation.Compiler`."""
        try:
            program = compile_program(
                self.lowered,
                topology=self.topology,
                devices=self.devices,
                compiler_options={**dict(self.options), **options},
                timeout_s=self.timeout_s,
            )
        except CompileError as error:
            raise CompilerFailure(str(error)) from error
        if program.out_of_memory is not None:
            raise CompilerFailure(f"the program does not fit: {program.out_of_memory}")
        return program.hlo_text
