"""What a compiled step costs: the compiler's cycles, and the waits for copies that they leave out.

The TPU compiler writes an estimate of each operation's cycles into its schedule, but nothing of the
time for which a `copy-done` or `slice-done` waits. A mapping that moves more than HBM can carry
beside the operations looks good by cycles alone, so copies are laid on a timeline here: one queue,
served by whatever share of HBM's bandwidth the running operation leaves; the rest is waited for
where the schedule needs it. Bytes moved are conserved. Nothing is measured on hardware.
"""

import dataclasses
from collections.abc import Callable

from passes.hlo.collectives import safe_collective_of
from passes.hlo.errors import HloError
from passes.hlo.loops import trip_count
from passes.hlo.machine import MachineModel
from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.opcodes import COPY_STARTS, FREE
from passes.hlo.operation_time import operation_time
from passes.hlo.traffic import copied, hbm_traffic

_MAX_DEPTH = 24
# A copy that the previous step has begun already: it is there when the step starts.
_CROSS_PROGRAM = "cross_program_prefetch_index"


@dataclasses.dataclass(frozen=True)
class OperationRun:
    """One operation of the schedule.

    Attributes:
      computation, instruction: names.
      cycles: of one execution, without waits.
      stall_cycles: waited for copies right before it, each execution.
      free_cycles: of one execution, what HBM could do for copies meanwhile.
      repeats: executions in a step.
      is_estimated: whether the cycles are the compiler's; a roofline otherwise (kernels).
    """

    computation: str
    instruction: str
    cycles: float
    stall_cycles: float
    free_cycles: float
    repeats: int
    is_estimated: bool


@dataclasses.dataclass(frozen=True)
class StepCycles:
    """A step on one device, loops multiplied; compiler-estimated and simulated, not run.

    Attributes:
      cycles: the compiler's estimates, summed.
      stall_cycles: waits for copies between HBM and fast memory, simulated.
      copied_bytes: between the two, either way.
      runs: the operations in the order of the schedule, those of loop bodies once.
      unknown_loops: loops whose trip count cannot be told, counted once.
    """

    cycles: float
    stall_cycles: float
    copied_bytes: float
    runs: tuple[OperationRun, ...]
    unknown_loops: int = 0

    @property
    def total(self) -> float:
        """Cycles and stalls."""
        return self.cycles + self.stall_cycles


@dataclasses.dataclass
class _Queue:
    """Copies under way, in the order of their starts: (name, cycles left at full rate)."""

    entries: list[tuple[str, float]] = dataclasses.field(default_factory=list)

    def advance(self, cycles: float) -> float:
        """Serve copies for some cycles of the whole bandwidth; what was not needed of them."""
        while self.entries and cycles > 0:
            name, left = self.entries[0]
            if left > cycles:
                self.entries[0] = (name, left - cycles)
                return 0.0
            cycles -= left
            self.entries.pop(0)
        return cycles

    def finish(self, name: str) -> float:
        """Wait for one copy, which ends those before it; the cycles waited."""
        waited = 0.0
        while any(n == name for n, _ in self.entries):
            waited += self.entries.pop(0)[1]
        return waited


@dataclasses.dataclass
class _Tally:
    cycles: float = 0.0
    stalls: float = 0.0
    free: float = 0.0
    copied: float = 0.0


CyclesOf = Callable[[HloModule, Computation, Instruction], float | None]


def written_cycles(module: HloModule, c: Computation, i: Instruction) -> float | None:
    """The compiler's own estimate."""
    return None if i.estimated_cycles is None else float(i.estimated_cycles)


def step_cycles(
    module: HloModule, machine: MachineModel, cycles_of: CyclesOf = written_cycles
) -> StepCycles:
    """Cycles and stalls of a compiled step.

    Args:
      module: the scheduled program, with the compiler's estimates.
      machine: for HBM's bandwidth, the clock, and what has no estimate.
      cycles_of: an operation's cycles, None where there is no estimate. Another than the written
        ones is for programs that have no code yet.

    Raises:
      HloError: the program is not scheduled, or its computations call each other in a circle.
    """
    if not module.is_scheduled:
        raise HloError(
            f"program {module.name!r} is not scheduled: pass the text of the compiled program"
        )
    walker = _Walker(module, machine, cycles_of)
    tally = walker.walk(module.entry, 1, 0)
    return StepCycles(
        tally.cycles, tally.stalls, tally.copied, tuple(walker.runs), walker.unknown_loops
    )


class _Walker:
    def __init__(self, module: HloModule, machine: MachineModel, cycles_of: CyclesOf) -> None:
        self.module, self.machine, self.cycles_of = module, machine, cycles_of
        self.bytes_per_cycle = machine.hbm_bytes_per_s / machine.clock_hz
        self.runs: list[OperationRun] = []
        self.unknown_loops = 0

    def walk(self, name: str, repeats: int, depth: int) -> _Tally:
        computation = self.module.computations.get(name)
        if computation is None or depth > _MAX_DEPTH:
            raise HloError(
                f"computation {name!r} is missing, or calls nest deeper than {_MAX_DEPTH}"
            )
        tally, queue, waited = _Tally(), _Queue(), 0.0
        for i in computation.instructions:
            if self._starts_copy(i):
                self._start(computation, i, queue, tally)
            elif i.opcode.endswith("-done") and i.operands:
                waited += queue.finish(i.operands[0])
            elif i.opcode in ("while", "conditional", "call"):
                self._enter(computation, i, queue, tally, repeats, depth)
            else:
                run = self._run(computation, i, repeats, waited)
                if run is not None:
                    tally.cycles += run.cycles
                    tally.stalls += waited
                    tally.free += queue.advance(run.free_cycles)
                    self.runs.append(run)
                    waited = 0.0
        tally.stalls += waited
        if queue.entries:  # no end in the text: it ends with the computation
            tally.stalls += queue.finish(queue.entries[-1][0])
        return tally

    def _starts_copy(self, i: Instruction) -> bool:
        """Slices are wrapped in a computation of their own until code is generated."""
        if i.opcode != "async-start" or not i.called:
            return i.opcode in COPY_STARTS
        inner = self.module.computations.get(i.called[0])
        return inner is not None and f"{inner.root.opcode}-start" in COPY_STARTS

    def _start(self, c: Computation, i: Instruction, queue: _Queue, tally: _Tally) -> None:
        if _CROSS_PROGRAM in i.attributes:
            return
        size, to_or_from_host = copied(self.module, c, i)
        if to_or_from_host:
            return
        queue.entries.append((i.name, size / self.bytes_per_cycle))
        tally.copied += size

    def _enter(
        self, c: Computation, i: Instruction, queue: _Queue, tally: _Tally, repeats: int, depth: int
    ) -> None:
        if i.opcode == "while":
            trips = trip_count(self.module, c, i)
            self.unknown_loops += trips is None
            names, times = [i.attributes.get("body", "").lstrip("%")], 1 if trips is None else trips
        else:
            names, times = [n for n in i.called if n in self.module.computations], 1
        if not names or not times:
            return
        before = len(self.runs)
        tallies = []
        for name in names:  # of a conditional's branches, the dearest counts
            start = len(self.runs)
            tallies.append((self.walk(name, repeats * times, depth + 1), self.runs[start:]))
        inner, runs = max(tallies, key=lambda pair: pair[0].cycles + pair[0].stalls)
        self.runs[before:] = runs
        tally.cycles += inner.cycles * times
        tally.stalls += inner.stalls * times
        tally.copied += inner.copied * times
        tally.free += queue.advance(inner.free * times)

    def _run(
        self, c: Computation, i: Instruction, repeats: int, waited: float
    ) -> OperationRun | None:
        if i.opcode in FREE or i.opcode.endswith("-start"):
            return None
        written = self.cycles_of(self.module, c, i)
        if written is None:
            if safe_collective_of(self.module, c, i)[0] is not None:
                return None
            seconds = operation_time(self.machine, self.module, c, i).seconds
            cycles = seconds * self.machine.clock_hz
        else:
            cycles = written
        if not cycles:
            return None
        own = min(cycles, hbm_traffic(self.module, c, i) / self.bytes_per_cycle)
        return OperationRun(
            c.name, i.name, cycles, waited, cycles - own, repeats, written is not None
        )
