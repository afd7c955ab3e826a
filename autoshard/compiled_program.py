"""What a compiler says of a program: its schedule and memory, or that it does not fit."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class CompiledMemory:
    """`memory_analysis()` of one device, in bytes.

    Attributes:
      arguments_bytes: inputs (state and batch).
      outputs_bytes: outputs.
      aliased_bytes: outputs that reuse donated inputs.
      temporaries_bytes: alive only during the step.
      code_bytes: the generated program.
      peak_bytes: the most memory that is in use at once, what is on the host included; 0 where the
        compiler does not say.
      host_arguments_bytes, host_outputs_bytes, host_aliased_bytes, host_temporaries_bytes: the same
        in the host's memory.
    """

    arguments_bytes: int
    outputs_bytes: int
    aliased_bytes: int
    temporaries_bytes: int
    code_bytes: int
    peak_bytes: int = 0
    host_arguments_bytes: int = 0
    host_outputs_bytes: int = 0
    host_aliased_bytes: int = 0
    host_temporaries_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """What `memory_analysis()` adds up to: inputs, outputs that reuse none, temporaries.

        The TPU compiler's temporaries include what lies in VMEM, so this can be well above
        `needed_bytes`.
        """
        return (
            self.arguments_bytes + self.outputs_bytes - self.aliased_bytes + self.temporaries_bytes
        )

    @property
    def needed_bytes(self) -> int:
        """HBM that the step needs: the compiler's peak where it says one, else the total.

        Compilers count what is on the host towards the peak.
        """
        if not self.peak_bytes:
            return self.total_bytes
        new = self.host_outputs_bytes - self.host_aliased_bytes
        return self.peak_bytes - self.host_arguments_bytes - self.host_temporaries_bytes - new


@dataclasses.dataclass(frozen=True)
class LargeBuffer:
    """A buffer alive when memory runs out: its bytes, shape and where it comes from."""

    size_bytes: int
    shape: str
    op_name: str
    source: str


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """The compiler's verdict that a program does not fit.

    Attributes:
      needed_bytes: what the program needs on a device.
      available_bytes: what the device has.
      buffers: the largest ones, largest first.
      message: the compiler's own words.
    """

    needed_bytes: int
    available_bytes: int
    buffers: tuple[LargeBuffer, ...]
    message: str


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """The outcome of one compilation.

    Attributes:
      topology: what it was compiled for.
      hlo_text: the scheduled program; empty where it does not fit.
      memory: None where it does not fit.
      out_of_memory: None where it fits.
      compile_s: seconds that the compiler took (when it ran; a cached result keeps them).
      cached: whether the result came from the disk.
      versions: (package, version) pairs of what compiled it.
    """

    topology: str
    hlo_text: str
    memory: CompiledMemory | None
    out_of_memory: OutOfMemory | None
    compile_s: float
    cached: bool
    versions: tuple[tuple[str, str], ...]
