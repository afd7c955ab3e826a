"""Layers cut into stages, and where each stage keeps its own.

    costs of the blocks --dynamic program--> layers a stage --> slots: [stage][chunk][slot]

All stages run the same program, so each has as many slots as the largest has layers; a slot
without a layer passes its input on.
"""

import dataclasses
from collections.abc import Sequence

from passes.errors import PassError


def cut_stages(
    costs: Sequence[float], stages: int, before: float = 0.0, after: float = 0.0
) -> tuple[int, ...]:
    """How many blocks each stage gets, in order, so that the slowest stage is fastest.

    The dynamic program of "PipeDream" (Narayanan et al., 2019, section 3.1), for equal devices:
    best[s][i] is the slowest of s stages that hold the first i blocks. Among equals, later stages
    get fewer blocks.

    Args:
      costs: of each block, in any one unit.
      stages: S.
      before, after: what the first and last stage do besides, in the same unit.

    Raises:
      PassError: fewer blocks than stages.
    """
    blocks = len(costs)
    if blocks < stages:
        raise PassError(
            f"{blocks} layers do not fill {stages} stages: use at most {blocks} stages (or fewer "
            "chunks a stage), or a deeper model"
        )
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)

    def cost_of(stage: int, first: int, end: int) -> float:
        extra = (before if stage == 0 else 0.0) + (after if stage == stages - 1 else 0.0)
        return total[end] - total[first] + extra

    infinite = float("inf")
    best = [infinite] * (blocks + 1)
    best[0] = 0.0
    chosen: list[list[int]] = []
    for stage in range(stages):
        current, cuts = [infinite] * (blocks + 1), [0] * (blocks + 1)
        for end in range(stage + 1, blocks - (stages - 1 - stage) + 1):
            for first in range(end - 1, stage - 1, -1):
                slowest = max(best[first], cost_of(stage, first, end))
                if slowest < current[end]:
                    current[end], cuts[end] = slowest, first
        best = current
        chosen.append(cuts)
    counts: list[int] = []
    end = blocks
    for cuts in reversed(chosen):
        counts.append(end - cuts[end])
        end = cuts[end]
    return tuple(counts[::-1])


@dataclasses.dataclass(frozen=True)
class StageLayout:
    """Where the layers are.

    Attributes:
      stages: S.
      chunks: v, pieces of the model that a stage holds; chunk c of stage s is piece c * S + s.
      counts: layers of each piece.
    """

    stages: int
    chunks: int
    counts: tuple[int, ...]

    @property
    def slots(self) -> int:
        """Layers that a piece has room for."""
        return max(self.counts)

    @property
    def is_even(self) -> bool:
        """Whether every piece is full."""
        return min(self.counts) == self.slots

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer in each slot, [stage][chunk][slot] in one row; -1 where there is none."""
        first = [sum(self.counts[:piece]) for piece in range(len(self.counts))]
        return tuple(
            first[piece] + slot if slot < self.counts[piece] else -1
            for stage in range(self.stages)
            for piece in range(stage, len(self.counts), self.stages)
            for slot in range(self.slots)
        )

    @property
    def storage_order(self) -> tuple[int, ...]:
        """The order in which a stack must be stored so that no stage needs another's layers."""
        return tuple(layer for layer in self.layers if layer >= 0)

    @property
    def is_stored(self) -> bool:
        """Whether a stack in the model's order is in the stages' order already."""
        return self.is_even and self.storage_order == tuple(range(sum(self.counts)))
