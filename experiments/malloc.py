"""Plays mallocGame on a registered model's program: compiler options that use VMEM better.

  python -m experiments.malloc --model=llama3_tiny --topology=v5e:2x2 --rules=data \\
      --batch_size=64 --budget_compiles=40 --out=runs/mapped

The program is planned and lowered as `experiments.plan` does it, with the same flags. The TPU
compiler is asked about other orders of its buffers (docs/memory_mapping.md), and the best are
compiled whole. It ends with a table of before and after, and with options to paste into

  jax.jit(f).lower(...).compile(compiler_options=...)

--out gets them as options.json, pictures of VMEM over time as before.png and after.png, and report,
plan and program as from experiments.plan. The plan has the options, too: `autoshard.compile` with
plan= compiles with them.

Nothing is executed: all figures are compiler-estimated cycles plus simulated stalls.

Exit status: 0 when mapped, and where nothing can be gained, which is said in one line; 2 for a
setting that cannot work, said in one paragraph; 4 if the program does not fit into the machine's
memory.
"""

import dataclasses
import importlib.util
import json
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import ClassVar

from absl import app, flags, logging

import autoshard
import models
from autoshard import html_report
from autoshard.compile_report import CompileReport
from autoshard.errors import AutoshardError
from autoshard.explain import mapping_table
from autoshard.memory_record import MemoryPicture
from autoshard.planned_mapping import NOTE_PREFIX
from experiments import flag_fields
from experiments.flag_fields import ConfigError, define_flags, from_flags, option
from experiments.plan import (
    EXIT_BAD_INPUT,
    EXIT_DOES_NOT_FIT,
    compile_report,
    make_output,
    write_outputs,
)
from experiments.plan_config import PlanningSettings
from experiments.waiting import Waiter
from memory_planner.errors import MemoryPlannerError
from memory_planner.picture import draw_png
from memory_planner.whole_program import OPTIONS

OPTIONS_FILE = "options.json"
# Whose mapping a picture shows -> its file.
PICTURE_FILES = {"default": "before.png", "best": "after.png"}


@dataclasses.dataclass(frozen=True)
class MallocConfig(PlanningSettings):
    """Settings of `python -m experiments.malloc`."""

    program: ClassVar[str] = "experiments.malloc"

    out: str = option(
        "",
        "Where options.json, before.png, after.png and the files of experiments.plan go. Empty: "
        "runs/malloc/<model>.",
    )
    budget_compiles: int = option(
        40, "Compilations that stop after buffer assignment, seconds each, to try orders with."
    )
    compiles: int = option(4, "Whole compilations of the most promising orders.")
    sweep: bool = option(
        True, "Compile under a few whole-program options first, and go on from the best."
    )
    strategy: str = option(
        "alphazero",
        "Who proposes orders: `alphazero`, `muzero`, `evolution`, `hill climbing`, `random` or "
        "`fixed orders`.",
    )
    play_seconds: float = option(120.0, "Seconds after which an agent stops playing the game.")
    seed: int = option(0, "Of all chance in proposing orders.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.topology or self.plan):
            raise ConfigError(
                "--topology is empty: name the TPU to compile for, such as v5e:2x2, or give a "
                "saved --plan."
            )
        self.check_at_least(1, "budget_compiles", "compiles")
        self.budget()

    def budget(self) -> autoshard.MemoryBudget:
        """What to spend.

        Raises:
          ConfigError: a value cannot work.
        """
        try:
            return autoshard.MemoryBudget(
                assignments=self.budget_compiles,
                compiles=self.compiles,
                sweep=OPTIONS if self.sweep else (),
                strategy=self.strategy,
                play_seconds=self.play_seconds,
                seed=self.seed,
            )
        except MemoryPlannerError as error:
            raise ConfigError(f"--{error}.") from error

    @property
    def output(self) -> str:
        """The output directory that is meant."""
        return self.out or f"runs/malloc/{self.model}"


def run(config: MallocConfig, waiter: Waiter) -> CompileReport:
    """Plans, maps, compiles, reports and writes, as `config` says.

    Raises:
      AutoshardError: a setting cannot work, or the compiler refuses.
    """
    check_topology(config)
    html_report.check_plotly()
    check_matplotlib()
    output = make_output(config.output)
    with warnings.catch_warnings():  # the plan's note says it, and is shown
        warnings.simplefilter("ignore", autoshard.MemoryMappingWarning)
        outcome = compile_report(config, waiter, memory_mapping=config.budget())
    files = [write_options(outcome.report, output)]
    files += write_pictures(outcome.report.memory_pictures, output)
    files += write_outputs(outcome, output)
    waiter.note("")
    waiter.note(conclusion(outcome.report))
    waiter.note("")
    waiter.note("\n".join(f"wrote {path}" for path in files))
    return outcome.report


def check_topology(config: MallocConfig) -> None:
    """Raises ConfigError where there is no TPU compiler to steer."""
    name = config.topology or autoshard.Plan.load(config.plan).topology
    platform = autoshard.Topology.parse(name).platform
    if platform != "tpu":
        raise ConfigError(
            f"--topology={name} is {platform}, and memory mapping steers the TPU compiler: name a "
            "TPU, such as v5e:2x2 or v6e:2x2."
        )


def check_matplotlib() -> None:
    """Raises ConfigError where pictures cannot be drawn, before anything long is begun."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "The pictures need matplotlib, which is not installed here: "
            "pip install 'autoshard[experiments]'."
        )


def write_options(report: CompileReport, output: pathlib.Path) -> pathlib.Path:
    """The options as JSON, to be loaded and passed on as they are; empty where there are none.

    Raises:
      ConfigError: the file cannot be written.
    """
    path = output / OPTIONS_FILE
    try:
        path.write_text(json.dumps(dict(report.plan.compiler_options), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(
            f"--out={str(output)!r} cannot be written ({error.strerror}): choose another directory."
        ) from error
    return path


def write_pictures(
    pictures: Sequence[MemoryPicture], output: pathlib.Path
) -> tuple[pathlib.Path, ...]:
    """VMEM over time as PNG; an earlier run's pictures that this one lacks go."""
    for name in PICTURE_FILES.values():
        (output / name).unlink(missing_ok=True)
    paths = tuple(output / PICTURE_FILES[picture.name] for picture in pictures)
    for picture, path in zip(pictures, paths, strict=True):
        draw_png(picture.problem, picture.mapping, path)
    return paths


def conclusion(report: CompileReport) -> str:
    """The table of before and after and what to paste, or why there is none."""
    plan = report.plan
    if report.out_of_memory is not None:
        return html_report.summary(report)
    if plan.memory_mapping is None:
        return "\n".join(note for note in plan.notes if note.startswith(NOTE_PREFIX))
    table = mapping_table(plan.memory_mapping)
    if not plan.compiler_options:
        return f"{table}\n\nNothing better than the compiler's own mapping was found: no options."
    return f"{table}\n\n{snippet(plan.compiler_options)}"


def snippet(options: Sequence[tuple[str, str]]) -> str:
    """Python that compiles with the options."""
    lines = "\n".join(f"    {name!r}: {value!r}," for name, value in options)
    return (
        f"compiler_options = {{\n{lines}\n}}\n"
        "jax.jit(f).lower(...).compile(compiler_options=compiler_options)"
    )


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
    """Does what the flags say; returns the exit status."""
    try:
        if argv[1:]:
            raise ConfigError(f"Unexpected argument {argv[1]!r}: flags are written --name=value.")
        report = run(from_flags(MallocConfig, flag_values), Waiter())
    except (AutoshardError, models.UnknownModelError, models.UnknownFieldError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0 if report.out_of_memory is None else EXIT_DOES_NOT_FIT


if __name__ == "__main__":
    define_flags(MallocConfig)
    flags.adopt_module_key_flags(flag_fields)  # So that --help shows them.
    logging.set_verbosity(logging.WARNING)
    app.run(main)
