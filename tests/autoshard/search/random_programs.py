"""Random small programs: stacks of products with residual sums, shared weights and lookups.

Nothing is computed: sizes are those of real layers, so that costs are, too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from hypothesis import strategies as st

from passes.program import Leaf, Program, Role

WIDTHS = (64, 512, 4096, 16384)
ROWS = (8, 512, 8192)


@dataclasses.dataclass(frozen=True)
class Layers:
    """A program.

    Attributes:
      rows: of the batch.
      widths: of the values between products, input first.
      residual: for each product, whether a value of the same width before it is added.
      shared: whether the last weight is the first one transposed, where their shapes allow.
      lookup: whether the input is a lookup in a table.
    """

    rows: int
    widths: tuple[int, ...]
    residual: tuple[bool, ...]
    shared: bool
    lookup: bool

    def program(self) -> Program:
        """The forward program; output 0 is a scalar loss."""
        shapes = list(zip(self.widths[:-1], self.widths[1:], strict=True))
        tied = self.shared and len(shapes) > 1 and shapes[-1] == shapes[0][::-1]
        weights = shapes[:-1] if tied else shapes
        table = [(32768, self.widths[0])] if self.lookup else []
        leaves = [Leaf(f"w{i}", Role.PARAMETER, s, "float32") for i, s in enumerate(weights)]
        leaves += [Leaf("table", Role.PARAMETER, s, "float32") for s in table]
        batch = (self.rows,) if self.lookup else (self.rows, self.widths[0])
        leaves.append(Leaf("x", Role.BATCH, batch, "int32" if self.lookup else "float32"))

        def loss(*arrays: Any) -> Any:
            *parameters, x = arrays
            if self.lookup:
                x = parameters.pop()[x]
            if tied:
                parameters.append(parameters[0].T)
            seen = {x.shape: x}
            for weight, adds in zip(parameters, self.residual, strict=False):
                made = jnp.maximum(x @ weight, 0)
                x = made + seen[made.shape] if adds and made.shape in seen else made
                seen[x.shape] = x
            return jnp.mean(jnp.square(x))

        specs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        return Program("random", jax.make_jaxpr(loss)(*specs), tuple(leaves), ("loss",))


def layers() -> st.SearchStrategy[Layers]:
    """Programs of one to three products."""
    return st.integers(1, 3).flatmap(
        lambda n: st.builds(
            Layers,
            rows=st.sampled_from(ROWS),
            widths=st.tuples(*[st.sampled_from(WIDTHS)] * (n + 1)),
            residual=st.tuples(*[st.booleans()] * n),
            shared=st.booleans(),
            lookup=st.booleans(),
        )
    )
