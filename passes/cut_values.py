"""Values of a program of which one part of the batch is computed.

    whole    the same in every part: parameters, and what is made of them
    cut      a part has some rows of it: a share of the elements along one dimension
    sum      the whole is the sum of the parts' values

A whole value that meets a cut one has its rows taken: made smaller where it is made by broadcasting
or drawn at random, and otherwise picked out of the whole.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from passes.errors import PassError


class Cut(Protocol):
    """One part of a dimension that is cut into several."""

    @property
    def size(self) -> int:
        """Elements of the whole dimension."""

    @property
    def count(self) -> float:
        """How many times the part goes into the whole."""

    @property
    def index(self) -> Any:
        """int32[] or int, which part it is."""

    def share(self, size: int) -> int:
        """This part's share of a dimension of some size, of which the cut one is the major part."""

    def rows(self, x: Any, dim: int) -> Any:
        """This part's share of a whole array, along a dimension of which the cut one is major."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """The split of a batch into equal parts.

    Attributes:
      size: rows of the whole batch.
      count: parts.
      index: int32[], which part this is.
    """

    size: int
    count: int
    index: Any

    def share(self, size: int) -> int:
        """Rows of a part, of a dimension of which the batch is major."""
        return size // self.count

    def rows(self, x: Any, dim: int) -> Any:
        """This part's share of a whole array, along a dimension of which the batch is major.

        Part i has rows i, i + count, ...: where the rows are sharded each device has its own share
        of every part.
        """
        minor = x.shape[dim] // self.size
        before, after = x.shape[:dim], x.shape[dim + 1 :]
        grouped = x.reshape(*before, self.size // self.count, self.count, minor, *after)
        mine = jax.lax.dynamic_index_in_dim(grouped, self.index, dim + 1, keepdims=False)
        return mine.reshape(*before, x.shape[dim] // self.count, *after)


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A value in one part.

    Attributes:
      array: what the part holds of it.
      dim: the dimension that is cut; None for whole values and sums.
      summed: whether it is a sum.
      free: whether it depends on no parameter.
      smaller: of a whole value, how a cut one is made without it: dimension -> array.
    """

    array: Any
    dim: int | None = None
    summed: bool = False
    free: bool = True
    smaller: Callable[[int], Any] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every part has all of it."""
        return self.dim is None and not self.summed

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what the part holds."""
        return tuple(jnp.shape(self.array))

    def cut(self, dim: int, batch: Cut) -> Any:
        """This part's rows.

        Raises:
          PassError: it is cut along another dimension, or a sum.
        """
        if self.dim == dim:
            return self.array
        if not self.is_whole:
            raise PassError("rows of the batch along one dimension meet rows along another")
        if self.shape[dim] == 1:
            return self.array
        if self.smaller is not None:
            return self.smaller(dim)
        return batch.rows(self.array, dim)
