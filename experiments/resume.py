"""Where a run starts: from nothing, or from a checkpoint of the same run on any mesh."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import jax

from autoshard.checkpoint import Checkpointer, Restored
from autoshard.errors import CheckpointError
from experiments.config import TrainConfig
from experiments.data import BatchStream, Dataset
from experiments.progress import Reporter

# What shapes the learning-rate schedule: a change bends the loss curve, but may be meant.
_SCHEDULE = ("steps", "learning_rate", "warmup_steps", "weight_decay")


def open_checkpoints(config: TrainConfig, stack: contextlib.ExitStack) -> Checkpointer | None:
    """Opens `--checkpoint_dir`, closed with the stack; None where there is none.

    Raises:
      CheckpointError: it is not ours, cannot be written, or holds a run that was not to be resumed.
    """
    if not config.checkpoint_dir:
        return None
    checkpoints = stack.enter_context(Checkpointer(config.checkpoint_dir, keep=config.keep))
    steps = checkpoints.steps()
    if steps and not config.resume:
        raise CheckpointError(
            f"{checkpoints.directory} holds the checkpoints of an earlier run, up to step "
            f"{steps[-1]}. Add --resume to go on with it, or name another --checkpoint_dir."
        )
    return checkpoints


def start_state(
    config: TrainConfig,
    compiled: Any,
    dataset: Dataset,
    stream: BatchStream,
    checkpoints: Checkpointer | None,
    reporter: Reporter,
) -> tuple[int, Any]:
    """The step to go on from, 0 for a new run, and its state; also moves `stream` there.

    Raises:
      CheckpointError: what is to be restored is damaged, absent, or of another run.
    """
    if not config.resume or checkpoints is None:
        return 0, _fresh(config, compiled, reporter)
    if checkpoints.latest_step() is None and config.resume_step is None:
        # Not an error: a job script says --resume from its first attempt on.
        reporter.note(f"{checkpoints.directory} holds no checkpoint yet: starting a new run")
        return 0, _fresh(config, compiled, reporter)
    with reporter.phase("restoring"):
        restored = checkpoints.restore(compiled.abstract_user_state, config.resume_step)
    saved = _position(restored, checkpoints)
    _check_data(config, dataset, saved, restored.step)
    stream.set_state(saved["iterator"])
    _tell(config, compiled, restored, saved["config"], reporter)
    return restored.step, compiled.from_user_state(restored.state)


def _fresh(config: TrainConfig, compiled: Any, reporter: Reporter) -> Any:
    with reporter.phase("initialising"):
        return jax.block_until_ready(compiled.init(jax.random.key(config.seed)))


def _position(restored: Restored, checkpoints: Checkpointer) -> Mapping[str, Any]:
    saved = restored.data_state
    if not isinstance(saved, Mapping) or not saved.keys() >= {"iterator", "config"}:
        raise CheckpointError(
            f"The checkpoint of step {restored.step} in {checkpoints.directory} was not saved by "
            f"experiments.train: it lacks the position in the data. Restore it with "
            f"autoshard.checkpoint.Checkpointer instead."
        )
    return saved


def _check_data(config: TrainConfig, dataset: Dataset, saved: Mapping[str, Any], step: int) -> None:
    """A position means nothing in other data, in another order, or in other batches."""
    if saved["config"]["seed"] != config.seed:
        changed, then = "--seed", saved["config"]["seed"]
    elif saved["batch_size"] != dataset.batch_size:
        changed, then = "--batch_size", saved["batch_size"]
    elif saved["fingerprint"] != dataset.fingerprint:
        changed, then = "--data or --seq_len (or a file among the data)", "other data"
    else:
        return
    raise CheckpointError(
        f"The checkpoint of step {step} stands at a position in other batches: {changed} has "
        f"changed (then: {then}). Use the same as then to go on with the same loss curve, or start "
        f"a new run in another --checkpoint_dir."
    )


def _tell(
    config: TrainConfig,
    compiled: Any,
    restored: Restored,
    saved: Mapping[str, Any],
    reporter: Reporter,
) -> None:
    text = f"resumed after step {restored.step}"
    if restored.plan != json.loads(json.dumps(compiled.plan.to_json())):
        was = f"mesh {saved['mesh'] or 'all devices'}, rules {saved['rules']}"
        text += f"; it was saved under another plan ({was}) and is laid out anew"
    reporter.note(text)
    now = config.to_json()
    changed = [f"--{k} {saved[k]} -> {now[k]}" for k in _SCHEDULE if saved[k] != now[k]]
    if changed:
        reporter.note(f"the loss curve will bend here, as {', '.join(changed)}")
