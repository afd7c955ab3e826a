"""Gradient accumulation: the batch in microbatches, one after the other, their gradients added up.

    for each microbatch (a loop):  forward, backward  ->  loss += its share, gradients += its share

Activations are those of one microbatch. Loss and gradients are the whole batch's but for the order
of sums; see `passes.batch_split`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from passes import ir
from passes.batch_split import BatchSplit, split_batch
from passes.errors import PassError
from passes.lazy_inputs import with_lazy_inputs
from passes.program import Gather, Program


@dataclasses.dataclass(frozen=True)
class Microbatch:
    """Computes a step in `count` microbatches.

    Attributes:
      count: microbatches a step; it must divide the batch.
    """

    count: int
    name: str = dataclasses.field(default="microbatch", init=False, repr=False)
    after_planning: ClassVar[bool] = True

    def apply(self, program: Program) -> Program:
        """The same forward program; its gradient is accumulated.

        Raises:
          PassError: the batch does not divide, or cannot be computed in parts.
        """
        if program.gradient is not None:
            raise PassError(
                "the program's gradient is computed by another pass already (a pipeline has "
                "microbatches of its own): leave one of the two out"
            )
        if self.count == 1:
            return program.noting("one microbatch is the whole batch: nothing to do")
        split = split_batch(program, self.count)
        rows = split.size // self.count
        shared = len(split.once.out_avals)
        note = f"{self.count} microbatches of {rows} rows" + (
            f"; {shared} values that need every row are computed before them" if shared else ""
        )
        return dataclasses.replace(program, gradient=Accumulated(split)).noting(note)


@dataclasses.dataclass(frozen=True)
class Accumulated:
    """The gradient rule: a loop over the parts of a batch."""

    split: BatchSplit

    def __call__(
        self, inputs: Sequence[Any], wrt: Sequence[int], gathers: Sequence[Gather | None]
    ) -> tuple[list[Any], list[Any]]:
        """See `passes.program.GradientRule`."""
        split = self.split
        once = ir.as_function(split.once)(*inputs)
        function = with_lazy_inputs(split.part, [None, *gathers, *(None for _ in once)])
        sliced = [i for i, is_cut in enumerate(split.cut) if is_cut]

        def part(index: Any, rows: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            arguments = list(inputs)
            for i, x in zip(sliced, rows, strict=True):
                arguments[i] = x

            def loss(parameters: Sequence[Any]) -> tuple[Any, list[Any]]:
                for i, x in zip(wrt, parameters, strict=True):
                    arguments[i] = x
                outputs = function(index, *arguments, *once)
                return outputs[0], outputs

            differentiated = jax.value_and_grad(loss, has_aux=True)
            (_, outputs), gradients = differentiated([inputs[i] for i in wrt])
            return outputs, gradients

        def once_more(carry: Any, xs: Any) -> tuple[Any, None]:
            outputs, gradients = part(*xs)
            totals = [
                old + new if added else new
                for old, new, added in zip(carry[0], outputs, split.added, strict=True)
            ]
            sums = [old + new for old, new in zip(carry[1], gradients, strict=True)]
            return (totals, sums), None

        rows = [split.parts(inputs[i]) for i in sliced]
        xs = (jnp.arange(split.count, dtype=jnp.int32), rows)
        shapes = jax.eval_shape(part, *jax.tree.map(lambda x: x[0], xs))
        zeros = jax.tree.map(_zeros, shapes)
        (outputs, gradients), _ = jax.lax.scan(once_more, zeros, xs)
        return list(outputs), list(gradients)


def _zeros(like: Any) -> Any:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return ir.random_key(like.dtype, 0)
    return jnp.zeros(like.shape, like.dtype)
