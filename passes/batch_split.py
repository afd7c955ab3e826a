"""A program of the whole batch as the sum of programs of its parts.

    whole batch -> once: what needs every row but no parameter (how many tokens count)
    part i      -> part: loss, metrics and gradients, each its share
    add         the shares are the whole loss, and their gradients the whole gradients

Exact but for the order of sums: the loss divides by what it divided by for the whole batch, and
rows that meet each other (batch normalisation) are refused. Random numbers are drawn for each part
from a key of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from passes import ir
from passes.cut_evaluate import Evaluator
from passes.cut_values import Batch, Value
from passes.errors import PassError
from passes.inline_calls import inline_calls
from passes.program import Program, Role
from passes.split import BatchSplit

__all__ = ["BatchSplit", "split_batch"]


def split_batch(program: Program, count: int) -> BatchSplit:
    """Split a forward program's batch into parts that are computed one after the other.

    Args:
      program: output 0 is the loss; arrays of role BATCH have the rows as dimension 0, but scalars.
      count: M, parts.

    Raises:
      PassError: M does not divide the rows, arrays of the batch differ in their rows, or rows meet
        in a way that parts cannot compute alone.
    """
    size = _rows(program, count)
    cut = tuple(leaf.role is Role.BATCH and bool(leaf.shape) for leaf in program.inputs)
    jaxpr, consts = ir.closed(inline_calls(program.jaxpr))
    needed: list[ir.Var] = []

    def evaluate(index: Any, inputs: Any, total: Any) -> list[Value]:
        batch = Batch(size, count, index)
        values = [
            Value(x, 0 if is_cut else None, free=leaf.role is not Role.PARAMETER)
            for x, is_cut, leaf in zip(inputs, cut, program.inputs, strict=True)
        ]
        return Evaluator(batch, total).run(jaxpr, consts, values)

    def note(var: ir.Var) -> Any:
        needed.append(var)
        like = ir.spec(var)
        return jnp.zeros(like.shape, like.dtype)

    index = jax.ShapeDtypeStruct((), jnp.int32)
    specs = [
        jax.ShapeDtypeStruct(_part_shape(leaf.shape, is_cut, count), aval.dtype)
        for leaf, aval, is_cut in zip(program.inputs, program.jaxpr.in_avals, cut, strict=True)
    ]
    flags: list[tuple[bool, bool]] = []

    def first(index: Any, *inputs: Any) -> list[Any]:
        results = evaluate(index, inputs, note)
        flags[:] = [(x.summed, x.dim is not None) for x in results]
        return [x.array for x in results]

    jax.eval_shape(first, index, *specs)
    for name, (_, is_cut) in zip(program.outputs, flags, strict=True):
        if is_cut:
            raise PassError(
                f"output {name!r} has an entry for each row of the batch, and parts would have to "
                "be put together: return its mean or sum, or use microbatches=1"
            )
    wanted = list(dict.fromkeys(needed))

    def second(index: Any, *inputs: Any) -> list[Any]:
        count_inputs = len(program.inputs)
        totals = dict(zip(wanted, inputs[count_inputs:], strict=True))
        return [x.array for x in evaluate(index, inputs[:count_inputs], totals.__getitem__)]

    totals = [ir.spec(var) for var in wanted]
    part = jax.make_jaxpr(second)(index, *specs, *totals)
    once = ir.ClosedJaxpr(ir.with_results(jaxpr, wanted), consts)
    return BatchSplit(count, size, cut, once, part, tuple(summed for summed, _ in flags))


def _part_shape(shape: tuple[int, ...], cut: bool, count: int) -> tuple[int, ...]:
    return (shape[0] // count, *shape[1:]) if cut else shape


def _rows(program: Program, count: int) -> int:
    rows = {
        leaf.path: leaf.shape[0]
        for leaf in program.inputs
        if leaf.role is Role.BATCH and leaf.shape
    }
    if not rows:
        raise PassError(f"{program.name} has no batch that could be split")
    sizes = set(rows.values())
    if len(sizes) > 1:
        listed = ", ".join(f"{path}: {size}" for path, size in rows.items())
        raise PassError(
            f"the batch's arrays differ in their rows ({listed}): give each the batch as its first "
            "dimension, or use microbatches=1"
        )
    size = sizes.pop()
    if count < 1 or size % count:
        below = max(d for d in range(1, min(max(count, 1), size) + 1) if size % d == 0)
        raise PassError(
            f"a batch of {size} does not divide into {count} microbatches: use {below}, or a batch "
            f"of {max(count, 1) * max(1, round(size / max(count, 1)))}"
        )
    return size
