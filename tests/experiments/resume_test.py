"""kill -9, then --resume on another mesh with other rules: the loss curve goes on as if nothing
had happened.
"""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.metrics import read_rows

# Far more steps than are waited for: every run is ended by a signal once it has gone far enough.
STEPS = 100_000
LAST = 45


def start(directory: pathlib.Path, mesh: str, rules: str, *more: str) -> subprocess.Popen:
    """The runner on a very small GPT, as a process of its own."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "experiments.train", "--model=gpt2_tiny",
            "--model_overrides=num_layers=1,d_model=32,max_seq_len=32", f"--steps={STEPS}",
            "--warmup_steps=5", "--batch_size=8", "--seq_len=32", "--eval_every=0",
            "--log_every=1000", f"--mesh={mesh}", f"--rules={rules}",
            f"--output_dir={directory}", *more,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def losses(directory: pathlib.Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_rows(directory / "metrics.jsonl")}


def end_after(process: subprocess.Popen, directory: pathlib.Path, step: int, sign: int) -> str:
    """Send `sign` once `step` is recorded; the process's output."""
    while process.poll() is None and max(losses(directory), default=0) < step:
        time.sleep(0.1)
    process.send_signal(sign)
    output, _ = process.communicate()
    assert max(losses(directory), default=0) >= step, output
    return output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    directory = tmp_path_factory.mktemp("uninterrupted")
    end_after(start(directory, "data=8", "data"), directory, LAST, signal.SIGTERM)
    return losses(directory)


def test_the_loss_curve_continues_after_kill_9_on_another_mesh(
    uninterrupted: dict[int, float], tmp_path: pathlib.Path
) -> None:
    saving = (f"--checkpoint_dir={tmp_path / 'checkpoints'}", "--checkpoint_every=10")
    first = start(tmp_path, "data=2,model=4", "zero3+redco", *saving)
    end_after(first, tmp_path, 25, signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    before = max(losses(tmp_path))

    second = start(tmp_path, "data=4,model=2", "redco", *saving, "--resume")
    output = end_after(second, tmp_path, max(LAST, before + 5), signal.SIGTERM)
    assert second.returncode == 0, output
    assert "resumed after step" in output
    assert "--resume" in output  # how to go on is said once more

    found = losses(tmp_path)
    assert sorted(found) == list(range(1, max(found) + 1))
    for step in range(1, LAST + 1):
        assert found[step] == pytest.approx(uninterrupted[step], abs=1e-4), step
