"""`CompileReport`: a plan, what the target's compiler made of it, and its simulated step."""

import dataclasses
import os

from autoshard.compiled_program import CompiledMemory, OutOfMemory
from autoshard.memory_record import MemoryPicture
from autoshard.plan import Plan
from autoshard.topology import Topology
from passes.hlo.timeline import Timeline


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A figure that the plan predicted, beside the compiled one.

    Attributes:
      name: what it is, in words.
      unit: `bytes`, `flops`, `seconds` or `count`.
      predicted: the plan's; None where it predicts none.
      compiled: the compiler's or the simulator's; None where it says none.
    """

    name: str
    unit: str
    predicted: float | None
    compiled: float | None


@dataclasses.dataclass(frozen=True)
class CollectiveRow:
    """Collectives of one kind and source, predicted beside compiled, a step and device.

    Attributes:
      kind: `all-reduce`, ...
      source: operation that causes it.
      predicted_count, compiled_count: arrays moved, loops multiplied.
      predicted_bytes, compiled_bytes: payload, loops multiplied.
    """

    kind: str
    source: str
    predicted_count: int
    compiled_count: int
    predicted_bytes: int
    compiled_bytes: int


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """Everything that is known of a plan on its target.

    Attributes:
      plan: the plan.
      topology: the machine.
      memory: the compiler's figures; None where the program does not fit.
      out_of_memory: the compiler's verdict; None where it fits.
      timeline: the simulated step; None where the program does not fit.
      model_flops: FLOPs of one step over all devices that the model needs, nothing recomputed.
      peak_flops: of one device, in the compute dtype.
      comparisons: predicted beside compiled.
      collectives: predicted beside compiled, by kind and source.
      compile_s, cached: of the compilation.
      versions: (package, version) pairs.
      command: a shell command that makes this report again; empty if unknown.
      memory_pictures: what lay where in VMEM before and after the memory mapping was searched;
        empty where it was not.
    """

    plan: Plan
    topology: Topology
    memory: CompiledMemory | None
    out_of_memory: OutOfMemory | None
    timeline: Timeline | None
    model_flops: float
    peak_flops: float
    comparisons: tuple[Comparison, ...]
    collectives: tuple[CollectiveRow, ...]
    compile_s: float
    cached: bool
    versions: tuple[tuple[str, str], ...]
    command: str
    memory_pictures: tuple[MemoryPicture, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML file that needs nothing else.

        Raises:
          ReportError: plotly is not installed, or the file cannot be written.
        """
        # The page is made of this class, and plotly is an optional dependency.
        from autoshard import html_report

        html_report.save(self, path)

    @property
    def mfu(self) -> float | None:
        """Model FLOP utilisation of the simulated step ("PaLM", appendix B)."""
        if self.timeline is None or not self.timeline.step_s:
            return None
        devices = self.topology.device_count
        return self.model_flops / (self.timeline.step_s * devices * self.peak_flops)
