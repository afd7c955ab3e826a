"""`Program`: the frozen value that analysis reads and passes transform."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from passes.hlo.machine import MachineModel
from passes.ir import ClosedJaxpr, Var
from passes.row_lookup import Lookup
from passes.spec import Spec
from passes.split import BatchSplit


class Role(enum.Enum):
    """What an input of a program is to the loop around it, of training or of decoding."""

    PARAMETER = "parameter"
    OPTIMIZER = "optimizer"
    MODEL_STATE = "model_state"
    CACHE = "cache"
    BATCH = "batch"
    RNG = "rng"
    CONSTANT = "constant"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array that enters a program.

    Attributes:
      path: where it sits in the user's own tree, components joined by `/`.
      role: what it is to the training loop.
      shape: its global shape.
      dtype: the name of its dtype; `key<...>` for typed PRNG keys.
      metadata: the axis names that a Flax annotation gives its dimensions; empty if none.
      parts: paths of the user's own arrays of which this one is the stack, along a new leading
        dimension; empty where it is the user's own.
    """

    path: str
    role: Role
    shape: tuple[int, ...]
    dtype: str
    metadata: tuple[str | tuple[str, ...] | None, ...] = dataclasses.field(
        default=(), compare=False
    )
    parts: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize_bytes(self) -> int:
        """Bytes an element; a typed key is two 32-bit words, or four of the `rbg` kinds."""
        if self.dtype.startswith("key<"):
            return 16 if "rbg" in self.dtype else 8
        if self.dtype == "bfloat16":
            return 2
        try:
            return np.dtype(self.dtype).itemsize
        except TypeError:  # float8 and int4 variants, which numpy does not know by name
            return 1

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole array."""
        return self.size * self.itemsize_bytes


class Gather(Protocol):
    """An identity that lays an input out for use, and its cotangent as the gradient is kept."""

    @property
    def path(self) -> str:
        """The input's name, for what a compiler says about the gather."""

    def __call__(self, x: Any) -> Any:
        """The input, laid out for use."""

    def of_slice(self, dim: int) -> Gather | None:
        """The same for one slice along `dim`; None where the stored array is cut along `dim`."""

    def of_rows(self, lookup: Lookup) -> RowGather | None:
        """How rows of it are looked up in its shards; None where it is to be gathered first."""


class RowGather(Protocol):
    """Rows of a table, looked up in its shards."""

    def __call__(self, table: Any, indices: Any, take: Callable[[Any, Any], Any]) -> Any:
        """The rows, laid out for use.

        Args:
          table: as stored.
          indices: of the rows.
          take: from an array like the table, and indices, to rows.
        """


class GradientRule(Protocol):
    """How outputs and gradients are computed where it is not by differentiating the jaxpr whole."""

    def __call__(
        self, inputs: Sequence[Any], wrt: Sequence[int], gathers: Sequence[Gather | None]
    ) -> tuple[list[Any], list[Any]]:
        """(the program's flat outputs, gradients of output 0 by the inputs at `wrt`).

        Args:
          inputs: the program's flat inputs, as stored.
          wrt: positions of the inputs to differentiate by.
          gathers: how each input is laid out for use; None where it is used as it is stored.
        """


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a program runs and how its values lie there: what a planner tells the passes.

    Attributes:
      mesh: the mesh, its axes Auto; its devices may be there only to compile for.
      machine: one device and the ways between them, devices in the mesh's order.
      specs: of a program, how each variable is sharded, those of called and scanned programs
        included; a variable that is not there is whole on every device.
    """

    mesh: Mesh
    machine: MachineModel
    specs: Callable[[Program], Mapping[Var, Spec]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced forward program and the meaning of its inputs.

    Attributes:
      name: the model's name, for messages.
      jaxpr: flat inputs to flat outputs; for a model, output 0 is the scalar loss.
      inputs: one `Leaf` an input, in order.
      outputs: a name for each output, in order.
      placement: where it runs, once that is planned.
      gradient: how outputs and gradients are computed; None is by differentiating `jaxpr`.
      split: where the program is that of one part of the batch, how the whole is made of them.
      whole_inputs: the inputs of the whole; by default `inputs`.
      notes: what passes did and found, a sentence each, in order.
    """

    name: str
    jaxpr: ClosedJaxpr
    inputs: tuple[Leaf, ...]
    outputs: tuple[str, ...]
    placement: Placement | None = dataclasses.field(default=None, compare=False, repr=False)
    gradient: GradientRule | None = dataclasses.field(default=None, compare=False, repr=False)
    split: BatchSplit | None = dataclasses.field(default=None, compare=False, repr=False)
    whole_inputs: tuple[Leaf, ...] = dataclasses.field(default=(), compare=False, repr=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.split is None:
            object.__setattr__(self, "whole_inputs", self.inputs)
        if len(self.inputs) != len(self.jaxpr.in_avals):
            raise ValueError(
                f"program {self.name!r} has {len(self.jaxpr.in_avals)} inputs but "
                f"{len(self.inputs)} roles were given"
            )
        if len(self.outputs) != len(self.jaxpr.out_avals):
            raise ValueError(
                f"program {self.name!r} has {len(self.jaxpr.out_avals)} outputs but "
                f"{len(self.outputs)} names were given"
            )

    def noting(self, *notes: str) -> Program:
        """The same program with more notes."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def with_role(self, *roles: Role) -> tuple[int, ...]:
        """Positions of the inputs that have one of `roles`."""
        return tuple(i for i, leaf in enumerate(self.inputs) if leaf.role in roles)
