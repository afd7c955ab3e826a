"""Being asked to stop: SIGTERM from a scheduler, Ctrl-C from a person."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any


class StopRequest:
    """Whether a signal has asked the run to stop, and which."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGTERM or SIGINT into a request that the loop sees after its step.

    A second one acts as it would have without us: whoever cannot wait for the checkpoint need not.
    """
    request = StopRequest()
    previous: dict[int, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name
        signal.signal(number, previous[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, on_signal)
    try:
        yield request
    finally:
        for signal_number, handler in previous.items():
            signal.signal(signal_number, handler)
