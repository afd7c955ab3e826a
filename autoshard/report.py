"""Memory of a compiled step, beside what the plan had estimated."""

import dataclasses
from typing import Any

from autoshard.explain import format_bytes
from autoshard.memory import MemoryEstimate


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Bytes on one device.

    Attributes:
      estimate: what the plan estimated.
      arguments_bytes: the compiled step's inputs (state and batch).
      outputs_bytes: its outputs.
      aliased_bytes: outputs that reuse donated inputs.
      temporaries_bytes: everything alive only during the step.
    """

    estimate: MemoryEstimate
    arguments_bytes: int
    outputs_bytes: int
    aliased_bytes: int
    temporaries_bytes: int

    @property
    def compiled_bytes(self) -> int:
        """What the compiler adds up to: inputs, temporaries, and outputs that reuse no input."""
        return (
            self.arguments_bytes
            + self.temporaries_bytes
            + max(0, self.outputs_bytes - self.aliased_bytes)
        )

    def __str__(self) -> str:
        total, compiled = self.estimate.total_bytes, self.compiled_bytes
        state = (
            self.estimate.parameters_bytes
            + self.estimate.optimizer_bytes
            + self.estimate.other_bytes
        )
        return (
            f"per device: estimated {format_bytes(total)}, compiled {format_bytes(compiled)} "
            f"({total / max(compiled, 1):.2f}x); state and batch {format_bytes(state)} against "
            f"{format_bytes(self.arguments_bytes)} of arguments, temporaries "
            f"{format_bytes(total - state)} against {format_bytes(self.temporaries_bytes)}"
        )


def memory_report(estimate: MemoryEstimate, compiled: Any) -> MemoryReport:
    """Read `memory_analysis()` of a `jax.stages.Compiled`."""
    analysis = compiled.memory_analysis()
    return MemoryReport(
        estimate=estimate,
        arguments_bytes=int(analysis.argument_size_in_bytes),
        outputs_bytes=int(analysis.output_size_in_bytes),
        aliased_bytes=int(analysis.alias_size_in_bytes),
        temporaries_bytes=int(analysis.temp_size_in_bytes),
    )
