"""The runner around a stand-in model: resumption, divergence, signals, what the user is told."""

import contextlib
import dataclasses
import io
import itertools
import os
import pathlib
import signal
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags
from jax.sharding import Mesh

import autoshard
from autoshard.checkpoint import Checkpointer
from autoshard.errors import CheckpointError, PlanError
from experiments import data, devices, train
from experiments.config import TrainConfig
from experiments.data import BatchStream, DataError
from experiments.flag_fields import ConfigError, define_flags
from experiments.interrupts import stop_on_signals
from experiments.metrics import ROWS, MetricsWriter, draw_loss_curve, read_rows
from experiments.model_settings import batch_specs, model_spec
from experiments.progress import LineReporter
from experiments.resume import open_checkpoints, start_state
from experiments.train_loop import DivergedError, Ending, Outcome, Run
from experiments.train_loop import train as train_loop
from tests.experiments.stand_in import StandIn


def make_config(tmp_path: pathlib.Path, **changes) -> TrainConfig:
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(32, 127)) * 200)
    settings = {
        "mesh": "data=8",
        "steps": 9,
        "batch_size": 8,
        "seq_len": 16,
        "data": str(text),
        "eval_every": 4,
        "eval_batches": 2,
        "log_every": 2,
        "checkpoint_every": 3,
        "checkpoint_dir": str(tmp_path / "checkpoints"),
        "output_dir": str(tmp_path / "out"),
    }
    return TrainConfig(**{**settings, **changes})


class StandInCompile:
    """Stands in for `autoshard.compile`: lists its calls, passes its options to the result."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}

    def __call__(self, model: Any, mesh: Mesh, **keywords: Any) -> StandIn:
        self.calls.append({"model": model, "mesh": mesh, **keywords})
        return StandIn(mesh, **self.options)


@pytest.fixture
def stand_in(monkeypatch):
    compile_stand_in = StandInCompile()
    monkeypatch.setattr(autoshard, "compile", compile_stand_in, raising=False)
    # Drawing takes longer than the rest of these runs; one test puts it back.
    monkeypatch.setattr(train, "draw_loss_curve", lambda path, rows, title: None)
    # Set by the runner, and not to be left behind for other tests' subprocesses.
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    return compile_stand_in


def losses_of(directory: pathlib.Path) -> dict[int, float]:
    rows = rows_of(directory)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return {row["step"]: row["loss"] for row in rows}


def rows_of(directory: pathlib.Path) -> list[dict]:
    return read_rows(directory / ROWS)


def test_a_run_learns_and_leaves_its_files(tmp_path, stand_in, capsys, monkeypatch):
    monkeypatch.setattr(train, "draw_loss_curve", draw_loss_curve)
    outcome = train.run(make_config(tmp_path, steps=12, rules="zero3+redco", log_every=5))
    assert (outcome.ending, outcome.step) == (Ending.FINISHED, 12)
    losses = losses_of(tmp_path / "out")
    assert losses[12] < losses[1] - 0.5
    scored = [row["step"] for row in rows_of(tmp_path / "out") if "heldout_loss" in row]
    assert scored == [4, 8, 12]
    assert outcome.heldout["heldout_bits_per_byte"] == pytest.approx(
        outcome.heldout["heldout_loss"] / np.log(2)
    )
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left == {"metrics.jsonl", "tensorboard", "plan.json", "config.json", "loss.png"}
    with Checkpointer(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == (6, 9, 12)
    shown = capsys.readouterr().out
    for part in ("a stand-in plan", "step 10/12", "tokens/s", "bits per byte", "finished at step"):
        assert part in shown
    (call,) = stand_in.calls
    assert call["rules"] == ["zero3", "redco"] and call["batch"]["tokens"].shape == (8, 16)
    assert call["strict"] is False and call["dtype"] is None and call["plan"] is None


@pytest.mark.parametrize("mesh", ["data=8", "data=2,model=4", "data=4"])
def test_a_resumed_run_continues_the_loss_curve_on_any_mesh(tmp_path, stand_in, mesh, capsys):
    whole = make_config(tmp_path, checkpoint_dir="", output_dir=str(tmp_path / "whole"))
    train.run(whole)

    config = make_config(tmp_path)
    stand_in.options["on_step"] = lambda step: _die() if step == 8 else None
    with pytest.raises(_Killed):
        train.run(config)
    stand_in.options.clear()
    outcome = train.run(dataclasses.replace(config, mesh=mesh, resume=True))

    assert outcome.step == 9
    shown = capsys.readouterr().out
    assert "resumed after step 6" in shown
    assert ("laid out anew" in shown) == (mesh != "data=8")
    want, got = losses_of(tmp_path / "whole"), losses_of(tmp_path / "out")
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)


class _Killed(BaseException):
    """As abrupt as a kill that a test can survive."""


def _die():
    raise _Killed


def test_resuming_from_an_older_step_and_an_already_finished_run(tmp_path, stand_in, capsys):
    config = make_config(tmp_path)
    train.run(config)
    before = losses_of(tmp_path / "out")
    again = dataclasses.replace(config, resume=True)
    assert train.run(again).step == 9
    assert losses_of(tmp_path / "out") == before
    assert train.run(dataclasses.replace(again, resume_step=3)).step == 9
    np.testing.assert_allclose(
        list(losses_of(tmp_path / "out").values()), list(before.values()), rtol=1e-6
    )
    assert "resumed after step 3" in capsys.readouterr().out


def test_resuming_with_nothing_there_starts_anew(tmp_path, stand_in, capsys):
    assert train.run(make_config(tmp_path, resume=True)).step == 9
    assert "holds no checkpoint yet" in capsys.readouterr().out


def test_an_earlier_run_is_not_overwritten(tmp_path, stand_in):
    train.run(make_config(tmp_path))
    with pytest.raises(CheckpointError, match=r"up to step 9. Add --resume"):
        train.run(make_config(tmp_path))
    assert len(stand_in.calls) == 1, "refused before anything is planned"


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"seed": 1}, "--seed"), ({"batch_size": 16}, "--batch_size"), ({"seq_len": 32}, "--seq_len")],
)
def test_resuming_on_other_data_is_refused(tmp_path, stand_in, changes, named):
    train.run(make_config(tmp_path))
    with pytest.raises(CheckpointError, match=named):
        train.run(make_config(tmp_path, resume=True, **changes))


def test_a_changed_schedule_is_told(tmp_path, stand_in, capsys):
    train.run(make_config(tmp_path, steps=6))
    assert train.run(make_config(tmp_path, resume=True)).step == 9
    assert "the loss curve will bend here, as --steps 6 -> 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"nan_at": 5}, r"loss of step 5 is nan.*last good checkpoint is that of step 3"),
        # The loss of this step is finite, but what it has left behind is not.
        ({"bad_grad_at": 6}, r"gradient norm of step 6 is inf.*good checkpoint is that of step 3"),
        (
            {"nan_at": 2},
            r"loss of step 2 is nan.*no checkpoint to go back to.*learning_rate=0.0003",
        ),
    ],
)
def test_divergence_stops_the_run_and_saves_nothing_bad(tmp_path, stand_in, option, message):
    stand_in.options.update(option)
    with pytest.raises(DivergedError, match=message):
        train.run(make_config(tmp_path))
    with Checkpointer(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() in ((3,), ())
    assert max(losses_of(tmp_path / "out")) == (min(option.values()) - 1)


def _terminate_at_step_5(step: int) -> None:
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path, stand_in, capsys):
    stand_in.options["on_step"] = _terminate_at_step_5
    before = signal.getsignal(signal.SIGTERM)
    config = make_config(tmp_path)
    outcome = train.run(config)
    assert (outcome.ending, outcome.step) == (Ending.STOPPED, 5)
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = dataclasses.replace(config, resume=True)
    shown = capsys.readouterr().out
    assert "stopped after step 5 and saved" in shown and resumed.command() in shown
    stand_in.options.clear()
    assert train.run(resumed).step == 9
    assert len(losses_of(tmp_path / "out")) == 9


@pytest.fixture
def interrupts():
    """Control-C raises, whatever tests before this one have left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_is_not_held_back(interrupts):
    # Raised in this thread: a signal sent to the process may reach it some instructions later.
    with contextlib.suppress(KeyboardInterrupt), stop_on_signals() as stop:
        assert not stop
        signal.raise_signal(signal.SIGINT)
        assert stop and stop.signal_name == "SIGINT"
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was swallowed")


def test_synthetic_data_has_no_bits_per_byte(tmp_path):
    """The loop itself, on a model of vectors."""
    specs = {
        "x": jax.ShapeDtypeStruct((8, 4), np.float32),
        "label": jax.ShapeDtypeStruct((8,), np.int32),
    }

    class Constant:
        plan = StandIn(_mesh("data=8")).plan

        def step(self, state, batch):
            assert batch["x"].shape == (8, 4)
            return state, {"loss": np.float32(1.0), "grad_norm": np.float32(1.0)}

        def eval(self, state, batch):
            return {"loss": np.float32(2.0)}

        def to_user_state(self, state):
            return state

    dataset = data.for_model(specs, eval_batches=1)
    stream = BatchStream(dataset.train, 8, seed=0)
    output = io.StringIO()
    with MetricsWriter(tmp_path) as metrics:
        ticks = itertools.count()
        run = Run(
            Constant(), TrainConfig(steps=4, log_every=1), dataset, stream, None, metrics,
            LineReporter(4, "examples", 1, output), lambda: False, clock=lambda: float(next(ticks)),
        )  # fmt: skip
        outcome: Outcome = train_loop(run, {}, 0)
    assert outcome.heldout == {"heldout_loss": 2.0}
    # One step a tick of the clock, eight examples a step.
    assert "step 2/4  loss 1.0000  grad norm 1  8 examples/s  0:02 left" in output.getvalue()


def _mesh(text: str) -> Mesh:
    mesh = devices.make_mesh(text)
    assert isinstance(mesh, Mesh)
    return mesh


def test_a_checkpoint_of_something_else_is_refused(tmp_path, stand_in):
    compiled = StandIn(_mesh("data=8"))
    with Checkpointer(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, compiled.init(jax.random.key(0)))
    with pytest.raises(CheckpointError, match=r"not saved by experiments\.train"):
        train.run(make_config(tmp_path, resume=True))


def main(*arguments: str) -> int:
    values = flags.FlagValues()
    define_flags(TrainConfig, values)
    return train.main(values(["train", *arguments]), values)


def arguments_for(tmp_path, **changes) -> list[str]:
    return make_config(tmp_path, **changes).arguments()


def test_exit_status_and_one_paragraph(tmp_path, stand_in, capsys, monkeypatch):
    assert main(*arguments_for(tmp_path)) == 0
    capsys.readouterr()

    def check(status: int, message: str, *arguments: str) -> None:
        assert main(*arguments) == status
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1

    check(2, "Add --resume", *arguments_for(tmp_path))
    check(2, "gpt2_tiny", "--model=gpt2_tinny")
    check(2, "Unexpected argument 'steps=3'", "steps=3")
    check(2, "must be at least 1", "--steps=0")
    check(2, "no field 'layers'", "--model_overrides=layers=2")
    check(2, "num_heads", "--model_overrides=num_heads=7")
    check(2, "max_seq_len", "--seq_len=4096")
    check(2, "vocabulary has 64 tokens", "--model_overrides=vocab_size=64")
    check(2, "needs 64 devices", *arguments_for(tmp_path, mesh="data=64", checkpoint_dir=""))
    check(2, "matches no file", *arguments_for(tmp_path, data=str(tmp_path / "*.none")))
    blocked = str(tmp_path / "text.txt" / "out")
    check(2, "cannot be written", *arguments_for(tmp_path, output_dir=blocked, checkpoint_dir=""))
    check(2, "cannot be written", *arguments_for(tmp_path, checkpoint_dir=blocked))
    stand_in.options["nan_at"] = 1
    check(3, "loss of step 1 is nan", *arguments_for(tmp_path, checkpoint_dir=""))


def test_library_errors_are_not_tracebacks(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PlanError("the plan is of another program.")

    monkeypatch.setattr(autoshard, "compile", refuse, raising=False)
    assert main(*arguments_for(tmp_path)) == 2
    assert capsys.readouterr().err == "error: the plan is of another program.\n"


def test_models_of_images_and_vectors_have_data(tmp_path):
    for model, key in (("mlp", "x"), ("vit_tiny", "image")):
        config = TrainConfig(model=model, batch_size=4)
        with contextlib.suppress(train.models.UnknownModelError):
            dataset = train.make_dataset(config, model_spec(config))
            batch = next(BatchStream(dataset.train, 4, 0))
            specs = batch_specs(config, model_spec(config))
            assert {k: v.shape for k, v in batch.items()} == {k: v.shape for k, v in specs.items()}
            assert key in batch
    with pytest.raises(ConfigError, match="seq_len"):
        train.make_dataset(
            TrainConfig(model="mlp", seq_len=8), model_spec(TrainConfig(model="mlp"))
        )
    with pytest.raises(DataError, match="--data"):
        train.make_dataset(TrainConfig(model="mlp", data="*"), model_spec(TrainConfig(model="mlp")))


def test_the_vocabulary_is_padded_on_request():
    spec = model_spec(TrainConfig(model="gpt2_tiny", pad_vocab=96))
    assert getattr(spec.config, "padded_vocab_size") == 288  # noqa: B009
    with pytest.raises(train.models.UnknownFieldError, match="pad_vocab_to"):
        model_spec(TrainConfig(model="mlp", pad_vocab=96))


def test_opening_and_starting_without_checkpoints(tmp_path):
    config = make_config(tmp_path, checkpoint_dir="")
    compiled = StandIn(_mesh("data=8"))
    with contextlib.ExitStack() as stack:
        assert open_checkpoints(config, stack) is None
    reporter = LineReporter(1, "tokens", 1, io.StringIO())
    specs = {"tokens": jax.ShapeDtypeStruct((8, 16), np.int32)}
    dataset = data.for_model(specs, pattern=config.data)
    stream = BatchStream(dataset.train, 8, 0)
    start, state = start_state(config, compiled, dataset, stream, None, reporter)
    assert start == 0 and state.params["table"].shape == (256, 256)
