"""What stages compute with."""

import dataclasses
from collections.abc import Sequence
from typing import Any

Arrays = Sequence[Any]


def select(values: Arrays, flags: Sequence[bool], wanted: bool = True) -> list[Any]:
    """The values whose flag is `wanted`."""
    return [x for x, flag in zip(values, flags, strict=True) if flag is wanted]


def merge(active: Arrays, inert: Arrays, flags: Sequence[bool]) -> list[Any]:
    """The inverse of `select`."""
    one, other = iter(active), iter(inert)
    return [next(one) if flag else next(other) for flag in flags]


@dataclasses.dataclass(frozen=True)
class StageValues:
    """What stages compute with; constant over a step.

    Shapes are those of all stages; inside a stage, its own part has 1 for S.

    Attributes:
      stages: int32[S], 0..S-1.
      layers: int32[S * v * slots], the layer in each slot, -1 where there is none.
      stacks: [S * v * slots, ...] each, in the stages' order.
      constants: shared values that layers read.
    """

    stages: Any
    layers: Any
    stacks: list[Any]
    constants: list[Any]
