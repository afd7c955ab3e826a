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

    Shapes are those of all devices; inside a stage, a device's own have 1 for S and no D.

    Attributes:
      stages: int32[S], 0..S-1.
      layers: int32[S * v * slots], the layer in each slot, -1 where there is none.
      stacks: [D, S * v * slots, ...] each, in the stages' order.
      constants: [D, ...] each, shared values that layers read.
    """

    stages: Any
    layers: Any
    stacks: list[Any]
    constants: list[Any]
