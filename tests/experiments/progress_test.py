"""What the run says, on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from experiments.progress import BarReporter, LineReporter, StepReport, make_reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_come_every_few_steps_and_at_both_ends():
    stream = io.StringIO()
    reporter = LineReporter(25, "tokens", 10, stream)
    for step in range(1, 26):
        reporter.step(StepReport(step, loss=2.5, grad_norm=0.125))
    starts = [line.split("  loss")[0] for line in stream.getvalue().splitlines()]
    assert starts == ["step  1/25", "step 10/25", "step 20/25", "step 25/25"]


def test_a_line_has_loss_throughput_and_time_left():
    stream = io.StringIO()
    LineReporter(300, "tokens", 10, stream).step(
        StepReport(10, loss=3.25, grad_norm=1.5, per_second=12345.6, left_s=3725)
    )
    assert stream.getvalue() == (
        "step  10/300  loss 3.2500  grad norm 1.5  12,346 tokens/s  1:02:05 left\n"
    )


def test_phases_say_how_long_they_took():
    times = iter([10.0, 12.5])
    stream = io.StringIO()
    with LineReporter(1, "tokens", 1, stream, clock=lambda: next(times)).phase("planning"):
        assert stream.getvalue() == "planning ...\n"
    assert stream.getvalue().endswith("planning: done in 2.5 s\n")


def test_a_failed_phase_is_not_called_done():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), LineReporter(1, "t", 1, stream).phase("planning"):
        raise RuntimeError
    assert "done" not in stream.getvalue()


def test_the_stream_decides():
    assert isinstance(make_reporter(1, "tokens", 1, io.StringIO()), LineReporter)
    assert isinstance(make_reporter(1, "tokens", 1, Terminal()), BarReporter)


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    reporter = BarReporter(20, "tokens", Console(file=stream, force_terminal=True, width=120))
    with reporter.phase("planning"):
        pass
    reporter.step(StepReport(7, loss=3.25, grad_norm=1.5, per_second=99, left_s=61))
    with reporter.phase("scoring"):  # While the bar moves: the terminal has one moving thing.
        pass
    reporter.note("step 7: [kept] as it is")
    reporter.step(StepReport(20, loss=3.0, grad_norm=1.5, per_second=99, left_s=0))
    reporter.close()
    text = stream.getvalue()
    for part in ("20/20", "loss 3.0000", "99 tokens/s", "[kept] as it is"):
        assert part in text
