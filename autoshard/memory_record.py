"""What was found about a program's memory mapping, as a plan keeps it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from memory_planner.mapper import Mapped
from memory_planner.problem import MemoryMapping, MemoryProblem
from memory_planner.step_cycles import StepCycles

# What every figure of a mapping is.
BASIS = "compiler-estimated cycles plus simulated stalls, not run on hardware"


@dataclasses.dataclass(frozen=True)
class MappedCost:
    """A step on one device under a mapping, loops multiplied: see `BASIS`.

    Attributes:
      cycles: the compiler's estimates, summed.
      stall_cycles: waits for copies between HBM and VMEM, simulated.
      copied_bytes: between the two, either way.
    """

    cycles: float
    stall_cycles: float
    copied_bytes: float

    @property
    def total(self) -> float:
        """Cycles and stalls."""
        return self.cycles + self.stall_cycles

    @classmethod
    def of(cls, step: StepCycles) -> "MappedCost":
        """Without the operations."""
        return cls(step.cycles, step.stall_cycles, step.copied_bytes)


@dataclasses.dataclass(frozen=True)
class MemoryMappingRecord:
    """A search for a better mapping, and what it found.

    Attributes:
      default: the compiler's own mapping.
      best: the best found; the default where nothing was better.
      method: who proposed the best.
      buffers: that were decided about.
      assignments, compiles: compilations made, those that stop after buffer assignment and whole
        ones.
      libtpu: version of the compiler.
    """

    default: MappedCost
    best: MappedCost
    method: str
    buffers: int
    assignments: int
    compiles: int
    libtpu: str

    @property
    def gain(self) -> float:
        """Share of the default's time that is saved."""
        return 1.0 - self.best.total / self.default.total if self.default.total else 0.0

    def __str__(self) -> str:
        return (
            f"{self.default.total:,.0f} -> {self.best.total:,.0f} cycles and stalls a step "
            f"({self.gain:.2%} less) by {self.method}, with {self.assignments} assignments and "
            f"{self.compiles} compilations of libtpu {self.libtpu}"
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "MemoryMappingRecord":
        """Read what a plan's JSON holds.

        Raises:
          KeyError, TypeError, ValueError: it is damaged.
        """
        return cls(
            default=_cost(data["default"]),
            best=_cost(data["best"]),
            method=str(data["method"]),
            buffers=int(data["buffers"]),
            assignments=int(data["assignments"]),
            compiles=int(data["compiles"]),
            libtpu=str(data["libtpu"]),
        )


@dataclasses.dataclass(frozen=True)
class MemoryPicture:
    """What lies where in VMEM when.

    Attributes:
      name: whose mapping it is.
      problem: of the program.
      mapping: to draw.
    """

    name: str
    problem: MemoryProblem
    mapping: MemoryMapping


def record_of(mapped: Mapped, libtpu: str) -> MemoryMappingRecord:
    """What a plan keeps of a search."""
    return MemoryMappingRecord(
        default=MappedCost.of(mapped.default),
        best=MappedCost.of(mapped.best),
        method=mapped.method,
        buffers=len(mapped.extracted.problem.buffers),
        assignments=mapped.assignments,
        compiles=mapped.compiles,
        libtpu=libtpu,
    )


def pictures_of(mapped: Mapped) -> tuple[MemoryPicture, ...]:
    """The compiler's own mapping, and the best where it is another and its log could be read."""
    own, best = mapped.extracted, mapped.best_extracted
    drawn = [MemoryPicture("default", own.problem, own.mapping)]
    if best is not None and best is not own:
        drawn.append(MemoryPicture("best", best.problem, best.mapping))
    return tuple(drawn)


def _cost(data: Mapping[str, Any]) -> MappedCost:
    return MappedCost(
        float(data["cycles"]), float(data["stall_cycles"]), float(data["copied_bytes"])
    )
