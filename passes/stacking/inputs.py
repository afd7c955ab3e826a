"""A program with stacks among its inputs, as one of the user's own arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from passes import ir
from passes.program import Program


def stacks_inside(program: Program, original: Program) -> Program:
    """The program with the inputs of the one before stacking; it makes its stacks itself.

    For optimizers that do something else to a stack than to each of its parts.

    Args:
      program: some inputs are stacks (`Leaf.parts`).
      original: with the user's own arrays as inputs.
    """
    position = {(leaf.role, leaf.path): i for i, leaf in enumerate(original.inputs)}

    def function(*inputs: Any) -> list[Any]:
        arguments = []
        for leaf in program.inputs:
            own = [inputs[position[leaf.role, path]] for path in leaf.parts or (leaf.path,)]
            arguments.append(jnp.stack(own) if leaf.parts else own[0])
        return ir.as_function(program.jaxpr)(*arguments)

    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in original.jaxpr.in_avals]
    jaxpr = jax.make_jaxpr(function)(*specs)
    return dataclasses.replace(program, jaxpr=jaxpr, inputs=original.inputs)
