"""Says how a run goes: a bar on a terminal, plain lines in a log.

Both take the same calls, so the training loop does not know which it talks to.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class StepReport:
    """One step's news.

    Attributes:
      step: updates applied.
      loss: nats per prediction.
      grad_norm: before clipping.
      per_second: tokens or examples a second, None while not known.
      left_s: estimated seconds to the last step, None while not known.
    """

    step: int
    loss: float
    grad_norm: float
    per_second: float | None = None
    left_s: float | None = None


class Reporter(Protocol):
    """What the runner tells of itself, and to whom it does not matter."""

    def phase(self, text: str) -> contextlib.AbstractContextManager[None]:
        """A wait that is worth explaining: planning, compiling."""

    def step(self, report: StepReport) -> None:
        """A training step was checked."""

    def note(self, text: str) -> None:
        """A line that stays: a held-out score, a checkpoint."""

    def close(self) -> None:
        """The run is over."""


def make_reporter(
    total: int, unit: str, log_every: int, stream: TextIO | None = None
) -> "BarReporter | LineReporter":
    """A bar where `stream` (standard output unless given) is a terminal, else lines."""
    stream = sys.stdout if stream is None else stream
    if stream.isatty():
        return BarReporter(total, unit, Console(file=stream))
    return LineReporter(total, unit, log_every, stream)


class LineReporter:
    """One line every `log_every` steps, for logs and pipes.

    Args:
      total: the last step.
      unit: "tokens" or "examples".
      log_every: steps between lines; the first and the last step have one anyway.
      stream: where to write.
      clock: seconds, for the length of phases.
    """

    def __init__(
        self, total: int, unit: str, log_every: int, stream: TextIO, clock: Clock = time.monotonic
    ):
        self._total = total
        self._unit = unit
        self._log_every = log_every
        self._stream = stream
        self._clock = clock
        self._started = False

    @contextlib.contextmanager
    def phase(self, text: str) -> Iterator[None]:
        start = self._clock()
        self.note(f"{text} ...")
        yield
        self.note(f"{text}: done in {self._clock() - start:.1f} s")

    def step(self, report: StepReport) -> None:
        due = report.step % self._log_every == 0 or report.step == self._total
        if due or not self._started:
            self.note(_line(report, self._total, self._unit))
        self._started = True

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        pass


class BarReporter:
    """A bar with loss, throughput and time left; notes scroll by above it."""

    def __init__(self, total: int, unit: str, console: Console):
        self._total = total
        self._unit = unit
        self._console = console
        self._bar = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            console=console,
        )
        self._task = self._bar.add_task("training", total=total, news="")

    @contextlib.contextmanager
    def phase(self, text: str) -> Iterator[None]:
        if self._bar.live.is_started:  # A terminal shows one moving thing at a time.
            self._bar.update(self._task, news=f"{text} ...")
            yield
            return
        with self._console.status(f"{text} ..."):
            yield

    def step(self, report: StepReport) -> None:
        self._bar.start()
        self._bar.update(
            self._task, completed=report.step, news=_news(report, self._unit, brief=True)
        )

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def _line(report: StepReport, total: int, unit: str) -> str:
    width = len(str(total))
    return f"step {report.step:>{width}}/{total}  {_news(report, unit)}"


def _news(report: StepReport, unit: str, brief: bool = False) -> str:
    """The numbers of a step; `brief` leaves what a terminal of 80 columns has no room for."""
    parts = [f"loss {report.loss:.4f}"]
    if not brief:
        parts.append(f"grad norm {report.grad_norm:.3g}")
    if report.per_second is not None:
        parts.append(f"{report.per_second:,.0f} {unit}/s")
    if report.left_s is not None:
        parts.append(f"{_clock_face(report.left_s)} left")
    return "  ".join(parts)


def _clock_face(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
