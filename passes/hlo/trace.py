"""A `Timeline` as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

The format is the "Trace Event Format" of the Chrome team: complete events (`ph: X`) with times in
microseconds, one thread a stream, and a counter for HBM.
"""

import json
import os
import pathlib
from typing import Any

from passes.hlo.schedule import streams
from passes.hlo.timeline import Timeline

_PROCESS = 1
_MICRO = 1e6


def trace_events(timeline: Timeline) -> list[dict[str, Any]]:
    """The events of a trace, as JSON-able dicts.

    A loop's first iteration is shown in full, the rest as the loop's own bar.
    """
    threads = {stream: number for number, stream in enumerate(streams(timeline), 1)}
    events: list[dict[str, Any]] = [
        _meta("process_name", 0, f"{timeline.machine}, simulated from the compiler's schedule")
    ]
    for stream, number in threads.items():
        events.append(_meta("thread_name", number, stream))
        events.append({**_meta("thread_sort_index", number, ""), "args": {"sort_index": number}})
    for span in timeline.spans:
        events.append({
            "name": span.name, "cat": span.kind, "ph": "X", "pid": _PROCESS,
            "tid": threads[span.stream], "ts": span.start_s * _MICRO,
            "dur": (span.end_s - span.start_s) * _MICRO,
            "args": {"op_name": span.op_name, "source": span.source, "repeats": span.repeats},
        })  # fmt: skip
    for time, live in zip(timeline.memory.times_s, timeline.memory.live_bytes, strict=True):
        events.append({
            "name": "HBM", "ph": "C", "pid": _PROCESS, "ts": time * _MICRO,
            "args": {"bytes": live},
        })  # fmt: skip
    return events


def _meta(name: str, thread: int, value: str) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": _PROCESS, "tid": thread, "args": {"name": value}}


def save_trace(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Write a timeline as a trace file, replacing the file at once.

    Raises:
      OSError: it cannot be written.
    """
    target = pathlib.Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    data = {"traceEvents": trace_events(timeline), "displayTimeUnit": "ms"}
    temporary.write_text(json.dumps(data), encoding="utf-8")
    temporary.replace(target)
