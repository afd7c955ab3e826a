"""A program in parts, run one part after the other: its outputs, and its gradients added up."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from passes import ir
from passes.lazy_inputs import with_lazy_inputs
from passes.program import Gather, Program
from passes.spec import Spec
from passes.split import BatchSplit

Part = Callable[[Any, Sequence[Any]], Any]


def whole_function(
    program: Program, gathers: Sequence[Gather | None] | None = None
) -> Callable[..., list[Any]]:
    """A function from the user's whole flat inputs to the program's outputs, in parts or not.

    Args:
      program: the program.
      gathers: how each of the whole inputs is laid out for use.
    """
    given = gathers if gathers is not None else [None] * len(program.whole_inputs)
    if program.split is None:
        return with_lazy_inputs(program.jaxpr, given, _specs(program, given))
    split = program.split

    def function(*inputs: Any) -> list[Any]:
        run = _part_function(program, split, inputs, given)
        return _over_parts(split, inputs, lambda index, arguments: (run(index, arguments), []))[0]

    return function


def accumulated(
    program: Program,
    inputs: Sequence[Any],
    wrt: Sequence[int],
    gathers: Sequence[Gather | None],
) -> tuple[list[Any], list[Any]]:
    """Outputs, and gradients of output 0, of a program in parts; see `GradientRule`."""
    split = program.split
    assert split is not None
    run = _part_function(program, split, inputs, gathers)

    def part(index: Any, arguments: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        def loss(parameters: Sequence[Any]) -> tuple[Any, list[Any]]:
            given = list(arguments)
            for i, x in zip(wrt, parameters, strict=True):
                given[i] = x
            outputs = run(index, given)
            return outputs[0], outputs

        differentiated = jax.value_and_grad(loss, has_aux=True)
        (_, outputs), gradients = differentiated([arguments[i] for i in wrt])
        return outputs, gradients

    return _over_parts(split, inputs, part)


def _part_function(
    program: Program, split: BatchSplit, inputs: Sequence[Any], gathers: Sequence[Gather | None]
) -> Callable[[Any, Sequence[Any]], list[Any]]:
    once = ir.as_function(split.once)(*inputs)
    given = [None, *gathers, *(None for _ in once)]
    function = with_lazy_inputs(program.jaxpr, given, _specs(program, gathers))
    return lambda index, arguments: function(index, *arguments, *once)


def _specs(program: Program, gathers: Sequence[Gather | None]) -> Mapping[ir.Var, Spec]:
    """How a program's variables are sharded, where that is planned and anything is gathered."""
    if program.placement is None or not any(gathers):
        return {}
    return program.placement.specs(program)


def _over_parts(
    split: BatchSplit, inputs: Sequence[Any], part: Part
) -> tuple[list[Any], list[Any]]:
    """A loop over the parts: outputs added up where they are shares, and gradients."""
    sliced = [i for i, is_cut in enumerate(split.cut) if is_cut]

    def of_rows(index: Any, rows: Sequence[Any]) -> Any:
        arguments = list(inputs)
        for i, x in zip(sliced, rows, strict=True):
            arguments[i] = x
        return part(index, arguments)

    def once_more(carry: Any, xs: Any) -> tuple[Any, None]:
        outputs, gradients = of_rows(*xs)
        totals = [
            old + new if added else new
            for old, new, added in zip(carry[0], outputs, split.added, strict=True)
        ]
        sums = [old + new for old, new in zip(carry[1], gradients, strict=True)]
        return (totals, sums), None

    rows = [split.parts(inputs[i]) for i in sliced]
    xs = (jnp.arange(split.count, dtype=jnp.int32), rows)
    shapes = jax.eval_shape(of_rows, *jax.tree.map(lambda x: x[0], xs))
    (outputs, gradients), _ = jax.lax.scan(once_more, jax.tree.map(_zeros, shapes), xs)
    return list(outputs), list(gradients)


def _zeros(like: Any) -> Any:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return ir.random_key(like.dtype, 0)
    return jnp.zeros(like.shape, like.dtype)
