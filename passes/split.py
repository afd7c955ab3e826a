"""`BatchSplit`: a program of the whole batch as the sum of programs of its parts."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from passes.ir import ClosedJaxpr


@dataclasses.dataclass(frozen=True)
class BatchSplit:
    """How a program's batch is computed in parts; `passes.batch_split` makes it.

    Attributes:
      count: M, parts of the batch.
      size: B, rows of the batch.
      cut: for each input of the whole program, whether a part gets B/M of its rows (dimension 0).
      once: the whole program's inputs -> values that every part is given whole.
      part: (int32[] index of the part, the program's inputs with B/M rows where cut, the values of
        `once`) -> the program's outputs, in the part.
      added: for each output, whether the parts' values add up to the whole one; others are the
        same in every part.
    """

    count: int
    size: int
    cut: tuple[bool, ...]
    once: ClosedJaxpr
    part: ClosedJaxpr
    added: tuple[bool, ...]

    def parts(self, x: Any) -> Any:
        """[B, ...] as [M, B/M, ...]: row r is in part r % M.

        Where rows are sharded over devices, each device's own rows are a share of every part.
        """
        grouped = x.reshape(self.size // self.count, self.count, *x.shape[1:])
        return jnp.swapaxes(grouped, 0, 1)
