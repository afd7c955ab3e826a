"""Trains a registered model, sharded over a mesh by a plan that autoshard makes and explains.

A GPT of 0.8 million parameters on eight CPU devices, on the standard library's own text:

  python -m experiments.train --mesh=data=2,model=4 --steps=300 --checkpoint_dir=runs/checkpoints

The same run after a crash, gone on with another mesh and other rules:

  python -m experiments.train --mesh=data=8 --rules=zero3 --steps=300 \\
      --checkpoint_dir=runs/checkpoints --resume

Another model, on text of your own:

  python -m experiments.train --model=llama3_tiny --mesh=cpu:8 --rules=zero3+redco \\
      --data='books/**/*.txt' --batch_size=64 --seq_len=128

Exit status: 0 when finished, or stopped by SIGTERM after a checkpoint; 2 for a setting that cannot
work, said in one paragraph; 3 when the loss is NaN or infinite.
"""

import contextlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

import autoshard
import models
from autoshard.errors import AutoshardError
from experiments import data, devices, flag_fields
from experiments.config import TrainConfig
from experiments.data import BatchStream, Dataset
from experiments.flag_fields import ConfigError, define_flags, from_flags
from experiments.interrupts import stop_on_signals
from experiments.metrics import CURVE, MetricsWriter, draw_loss_curve
from experiments.model_settings import batch_specs, model_spec, pass_checks
from experiments.optimizer import make_optimizer
from experiments.progress import make_reporter
from experiments.quiet import quieted
from experiments.resume import open_checkpoints, start_state
from experiments.train_loop import DivergedError, Ending, Outcome, Run, train

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3


def run(config: TrainConfig) -> Outcome:
    """Plans, trains, scores, saves and draws, as `config` says.

    Raises:
      AutoshardError: a setting cannot work, or training diverged.
    """
    devices.force_host_devices(config.mesh_with_stages)
    spec = model_spec(config)
    dataset = make_dataset(config, spec)
    reporter = make_reporter(config.steps, dataset.unit, config.log_every)
    with contextlib.ExitStack() as stack:
        stack.callback(reporter.close)
        for line in (f"model: {spec.name}", f"data: {dataset.description}", *dataset.notes):
            reporter.note(line)
        checkpoints = open_checkpoints(config, stack)
        with reporter.phase("planning"):
            compiled = compile_model(config, spec)
        reporter.note(compiled.plan.explain())
        stream = BatchStream(dataset.train, dataset.batch_size, config.seed)
        start, state = start_state(config, compiled, dataset, stream, checkpoints, reporter)
        metrics = open_metrics(config, compiled, start, stack)
        stop = stack.enter_context(stop_on_signals())
        parts = Run(
            compiled, config, dataset, stream, checkpoints, metrics, reporter, lambda: bool(stop)
        )
        outcome = train(parts, state, start)
        if checkpoints is not None:
            checkpoints.wait()
        conclude(parts, outcome)
    return outcome


def make_dataset(config: TrainConfig, spec: models.ModelSpec) -> Dataset:
    """The data that fits the model."""
    return data.for_model(
        batch_specs(config, spec),
        pattern=config.data,
        eval_batches=config.eval_batches,
        num_classes=getattr(spec.config, "num_classes", 10),
        vocab_size=getattr(spec.config, "vocab_size", None),
        seed=config.seed,
    )


def compile_model(config: TrainConfig, spec: models.ModelSpec) -> Any:
    """Plans the model over the mesh, or takes up a saved plan."""
    rules: Sequence[str] | str = config.rule_names
    return autoshard.compile(
        spec.build(),
        devices.make_mesh(config.mesh_with_stages),
        batch=batch_specs(config, spec),
        optimizer=make_optimizer(config),
        rules=rules[0] if len(rules) == 1 else list(rules),
        dtype=config.dtype or None,
        strict=config.strict,
        plan=config.plan or None,
        passes=config.pass_names or None,
        pass_checks=pass_checks(config),
        offload="optimizer" if "optimizer" in config.offloaded else "none",
    )


def open_metrics(
    config: TrainConfig, compiled: Any, start: int, stack: contextlib.ExitStack
) -> MetricsWriter:
    """Opens the output directory and puts the plan and the settings there.

    Raises:
      ConfigError: it cannot be written.
    """
    output = pathlib.Path(config.output).expanduser()
    try:
        writer = stack.enter_context(
            MetricsWriter(
                output,
                resume_step=start if start else None,
                events_every=config.log_every,
            )
        )
        compiled.plan.save(output / "plan.json")
        (output / "config.json").write_text(config.dumps(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--output_dir={str(output)!r} cannot be written ({error.strerror}): choose another."
        ) from error
    return writer


def conclude(parts: Run, outcome: Outcome) -> None:
    """Draws the loss curve and says how the run ended and what can follow."""
    config, note = parts.config, parts.reporter.note
    rows = parts.metrics.rows()
    if rows:
        curve = parts.metrics.directory / CURVE
        title = f"{config.model} on {config.mesh or 'all devices'}, rules {config.rules}"
        draw_loss_curve(curve, rows, title)
        note(f"loss curve: {curve}")
    if outcome.ending is Ending.FINISHED:
        note(f"finished at step {outcome.step}")
        return
    if parts.checkpoints is None:
        note(f"stopped after step {outcome.step}; nothing was saved, as --checkpoint_dir is empty")
        return
    again = TrainConfig.from_json({**config.to_json(), "resume": True, "resume_step": None})
    note(f"stopped after step {outcome.step} and saved; to go on:\n  {again.command()}")


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs what the flags say; returns the exit status."""
    try:
        if len(argv) > 1:
            raise ConfigError(f"Unexpected argument {argv[1]!r}: flags are written --name=value.")
        run(from_flags(TrainConfig, flag_values))
    except DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DIVERGED
    except (AutoshardError, models.UnknownModelError, models.UnknownFieldError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    define_flags(TrainConfig)
    flags.adopt_module_key_flags(flag_fields)  # So that --help shows them.
    app.run(quieted(main))
