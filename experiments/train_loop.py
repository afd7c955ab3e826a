"""The training loop: step, check, record, score, save.

The loop runs one step ahead of what it knows: while the devices compute step n it reads the loss of
step n - 1, so that checking costs no stall. Before anything is scored or saved it catches up. Hence
the rule that every checkpoint holds: all of its steps had a finite loss and gradient.
"""

import dataclasses
import enum
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from autoshard.checkpoint import Checkpointer
from autoshard.errors import AutoshardError
from experiments.config import TrainConfig
from experiments.data import Batch, BatchStream, Dataset
from experiments.metrics import MetricsWriter
from experiments.progress import Clock, Reporter, StepReport


class DivergedError(AutoshardError):
    """The loss or the gradient is NaN or infinite: the state is lost, older checkpoints are not."""


class Trainable(Protocol):
    """What the loop needs of `autoshard.compile`'s result."""

    @property
    def plan(self) -> Any: ...

    def step(self, state: Any, batch: Batch) -> tuple[Any, Mapping[str, Any]]: ...

    def eval(self, state: Any, batch: Batch) -> Mapping[str, Any]: ...

    def to_user_state(self, state: Any) -> Any: ...


class Ending(enum.Enum):
    """Why a run ended without an error."""

    FINISHED = "finished"
    STOPPED = "stopped"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that stays the same from the first step to the last.

    Attributes:
      compiled: the sharded program.
      config: the settings.
      dataset: for held-out batches and what throughput counts.
      stream: training batches.
      checkpoints: None where nothing is to be saved.
      metrics: where each step is recorded.
      reporter: where each step is told.
      stop: whether the run has been asked to stop.
      clock: seconds.
    """

    compiled: Trainable
    config: TrainConfig
    dataset: Dataset
    stream: BatchStream
    checkpoints: Checkpointer | None
    metrics: MetricsWriter
    reporter: Reporter
    stop: Callable[[], bool]
    clock: Clock = time.monotonic


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """How a run ended.

    Attributes:
      ending: finished, or stopped by a signal.
      step: updates applied to `state`.
      state: the training state.
      heldout: the last held-out score, empty if there was none.
    """

    ending: Ending
    step: int
    state: Any
    heldout: Mapping[str, float]


class _Speed:
    """Steps a second over the last few, without compilation, scoring and saving."""

    def __init__(self, run: Run):
        self._run = run
        self._since: float | None = None
        self._steps = 0
        self._last: float | None = None

    def steps_per_s(self) -> float | None:
        """Call once for every step, in order; None while not known."""
        now = self._run.clock()
        if self._since is None:
            self._since, self._steps = now, 0  # This step's time was not all its own.
            return self._last
        self._steps += 1
        if self._steps >= self._run.config.log_every or self._last is None:
            self._last = self._steps / max(now - self._since, 1e-9)
            self._since, self._steps = now, 0
        return self._last

    def pause(self) -> None:
        """Something else than steps took time."""
        self._since = None


def train(run: Run, state: Any, start: int) -> Outcome:
    """Trains from step `start` to `run.config.steps`, or until asked to stop.

    Args:
      run: what does not change.
      state: the state after `start` updates; donated.
      start: updates applied so far.

    Raises:
      DivergedError: a loss, a gradient or a score is not finite; nothing of that step is saved.
      CheckpointError: a checkpoint cannot be written.
    """
    config, step = run.config, start
    pending: deque[tuple[int, Mapping[str, Any]]] = deque()
    speed = _Speed(run)
    heldout: dict[str, float] = {}
    while step < config.steps and not run.stop():
        batch = next(run.stream)
        if step == start:
            with run.reporter.phase("compiling the training step"):
                state, metrics = run.compiled.step(state, batch)
                np.asarray(metrics["loss"])  # Waits: compiling is the long part, running follows.
        else:
            state, metrics = run.compiled.step(state, batch)
        step += 1
        pending.append((step, metrics))
        score_due = step == config.steps or (config.eval_every and step % config.eval_every == 0)
        save_due = step % config.checkpoint_every == 0
        # One step stays unread while the devices work, unless what follows depends on it.
        while len(pending) > (0 if score_due or save_due else 1):
            checked = _check(run, *pending.popleft())
            _report(run, checked, speed)
            if score_due and not pending:
                heldout = evaluate(run, state, step)
            _record(run, checked, heldout if score_due and not pending else {})
        if save_due:
            save(run, state, step)
        if score_due or save_due:
            speed.pause()
    for remaining in pending:
        checked = _check(run, *remaining)
        _report(run, checked, speed)
        _record(run, checked, {})
    save(run, state, step)
    ending = Ending.FINISHED if step >= config.steps else Ending.STOPPED
    return Outcome(ending, step, state, heldout)


def evaluate(run: Run, state: Any, step: int) -> dict[str, float]:
    """The mean loss over the held-out batches [nats], and in bits per byte for text.

    Raises:
      DivergedError: it is not finite.
    """
    losses = [run.compiled.eval(state, batch)["loss"] for batch in run.dataset.heldout_batches()]
    loss = float(np.mean([float(np.asarray(value)) for value in losses]))
    if not math.isfinite(loss):
        raise DivergedError(_diverged(run, step, "held-out loss", loss))
    scores = {"heldout_loss": loss}
    text = f"step {step}: held-out loss {loss:.4f} nats"
    if run.dataset.is_bytes:
        scores["heldout_bits_per_byte"] = loss / math.log(2)
        text += f", {loss / math.log(2):.4f} bits per byte"
    run.reporter.note(text)
    return scores


def save(run: Run, state: Any, step: int) -> None:
    """Starts a checkpoint of `step`, of which all steps must have been checked."""
    if run.checkpoints is None:
        return
    saved = run.compiled.to_user_state(state)
    started = run.checkpoints.save(
        step, saved, data_state=position(run), plan=run.compiled.plan.to_json(), force=True
    )
    if started:
        run.reporter.note(f"step {step}: saving a checkpoint in {run.checkpoints.directory}")


def position(run: Run) -> dict[str, Any]:
    """Where the data stands, and what has to be the same for that to mean anything."""
    return {
        "iterator": run.stream.get_state(),
        "fingerprint": run.dataset.fingerprint,
        "batch_size": run.dataset.batch_size,
        "config": run.config.to_json(),
    }


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A step whose numbers are known to be finite."""

    step: int
    loss: float
    grad_norm: float


def _check(run: Run, step: int, metrics: Mapping[str, Any]) -> _Checked:
    loss, grad_norm = (float(np.asarray(metrics[key])) for key in ("loss", "grad_norm"))
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not math.isfinite(value):
            raise DivergedError(_diverged(run, step, name, value))
    return _Checked(step, loss, grad_norm)


def _report(run: Run, checked: _Checked, speed: _Speed) -> None:
    report = StepReport(checked.step, checked.loss, checked.grad_norm)
    steps_per_s = speed.steps_per_s()
    if steps_per_s is not None:
        report = dataclasses.replace(
            report,
            per_second=steps_per_s * run.dataset.tokens_per_batch,
            left_s=(run.config.steps - checked.step) / steps_per_s,
        )
    run.reporter.step(report)


def _record(run: Run, checked: _Checked, heldout: Mapping[str, float]) -> None:
    values = {"loss": checked.loss, "grad_norm": checked.grad_norm, **heldout}
    run.metrics.write(checked.step, values)


def _diverged(run: Run, step: int, name: str, value: float) -> str:
    last = None if run.checkpoints is None else run.checkpoints.latest_step()
    if last is None:
        kept = "There is no checkpoint to go back to"
    else:
        assert run.checkpoints is not None
        kept = f"The last good checkpoint is that of step {last} in {run.checkpoints.directory}"
    lower = run.config.learning_rate / 3
    return (
        f"The {name} of step {step} is {value}: training stopped, and the state was not saved. "
        f"{kept}. Try a lower learning rate (--learning_rate={lower:.1g}), a longer warm-up "
        f"(--warmup_steps), or --dtype=float32 if you train in a narrower type; with --resume the "
        f"run goes on from that checkpoint."
    )
