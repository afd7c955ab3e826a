"""Plans a registered model for a machine that need not be here, compiles it for real, and reports.

Llama-3-8B on 64 chips of TPU v5p:

  python -m experiments.plan --model=llama3_8b --topology=v5p:4x4x4 --batch_size=64 \\
      --seq_len=4096 --rules=zero3+redco --out=runs/zero3

The planner chooses mesh, layout, microbatches and what is saved for the backward pass, and compiles
the best four to choose among them:

  python -m experiments.plan --model=llama3_8b --topology=v5p:4x4x4 --batch_size=64 \\
      --seq_len=4096 --rules=auto --passes=auto

The first again on another mesh, then both side by side:

  python -m experiments.plan --model=llama3_8b --topology=v5p:4x4x4 --mesh=data=64,model=1 \\
      --batch_size=64 --seq_len=4096 --rules=zero3 --out=runs/data
  python -m experiments.plan --compare runs/zero3 runs/data --out=runs/both

A decoder's two programs of inference (docs/inference.md), each with its own best layout:

  python -m experiments.plan --model=llama3_8b --topology=v5e:4x4 --task=decode --batch_size=32 \\
      --capacity=4096 --out=runs/decode

Matrix products are in bfloat16 unless --dtype says otherwise. Nothing is executed: a step's time is
simulated from the compiler's schedule.

Exit status: 0 when reported; 2 for a setting that cannot work, said in one paragraph; 4 if the
program does not fit into the machine's memory (the report says what to change).
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, Literal

from absl import app, flags, logging

import autoshard
import models
from autoshard import html_report
from autoshard.compile_report import CompileReport
from autoshard.errors import AutoshardError
from autoshard.html_report.single import TRACE_FILE
from autoshard.report_file import is_report, load_report, save_report
from experiments import devices, flag_fields
from experiments.flag_fields import ConfigError, define_flags, from_flags
from experiments.model_settings import batch_specs, model_spec, pass_checks
from experiments.optimizer import make_optimizer
from experiments.plan_config import PlanConfig, PlanningSettings
from experiments.waiting import Waiter
from passes.hlo.trace import save_trace

EXIT_BAD_INPUT = 2
EXIT_DOES_NOT_FIT = 4

PAGE_FILE = "report.html"
REPORT_FILE = "report.json"
PLAN_FILE = "plan.json"
HLO_FILE = "hlo.txt"
COMPARISON_FILE = "compare.html"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What planning came to.

    Attributes:
      report: the report.
      hlo_text: the scheduled program; empty where it does not fit.
    """

    report: CompileReport
    hlo_text: str


def run(config: PlanConfig, waiter: Waiter) -> CompileReport:
    """Plans, compiles, reports and writes, as `config` says.

    Raises:
      AutoshardError: a setting cannot work, or the compiler refuses.
    """
    html_report.check_plotly()
    output = make_output(config.output)
    outcome = compile_report(config, waiter)
    files = write_outputs(outcome, output)
    waiter.note("")
    waiter.note(html_report.summary(outcome.report))
    waiter.note("")
    waiter.note("\n".join(f"wrote {path}" for path in files))
    return outcome.report


def compile_report(
    config: PlanningSettings,
    waiter: Waiter,
    *,
    memory_mapping: autoshard.MemoryBudget | Literal["off"] = "off",
) -> Outcome:
    """Plans the model, or takes up a saved plan, and compiles it for the topology.

    Args:
      config: what is planned.
      waiter: shows progress.
      memory_mapping: what to spend on a better memory mapping; that of a saved plan does not count.
    """
    given = autoshard.Plan.load(config.plan) if config.plan else None
    if given is not None and memory_mapping != "off":
        given = dataclasses.replace(given, compiler_options=(), memory_mapping=None)
    topology = config.topology or (given.topology if given else "")
    mesh = config.mesh or (str(given.mesh.shape) if given else "")
    devices.stay_on_cpu()
    devices.force_host_devices(topology)
    spec = model_spec(config)
    with waiter.phase(f"planning {spec.name} for {topology}"):
        compiled: Any = autoshard.compile(
            spec.build(),
            f"{topology} {config.mesh_with_stages or mesh}".strip(),
            rules=list(config.rule_names),
            dtype=config.dtype or None,
            strict=config.strict,
            plan=given,
            task=config.task,
            **task_settings(config, spec),
            memory_limit_bytes=config.memory_limit_bytes,
            search=autoshard.SearchOptions(
                max_layouts=config.max_layouts,
                verify=None if config.verify < 0 else config.verify,
                forbid=config.forbidden,
                progress=waiter.note,
            ),
            memory_mapping=memory_mapping,
        )
    with waiter.phase(f"compiling and simulating, mesh {compiled.plan.mesh.shape}") as tick:
        report = compiled.compile_report(
            cache=config.cache,
            timeout_s=config.timeout_s,
            progress=tick,
            command=config.command(),
        )
    return Outcome(report, compiled.compiled_program.hlo_text)


def task_settings(config: PlanningSettings, spec: models.ModelSpec) -> dict[str, Any]:
    """What `autoshard.compile` takes for the task besides the rest.

    Raises:
      ConfigError: the model does not take such a batch, or has no cache.
    """
    if config.task == "train":
        return {
            "batch": batch_specs(config, spec),
            "optimizer": make_optimizer(config),
            "passes": config.pass_names or None,
            "pass_checks": pass_checks(config),
            "offload": "optimizer" if "optimizer" in config.offloaded else "none",
        }
    longest: int = getattr(spec.config, "max_seq_len", 1)
    capacity = config.capacity or longest
    try:
        spec.cache_spec(config.batch_size, capacity)
    except ValueError as error:
        raise ConfigError(f"Model {config.model!r}: {error}") from error
    shape = autoshard.InferenceShape(config.batch_size, config.seq_len or capacity, capacity)
    return {"batch": shape}


def make_output(folder: str) -> pathlib.Path:
    """The output directory, made if it is not there.

    Raises:
      ConfigError: it cannot be made.
    """
    output = pathlib.Path(folder).expanduser()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out={str(output)!r} cannot be made ({error.strerror}): choose another directory."
        ) from error
    return output


def write_outputs(outcome: Outcome, output: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Writes the files of one report; those of an earlier one that this one lacks go.

    Raises:
      ConfigError, ReportError, PlanError: a file cannot be written.
    """
    report = outcome.report
    page, data, plan, trace, hlo = (
        output / name for name in (PAGE_FILE, REPORT_FILE, PLAN_FILE, TRACE_FILE, HLO_FILE)
    )
    report.plan.save(plan)
    save_report(report, data)
    try:
        trace.unlink(missing_ok=True)
        hlo.unlink(missing_ok=True)
        if report.timeline is not None:
            save_trace(report.timeline, trace)
        if outcome.hlo_text:
            hlo.write_text(outcome.hlo_text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--out={str(output)!r} cannot be written ({error.strerror}): choose another directory."
        ) from error
    html_report.save(report, page)
    return tuple(path for path in (page, data, plan, trace, hlo) if path.is_file())


def compare(config: PlanConfig, paths: Sequence[str], waiter: Waiter) -> None:
    """Writes two reports side by side.

    Raises:
      AutoshardError: a path is neither plan nor report, or a plan cannot be compiled.
    """
    html_report.check_plotly()
    output = make_output(config.output)
    first, second = (load_or_compile(config, path, waiter) for path in paths)
    page = output / COMPARISON_FILE
    html_report.compare(first, second, page, names=short_names(paths))
    for name, path, report in zip(short_names(paths), paths, (first, second), strict=True):
        waiter.note(f"\n{name} is {path}\n{html_report.summary(report)}")
    waiter.note(f"\nwrote {page}")


def load_or_compile(config: PlanConfig, path: str, waiter: Waiter) -> CompileReport:
    """The report at `path`, or beside the plan at `path`; else the plan is compiled."""
    place = pathlib.Path(path).expanduser()
    if place.is_dir():
        place /= REPORT_FILE if (place / REPORT_FILE).is_file() else PLAN_FILE
    if is_report(place):
        return load_report(place)
    plan = autoshard.Plan.load(place)
    beside = place.with_name(REPORT_FILE)
    if beside.is_file():
        report = load_report(beside)
        if report.plan == plan:
            return report
    again = dataclasses.replace(
        config, plan=str(place), task=plan.task, compare="", topology="", mesh=""
    )
    return compile_report(again, waiter).report


def short_names(paths: Sequence[str]) -> tuple[str, str]:
    """What the page calls two results: the names of their directories where these differ."""
    first, second = (pathlib.Path(path).expanduser() for path in paths)
    names = tuple(
        path.name if path.suffix != ".json" else path.absolute().parent.name
        for path in (first, second)
    )
    return (names[0], names[1]) if len(set(names)) == 2 and all(names) else ("A", "B")


def compared_paths(config: PlanConfig, others: Sequence[str]) -> tuple[str, ...]:
    """The two paths of `--compare A B` or `--compare=A,B`; empty without --compare.

    Raises:
      ConfigError: they are not two, or there are arguments that are no flags.
    """
    if not config.compare:
        if others:
            raise ConfigError(f"Unexpected argument {others[0]!r}: flags are written --name=value.")
        return ()
    paths = (config.compare, *others) if others else tuple(config.compare.split(","))
    if len(paths) != 2 or not all(paths):
        raise ConfigError(
            f"--compare takes two plans or reports, not {len(paths)}: --compare=PLAN1,PLAN2 or "
            "--compare PLAN1 PLAN2."
        )
    return paths


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
    """Does what the flags say; returns the exit status."""
    try:
        config = from_flags(PlanConfig, flag_values)
        paths = compared_paths(config, argv[1:])
        if paths:
            compare(config, paths, Waiter())
            return 0
        report = run(config, Waiter())
    except (AutoshardError, models.UnknownModelError, models.UnknownFieldError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0 if report.out_of_memory is None else EXIT_DOES_NOT_FIT


if __name__ == "__main__":
    define_flags(PlanConfig)
    flags.adopt_module_key_flags(flag_fields)  # So that --help shows them.
    logging.set_verbosity(logging.WARNING)
    app.run(main)
