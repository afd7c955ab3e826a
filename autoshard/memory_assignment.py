"""Where the TPU compiler puts a program's buffers: a compilation that stops once that is settled.

Memory-space assignment comes before code generation, a second or so into a compilation of five to
fifty. What it decided stands in a file that the compiler dumps, and why in its log.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from autoshard.compile_messages import CompileRequest
from autoshard.compile_process import compile_until

_DUMPED = "*.after_optimizations_after_buffer_assignment.txt"
_LOG = {
    "TPU_VMODULE": "algorithm=4,memory_space_assignment=3",
    "TPU_STDERR_LOG_LEVEL": "0",
    "TPU_MIN_LOG_LEVEL": "0",
}
DEFAULT_TIMEOUT_S = 600.0


@dataclasses.dataclass(frozen=True)
class AssignedProgram:
    """A program whose buffers have their places, and no code yet.

    Attributes:
      hlo_text: scheduled, with memory spaces and copies, without `estimated_cycles`.
      log_text: what memory-space assignment printed; empty unless asked for.
    """

    hlo_text: str
    log_text: str


def assign_memory(
    request: CompileRequest, *, with_log: bool, timeout_s: float = DEFAULT_TIMEOUT_S
) -> AssignedProgram:
    """Run the TPU compiler up to the end of buffer assignment, in a process of its own.

    Args:
      request: the program and its options.
      with_log: have it explain itself; the log of a large program is some tens of MB.
      timeout_s: seconds before it is ended.

    Raises:
      CompileError: the compiler refuses the program, crashes, takes too long, or does not write
        what this reads.
    """
    environment: Mapping[str, str] = _LOG if with_log else {}
    text, said = compile_until(request, _Dumped(), timeout_s, environment)
    return AssignedProgram(text, said if with_log else "")


class _Dumped:
    """Finds the largest dumped program, once it has stopped growing."""

    def __init__(self) -> None:
        self._size = -1

    def __call__(self, folder: Path) -> str | None:
        files = list(folder.glob(_DUMPED))
        if not files:
            return None
        largest = max(files, key=lambda path: path.stat().st_size)
        size = largest.stat().st_size
        if size and size == self._size:
            return largest.read_text(errors="replace")
        self._size = size
        return None
