"""Gradient accumulation: the batch in microbatches, one after the other, their gradients added up.

    for each microbatch (a loop):  forward, backward  ->  loss += its share, gradients += its share

Activations are those of one microbatch. Loss and gradients are the whole batch's but for the order
of sums; see `passes.batch_split`. The program becomes that of one microbatch, and later passes
rewrite that: a budget for saved activations is one microbatch's.
"""

import dataclasses
from typing import ClassVar

from passes import ir
from passes.batch_split import split_batch
from passes.errors import PassError
from passes.program import Leaf, Program, Role


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
        """The program of one microbatch; `Program.split` says how the whole is made of them.

        Raises:
          PassError: the batch does not divide, or cannot be computed in parts.
        """
        if program.gradient is not None or program.split is not None:
            raise PassError(
                "the program is computed in microbatches already (a pipeline has its own): leave "
                "one of the two out"
            )
        if ir.has_manual_axes(program.jaxpr):
            raise PassError(
                "attention is spread over devices already, and its batch cannot be cut any more: "
                "put microbatch before sequence"
            )
        if self.count == 1:
            return program.noting("one microbatch is the whole batch: nothing to do")
        return in_microbatches(program, self.count)


def in_microbatches(program: Program, count: int) -> Program:
    """The program of one of `count` microbatches.

    Raises:
      PassError: the batch does not divide, or cannot be computed in parts.
    """
    split = split_batch(program, count)
    rows, shared = split.size // count, len(split.once.out_avals)
    inputs = [Leaf("microbatch", Role.CONSTANT, (), "int32")]
    for leaf, is_cut in zip(program.inputs, split.cut, strict=True):
        shape = (rows, *leaf.shape[1:]) if is_cut else leaf.shape
        inputs.append(dataclasses.replace(leaf, shape=shape))
    for number, aval in enumerate(split.once.out_avals):
        shape, dtype = tuple(aval.shape), str(aval.dtype)
        inputs.append(Leaf(f"whole_batch/{number}", Role.CONSTANT, shape, dtype))
    note = f"{count} microbatches of {rows} rows" + (
        f"; {shared} values that need every row are computed before them" if shared else ""
    )
    return dataclasses.replace(
        program,
        jaxpr=split.part,
        inputs=tuple(inputs),
        split=split,
        whole_inputs=program.inputs,
    ).noting(note)
