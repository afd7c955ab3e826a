"""What a run leaves to look at: JSON lines, TensorBoard events and a loss curve.

`metrics.jsonl` is the record: one row a step, each step once, even where a run was killed and went
on from an older checkpoint. The rest is drawn from the same numbers.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

ROWS = "metrics.jsonl"
CURVE = "loss.png"
EVENTS = "tensorboard"

Row = dict[str, Any]


class MetricsWriter:
    """Writes the metrics of one run into a directory.

    Args:
      directory: created if absent.
      resume_step: None for a new run, whose directory may hold an earlier run's rows: these are
        kept under another name. A step k for a run that goes on after step k: rows up to k stay,
        later ones, of work that was lost, are dropped.
      events_every: TensorBoard gets every n-th step, and every step with a held-out score.

    Raises:
      OSError: the directory cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        resume_step: int | None = None,
        events_every: int = 1,
    ):
        self.directory = pathlib.Path(directory).expanduser()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._events_every = events_every
        path = self.directory / ROWS
        if resume_step is None:
            _keep_under_another_name(path)
        else:
            _replace(path, (row for row in read_rows(path) if row["step"] <= resume_step))
        # Line buffered: what was logged before a kill is on disk.
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._events = SummaryWriter(
            str(self.directory / EVENTS), purge_step=(resume_step or 0) + 1, flush_secs=10
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records `values` of a step; each step once.

        Raises:
          ValueError: a value is NaN or infinite, which is not JSON and never a result.
        """
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        if step % self._events_every == 0 or any(key.startswith("heldout") for key in values):
            for key, value in values.items():
                self._events.add_scalar(key, value, step)

    def rows(self) -> list[Row]:
        """All rows of the run so far, those before a resumption included."""
        return read_rows(self.directory / ROWS)

    def close(self) -> None:
        self._file.close()
        self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_rows(path: pathlib.Path) -> list[Row]:
    """Reads a `metrics.jsonl`; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def draw_loss_curve(path: pathlib.Path, rows: Sequence[Row], title: str) -> None:
    """Draws the training loss, and the held-out score where there is one, as a PNG.

    Args:
      path: of the PNG.
      rows: with "step" and "loss" [nats], some with "heldout_bits_per_byte" or "heldout_loss".
      title: names model, mesh and rules.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(
        [row["step"] for row in rows],
        [row["loss"] for row in rows],
        color="tab:blue",
        linewidth=1,
        label="training",
    )
    axes.set_xlabel("step [optimizer updates]")
    axes.set_ylabel("training loss [nats per prediction]", color="tab:blue")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    key, label = "heldout_bits_per_byte", "held-out [bits per byte]"
    if not any(key in row for row in rows):
        key, label = "heldout_loss", "held-out loss [nats per prediction]"
    scored = [row for row in rows if key in row]
    if scored:
        right = axes.twinx()
        right.plot(
            [row["step"] for row in scored],
            [row[key] for row in scored],
            color="tab:orange",
            marker="o",
            markersize=3,
        )
        right.set_ylabel(label, color="tab:orange")
    figure.savefig(path)


def _keep_under_another_name(path: pathlib.Path) -> None:
    if not path.exists():
        return
    n = 1
    while (kept := path.with_name(f"{path.stem}.{n}{path.suffix}")).exists():
        n += 1
    path.rename(kept)


def _replace(path: pathlib.Path, rows: Iterable[Row]) -> None:
    """Rewrites the file in one piece, so that a kill leaves either the old or the new."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)
