"""`Program`: the frozen value that analysis reads and passes transform."""

import dataclasses
import enum
import math

import numpy as np

from passes.ir import ClosedJaxpr


class Role(enum.Enum):
    """What an input of a program is to the training loop."""

    PARAMETER = "parameter"
    OPTIMIZER = "optimizer"
    MODEL_STATE = "model_state"
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
    """

    path: str
    role: Role
    shape: tuple[int, ...]
    dtype: str
    metadata: tuple[str | tuple[str, ...] | None, ...] = dataclasses.field(
        default=(), compare=False
    )

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


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced forward program and the meaning of its inputs.

    Attributes:
      name: the model's name, for messages.
      jaxpr: flat inputs to flat outputs; for a model, output 0 is the scalar loss.
      inputs: one `Leaf` an input, in order.
      outputs: a name for each output, in order.
    """

    name: str
    jaxpr: ClosedJaxpr
    inputs: tuple[Leaf, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
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

    def with_role(self, *roles: Role) -> tuple[int, ...]:
        """Positions of the inputs that have one of `roles`."""
        return tuple(i for i, leaf in enumerate(self.inputs) if leaf.role in roles)
