"""A lowered program compiled for its target, here or not, and reported on."""

from collections.abc import Mapping
from typing import Any

import jax

from autoshard.compile_process import Progress
from autoshard.compile_report import CompileReport
from autoshard.compiled_program import CompiledProgram
from autoshard.compiling import DEFAULT_TIMEOUT_S, compile_program
from autoshard.plan import Plan
from autoshard.reporting import ReportInputs, make_report
from autoshard.target import Target


def report_on_target(
    lowered: jax.stages.Lowered,
    target: Target,
    plan: Plan,
    *,
    model_flops: float,
    compute_dtype: str = "",
    cache: bool = True,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    progress: Progress | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    command: str = "",
) -> tuple[CompiledProgram, CompileReport]:
    """Compile a program for the target of its plan, and simulate its schedule.

    Args:
      lowered: the program with the plan's layout.
      target: where it is to run.
      plan: the plan.
      model_flops: of one run, over all devices.
      compute_dtype: dtype of matrix products; empty for the program's own.
      cache: whether results are kept on disk, and taken from there.
      timeout_s: seconds before the compiler is ended.
      progress: called about once a second with the seconds since the start.
      compiler_options: for the compiler, by name.
      command: a shell command that makes the report again, for the report to show.

    Raises:
      CompileError: the compiler refuses the program, crashes, or takes too long.
      DeviceError: the compiler of the target is not installed.
      MeshError: nothing is known of the target's chips.
    """
    inputs = ReportInputs(
        plan, target.topology, target.machine(plan.mesh), model_flops, compute_dtype, command
    )
    program = compile_program(
        lowered,
        topology=target.topology.compiler_name,
        devices=tuple(target.mesh(plan.mesh).devices.flat),
        compiler_options=compiler_options,
        timeout_s=timeout_s,
        progress=progress,
        cache=cache,
    )
    return program, make_report(inputs, program)
