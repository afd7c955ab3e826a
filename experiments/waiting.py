"""Says that something long is going on, and for how long already."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Clock = Callable[[], float]
Tick = Callable[[float], None]


class Waiter:
    """A spinner with the seconds on a terminal, a line now and then in a log.

    Args:
      stream: where to write; standard output unless given.
      every_s: seconds between lines in a log.
      clock: seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, every_s: float = 30.0, clock: Clock = time.monotonic
    ):
        self._stream = sys.stdout if stream is None else stream
        self._every_s = every_s
        self._clock = clock

    def note(self, text: str) -> None:
        """A line that stays."""
        print(text, file=self._stream, flush=True)

    @contextlib.contextmanager
    def phase(self, text: str) -> Iterator[Tick]:
        """A wait; what it yields is to be called now and then with the seconds since its begin."""
        start = self._clock()
        with self._spinner(text) if self._stream.isatty() else self._lines(text) as tick:
            yield tick
        self.note(f"{text}: {self._clock() - start:.1f} s")

    @contextlib.contextmanager
    def _spinner(self, text: str) -> Iterator[Tick]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(file=self._stream), transient=True) as progress:
            progress.add_task(text, total=None)  # It redraws itself, no call is needed.
            yield lambda seconds: None

    @contextlib.contextmanager
    def _lines(self, text: str) -> Iterator[Tick]:
        due = self._every_s

        def tick(seconds: float) -> None:
            nonlocal due
            if seconds >= due:
                self.note(f"{text} ... {seconds:.0f} s")
                due = (seconds // self._every_s + 1) * self._every_s

        self.note(f"{text} ...")
        yield tick
