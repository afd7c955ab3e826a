"""What goes to the process that compiles and what comes back, and their form on the wire."""

import dataclasses
import json
from typing import Any

from autoshard.compiled_program import CompiledMemory, LargeBuffer
from autoshard.peak_buffers import PeakMemory


@dataclasses.dataclass(frozen=True)
class CompileRequest:
    """One compilation, without anything of this process in it.

    Attributes:
      topology: a name that `aot.devices` reads.
      device_ids: `id` of each device, in the order of the program's mesh.
      module: StableHLO as MLIR bytecode, with source locations.
      options: a serialised `CompileOptions`.
    """

    topology: str
    device_ids: tuple[int, ...]
    module: bytes
    options: bytes

    def to_bytes(self) -> bytes:
        """A line of JSON, then the two binary parts."""
        head = {
            "topology": self.topology,
            "device_ids": self.device_ids,
            "sizes": [len(self.module), len(self.options)],
        }
        return json.dumps(head).encode() + b"\n" + self.module + self.options

    @classmethod
    def from_bytes(cls, data: bytes) -> "CompileRequest":
        """The inverse of `to_bytes`."""
        line, _, rest = data.partition(b"\n")
        head = json.loads(line)
        first, second = head["sizes"]
        return cls(
            head["topology"],
            tuple(head["device_ids"]),
            rest[:first],
            rest[first : first + second],
        )


@dataclasses.dataclass(frozen=True)
class CompileReply:
    """The outcome of one compilation.

    Attributes:
      hlo_text: the scheduled program; empty if there is none.
      memory: None if there is no program.
      error: what the compiler said instead; empty if it compiled.
      compile_s: seconds that it took.
      peak: what fills the memory, also of a program that does not fit; None if unknown.
    """

    hlo_text: str
    memory: CompiledMemory | None
    error: str
    compile_s: float
    peak: PeakMemory | None

    def to_bytes(self) -> bytes:
        """A line of JSON, then the program."""
        text = self.hlo_text.encode()
        head = {**dataclasses.asdict(self), "hlo_text": len(text)}
        return json.dumps(head).encode() + b"\n" + text

    @classmethod
    def from_bytes(cls, data: bytes) -> "CompileReply":
        """The inverse of `to_bytes`.

        Raises:
          ValueError: the data is cut off or damaged.
        """
        line, _, text = data.partition(b"\n")
        try:
            head = json.loads(line)
            if len(text) != head["hlo_text"]:
                raise ValueError(f"{len(text)} bytes of {head['hlo_text']}")
            memory, peak = head["memory"], head["peak"]
            return cls(
                text.decode(),
                None if memory is None else CompiledMemory(**memory),
                head["error"],
                head["compile_s"],
                None if peak is None else _peak(peak),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"damaged: {error}") from error


def _peak(fields: dict[str, Any]) -> PeakMemory:
    buffers = tuple(LargeBuffer(**buffer) for buffer in fields["buffers"])
    return PeakMemory(fields["total_bytes"], buffers)
