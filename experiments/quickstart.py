"""The whole path in one command: plan, train, be interrupted, resume on another mesh, report.

  make run        (or: python -m experiments.quickstart)

A GPT of 0.8 million parameters learns the bytes of the Python standard library's source on eight
CPU devices. Half-way the run is stopped as a cluster stops a job, by SIGTERM, and goes on from its
checkpoint on a mesh of another shape under other rules. It ends with the loss curve and a verdict:
held-out bits per byte must be below 3.2, or the exit status is 1.
"""

import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from experiments.metrics import read_rows

BITS_PER_BYTE = 3.2
_STEPS = flags.DEFINE_integer("steps", 300, "Updates in all, over both meshes.", lower_bound=2)
_FIRST = ("--mesh=data=4,model=2", "--rules=zero3+redco")
_SECOND = ("--mesh=data=8", "--rules=auto")


def command(directory: pathlib.Path, steps: int, *more: str) -> list[str]:
    """The runner's command line."""
    return [
        sys.executable, "-m", "experiments.train", "--model=gpt2_tiny", f"--steps={steps}",
        "--batch_size=32", "--seq_len=128", "--learning_rate=3e-3", "--log_every=25",
        f"--eval_every={max(1, steps // 3)}", f"--checkpoint_every={max(1, steps // 6)}",
        f"--checkpoint_dir={directory / 'checkpoints'}", f"--output_dir={directory}", *more,
    ]  # fmt: skip


def show(arguments: list[str]) -> None:
    """Print a command as the user would type it."""
    print("\n$ python " + " ".join(arguments[1:]), flush=True)


def train_until(arguments: list[str], metrics: pathlib.Path, step: int) -> int:
    """Start a run and stop it with SIGTERM once it has recorded `step`; returns its exit status."""
    show(arguments)
    process = subprocess.Popen(arguments)
    while process.poll() is None:
        if metrics.exists() and any(row["step"] >= step for row in read_rows(metrics)[-1:]):
            print(f"-- step {step} is done: stopping the run with SIGTERM --", flush=True)
            process.send_signal(signal.SIGTERM)
            return process.wait()
        time.sleep(0.2)
    return process.returncode


def verdict(metrics: pathlib.Path) -> str | None:
    """What is wrong with the finished run, or None."""
    rows = read_rows(metrics)
    scores = [row["heldout_bits_per_byte"] for row in rows if "heldout_bits_per_byte" in row]
    steps = [row["step"] for row in rows]
    if steps != list(range(1, len(steps) + 1)):
        return "the loss curve has gaps or repeated steps"
    if not scores or scores[-1] >= BITS_PER_BYTE:
        return f"held-out bits per byte are {scores[-1:]}, not below {BITS_PER_BYTE}"
    print(
        f"\nheld-out bits per byte: {scores[-1]:.3f} (bar: {BITS_PER_BYTE}) after {steps[-1]} "
        f"steps over two meshes"
    )
    return None


def main(argv: list[str]) -> None:
    """Run the demonstration in a fresh directory below runs/."""
    del argv
    began = time.monotonic()
    root = pathlib.Path("runs")
    root.mkdir(exist_ok=True)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="quickstart-", dir=root))
    metrics = directory / "metrics.jsonl"
    steps = _STEPS.value
    status = train_until(command(directory, steps, *_FIRST), metrics, steps // 2)
    if status == 0:
        arguments = command(directory, steps, *_SECOND, "--resume")
        show(arguments)
        status = subprocess.run(arguments, check=False).returncode
    problem = verdict(metrics) if status == 0 else f"a run ended with status {status}"
    if problem is not None:
        sys.exit(f"quickstart failed: {problem}; everything it wrote is in {directory}")
    print(f"plan, metrics and loss curve: {directory}/  ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    app.run(main)
