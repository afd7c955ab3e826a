"""The split of a batch into microbatches, and of each over the ways of data.

    whole batch -> M microbatches -> each in D ways, on the devices that have its rows

Part `way * M + microbatch` has the rows r with r % (M D) equal to that. Gradients of ways are added
up once a step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from passes import ir
from passes.batch_split import split_batch
from passes.errors import PassError
from passes.program import Program
from passes.split import BatchSplit


def split_microbatches(program: Program, count: int, ways: int) -> tuple[BatchSplit, int]:
    """(a split into parts, ways that have parts of their own: `ways`, or 1 where they cannot).

    Args:
      program: of the whole batch, or of one of `count` microbatches.
      count: M.
      ways: D.

    Raises:
      PassError: the program is of one of another number of microbatches, or cannot be split.
    """
    if program.split is not None:
        return _of_parts(program, program.split, count, ways)
    split = split_batch(program, count)
    if ways == 1 or split.size // count % ways:
        return split, 1
    return split_batch(program, count * ways), ways


def _of_parts(program: Program, outer: BatchSplit, count: int, ways: int) -> tuple[BatchSplit, int]:
    """The same for a program that is one part's already, rewritten since."""
    if outer.count != count:
        raise PassError(
            f"the program is that of one of {outer.count} microbatches, and the pipeline has "
            f"{count}: give both the same number, or leave microbatch out"
        )
    whole = dataclasses.replace(outer, part=program.jaxpr)
    if ways == 1 or outer.size // count % ways:
        return whole, 1
    alone = dataclasses.replace(program, split=None, gradient=None)
    inner = split_batch(alone, ways)
    if inner.once.out_avals or inner.added != outer.added:
        return whole, 1

    def part(index: Any, *inputs: Any) -> list[Any]:
        results = ir.as_function(inner.part)(index // count, index % count, *inputs)
        return list(results)

    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inner.part.in_avals[2:]]
    made = jax.make_jaxpr(part)(jax.ShapeDtypeStruct((), jnp.int32), *specs)
    return dataclasses.replace(outer, count=count * ways, part=made), ways
