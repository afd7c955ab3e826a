"""`Timeline`: what a simulated step looks like, as data.

Everything is simulated from the compiler's schedule, nothing measured.
"""

import dataclasses
import enum


class Basis(enum.Enum):
    """Where an operation's time comes from.

    CYCLES: the compiler's own estimate, in its schedule.
    ROOFLINE: FLOPs and bytes against the machine's peaks.
    KERNEL: the cost estimate that a Pallas kernel carries.
    COLLECTIVE: bytes, algorithm and links.
    COPY: bytes over the bandwidth of the path.
    UNKNOWN: nothing says; counted as zero and listed.
    """

    CYCLES = "compiler cycles"
    ROOFLINE = "roofline"
    KERNEL = "kernel estimate"
    COLLECTIVE = "collective model"
    COPY = "copy"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Span:
    """One stretch of one stream, in the first iteration of the loops around it.

    Attributes:
      name: the instruction.
      kind: `matmul`, `elementwise`, `kernel`, `copy`, `all-gather`, `loop`, `wait`, ...
      stream: `compute`, `hbm copies`, `host link`, or an axis of the interconnect.
      start_s, end_s: half-open interval from the step's begin.
      source: `file.py:line (function)` of the user's code, or empty.
      op_name: JAX's name of the operation.
      repeats: how often a step executes it.
      depth: number of loops around it.
    """

    name: str
    kind: str
    stream: str
    start_s: float
    end_s: float
    source: str
    op_name: str
    repeats: int
    depth: int


@dataclasses.dataclass(frozen=True)
class OperationCost:
    """What one instruction costs in a step, all repeats.

    Attributes:
      name, kind, source, op_name, repeats: as in `Span`.
      seconds: busy time.
      flops: counted from shapes; multiply and add are two.
      hbm_bytes: read and written in HBM.
      basis: where `seconds` comes from.
    """

    name: str
    kind: str
    source: str
    op_name: str
    repeats: int
    seconds: float
    flops: float
    hbm_bytes: float
    basis: Basis


@dataclasses.dataclass(frozen=True)
class CollectiveCost:
    """What one collective costs in a step, all repeats.

    Attributes:
      name, source, op_name, repeats: as in `Span`.
      kind: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all`, `collective-permute`,
        `send-recv`.
      payload_bytes: one execution's data a device: of the larger side (the gathered result, the
        input of a reduction).
      group_size: devices in a group.
      axes: names of the interconnect's axes that it runs over.
      seconds: busy time.
      exposed_s: the part during which the device computes nothing.
    """

    name: str
    kind: str
    source: str
    op_name: str
    repeats: int
    payload_bytes: int
    group_size: int
    axes: tuple[str, ...]
    seconds: float
    exposed_s: float


@dataclasses.dataclass(frozen=True)
class MemoryCurve:
    """HBM over the step, the first iteration of loops standing for all.

    Attributes:
      times_s: rising.
      live_bytes: at each time, until the next; inputs of the program included.
      peak_names: (instruction, bytes, source) of the largest buffers alive at the peak.
    """

    times_s: tuple[float, ...]
    live_bytes: tuple[int, ...]
    peak_names: tuple[tuple[str, int, str], ...]


@dataclasses.dataclass(frozen=True)
class Timeline:
    """A simulated step.

    Attributes:
      machine: its name.
      step_s: seconds.
      compute_s: the device computes.
      exposed_communication_s: it waits for collectives.
      exposed_copy_s: it waits for copies within the device or to the host.
      flops: executed on one device, recomputation included.
      spans: in order of their begin.
      operations: costliest first.
      collectives: costliest first.
      memory: HBM over time.
      unmodelled: (what, how often): constructs that got no time.
    """

    machine: str
    step_s: float
    compute_s: float
    exposed_communication_s: float
    exposed_copy_s: float
    flops: float
    spans: tuple[Span, ...]
    operations: tuple[OperationCost, ...]
    collectives: tuple[CollectiveCost, ...]
    memory: MemoryCurve
    unmodelled: tuple[tuple[str, int], ...]
