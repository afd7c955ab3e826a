"""Metrics: each step once, whatever was killed, and a curve that can be looked at."""

import json
import math
import struct

import pytest
from tensorboardX.proto import event_pb2

from experiments.metrics import CURVE, EVENTS, ROWS, MetricsWriter, draw_loss_curve, read_rows


def write(directory, steps, resume_step=None, **options):
    with MetricsWriter(directory, resume_step=resume_step, **options) as writer:
        for step in steps:
            writer.write(step, {"loss": 10.0 - step + (resume_step or 0) * 100})
        return writer.rows()


def test_resuming_drops_the_rows_of_lost_work(tmp_path):
    write(tmp_path, range(1, 8))
    rows = write(tmp_path, range(5, 9), resume_step=4)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[3]["loss"] == 6.0 and rows[4]["loss"] == 405.0


def test_a_row_cut_short_by_a_kill_is_left_out(tmp_path):
    write(tmp_path, range(1, 4))
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"step": 4, "lo')
    rows = write(tmp_path, [4, 5], resume_step=3)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for line in (tmp_path / ROWS).read_text().splitlines():
        json.loads(line)


def test_a_new_run_keeps_an_earlier_one_under_another_name(tmp_path):
    for _ in range(3):
        write(tmp_path, range(1, 4))
    assert len(read_rows(tmp_path / ROWS)) == 3
    assert len(read_rows(tmp_path / "metrics.1.jsonl")) == 3
    assert len(read_rows(tmp_path / "metrics.2.jsonl")) == 3


def test_resuming_without_earlier_rows(tmp_path):
    assert [row["step"] for row in write(tmp_path, [6], resume_step=5)] == [6]


def test_rows_are_on_disk_at_once_and_finite(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
        assert read_rows(tmp_path / ROWS) == [{"step": 1, "loss": 1.0}]
        with pytest.raises(ValueError):
            writer.write(2, {"loss": math.nan})
        assert len(writer.rows()) == 1


def events_of(directory):
    """The scalars (tag, step) in the event files, which are length-prefixed protocol buffers."""
    found = []
    for path in sorted(directory.glob("events.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            found += [(value.tag, event.step) for value in event.summary.value]
            at += 12 + length + 4
    return found


def test_tensorboard_gets_every_nth_step_and_every_score(tmp_path):
    with MetricsWriter(tmp_path, events_every=2) as writer:
        writer.write(1, {"loss": 3.0})
        writer.write(2, {"loss": 2.0})
        writer.write(3, {"loss": 1.0, "heldout_bits_per_byte": 4.0})
    events = events_of(tmp_path / EVENTS)
    assert events == [("loss", 2), ("loss", 3), ("heldout_bits_per_byte", 3)]


@pytest.mark.parametrize("scores", [{}, {"heldout_bits_per_byte": 4.0}, {"heldout_loss": 2.0}])
def test_the_curve_is_a_png(tmp_path, scores):
    rows = [{"step": s, "loss": 5 / s, "grad_norm": 1.0} for s in range(1, 30)]
    rows[9].update(scores)
    rows[19].update(scores)
    draw_loss_curve(tmp_path / CURVE, rows, "gpt2_tiny on data=8, rules zero3")
    content = (tmp_path / CURVE).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[12:16] == b"IHDR"
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (960, 540) and content.rstrip().endswith(b"IEND\xaeB`\x82")
