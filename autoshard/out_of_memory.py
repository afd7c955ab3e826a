"""A program that does not fit: read from the compiler's words, told to the user.

The TPU compiler says it in two ways. Before it places buffers, with a total only:

    RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries
    (198.54G) exceeds available HBM (95.74G).

and after, with its largest allocations:

    RESOURCE_EXHAUSTED: ... Ran out of memory in memory space hbm. Used 160.88M of 160.00M hbm. ...
      Largest program allocations in hbm:
      1. Size: 100.00M
         Operator: op_name="jit(step)/dot_general"
         Shape: bf16[4096,12800]{1,0:T(8,128)(2,1)}

The GPU compiler never refuses: what it needs is compared with what the caller says there is.
"""

import collections
import re

from autoshard.compiled_program import CompiledMemory, LargeBuffer, OutOfMemory
from autoshard.peak_buffers import ARGUMENT, KEPT_BUFFERS, PeakMemory

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)B?"
_EARLY = re.compile(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")
_LATE = re.compile(rf"Ran out of memory in memory space hbm\. Used {_SIZE} of {_SIZE} hbm")
_ENTRY = re.compile(r"^\s*\d+\. Size: ", re.MULTILINE)
_LAYOUT = re.compile(r"(?<=\])\{[^{}]*\}")


def verdict_of(message: str, peak: PeakMemory | None) -> OutOfMemory | None:
    """What a compiler's error says of the device's memory; None if it is another error.

    Args:
      message: the error.
      peak: what the compiler dumped before it gave up, if anything.
    """
    late = _LATE.search(message)
    match = late or _EARLY.search(message)
    if match is None:
        return None
    needed = _bytes(match[1], match[2])
    available = _bytes(match[3], match[4])
    listed = _listed_buffers(message)
    if peak is None:
        return OutOfMemory(needed, available, listed, message)
    # The early total is that of the dump, rounded; the late one also counts code.
    exact = needed if late else max(peak.total_bytes, available + 1)
    return OutOfMemory(exact, available, peak.buffers or listed, message)


def verdict_against(
    memory: CompiledMemory, available_bytes: int, peak: PeakMemory | None, topology: str
) -> OutOfMemory | None:
    """Whether a compiled program needs more than there is; None if it fits."""
    needed = memory.total_bytes
    if needed <= available_bytes:
        return None
    message = (
        f"the program compiled for {topology} needs {needed} bytes on a device, which has "
        f"{available_bytes}"
    )
    return OutOfMemory(needed, available_bytes, peak.buffers if peak else (), message)


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


def _listed_buffers(message: str) -> tuple[LargeBuffer, ...]:
    """The program's allocations that a late message lists."""
    buffers = []
    for entry in _ENTRY.split(message)[1:]:
        size = re.match(_SIZE, entry)
        shape = re.search(r"^\s*Shape: (.*)$", entry, re.MULTILINE)
        if size is None or shape is None:
            continue  # code, not data
        name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', entry)
        label = re.search(r"^\s*XLA label: (\S+)", entry, re.MULTILINE)
        source = re.search(r'source_file="([^"]*)" source_line=(\d+)', entry)
        where = f"{source[1].rsplit('/', 1)[-1]}:{source[2]}" if source else ""
        op_name = name[1] if name else (label[1] if label else "")
        size_bytes = _bytes(size[1], size[2])
        buffers.append(LargeBuffer(size_bytes, _LAYOUT.sub("", shape[1]), op_name, where))
    buffers.sort(key=lambda buffer: -buffer.size_bytes)
    return tuple(buffers[:KEPT_BUFFERS])


def format_bytes(size_bytes: int) -> str:
    """`25.25 GiB`, in the largest unit of which there is one."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.2f} {name}"
    return f"{size_bytes} B"


def explain(verdict: OutOfMemory) -> str:
    """Needed against available, the largest buffers with their sources, and what to change."""
    excess = verdict.needed_bytes - verdict.available_bytes
    lines = [
        f"The program needs {format_bytes(verdict.needed_bytes)} on each device and there are "
        f"{format_bytes(verdict.available_bytes)}: {format_bytes(excess)} too much."
    ]
    if verdict.buffers:
        lines.append("The largest buffers when memory runs out:")
        for buffer, count in collections.Counter(verdict.buffers).items():
            lines.append(f"  {_buffer_line(buffer, count)}")
    lines.append("What to change, what helps most first:")
    lines += [f"  - {remedy}" for remedy in _remedies(verdict)]
    return "\n".join(lines)


def _buffer_line(buffer: LargeBuffer, count: int) -> str:
    times = f"{count} x " if count > 1 else ""
    where = f" ({buffer.source})" if buffer.source == ARGUMENT else f" at {buffer.source}"
    size = f"{times}{format_bytes(buffer.size_bytes)}"
    return f"{size} {buffer.shape} {buffer.op_name}{where if buffer.source else ''}"


def _remedies(verdict: OutOfMemory) -> list[str]:
    sizes = collections.Counter[bool]()
    for buffer in verdict.buffers:
        sizes[buffer.source == ARGUMENT] += buffer.size_bytes
    state = [
        "keep the training state in shards: rules='zero3', or 'zero3+redco'",
        "keep parameters or optimizer state in bfloat16",
    ]
    activations = [
        "a smaller batch or sequence for each device",
        "make activations again in the backward pass (remat) instead of keeping them",
    ]
    made = [buffer for buffer in verdict.buffers if buffer.source != ARGUMENT]
    if any(buffer.shape.startswith("f32[") for buffer in made):
        activations.append("compute in bfloat16 (dtype='bfloat16'): large buffers are float32")
    both = [*state, *activations] if sizes[True] > sizes[False] else [*activations, *state]
    return [*both, "more devices, or ones with more memory"]
