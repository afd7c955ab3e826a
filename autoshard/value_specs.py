"""How a layout shards each value of a program that passes have rewritten."""

import dataclasses
from collections.abc import Callable, Mapping

from autoshard.layouts import ArrayLayout, Layout
from autoshard.named_dims import analyse
from autoshard.sharded_program import ShardedProgram
from passes.ir import Var
from passes.program import Leaf, Program, Role
from passes.spec import Spec


def value_specs(layout: Layout) -> Callable[[Program], Mapping[Var, Spec]]:
    """A function from a program with the layout's inputs to the spec of each of its variables.

    Variables of called and scanned programs are included. The program is analysed as it is, so that
    what passes have added is laid out after what it is computed from.
    """

    known = {(array.leaf.role, array.leaf.path): array for array in layout.arrays}

    def specs(program: Program) -> Mapping[Var, Spec]:
        analysis = analyse(program)
        arrays = tuple(laid_out(leaf, known) for leaf in program.inputs)
        sharded = ShardedProgram(analysis, dataclasses.replace(layout, arrays=arrays))
        return {
            var: spec
            for var, value in analysis.graph.of_variable.items()
            if any(spec := sharded.spec(value))
        }

    return specs


def laid_out(leaf: Leaf, known: Mapping[tuple[Role, str], ArrayLayout]) -> ArrayLayout:
    """An input as the plan has it, by its path; what a pass has added is whole."""
    found = known.get((leaf.role, leaf.path))
    if found is not None and len(found.leaf.shape) == len(leaf.shape):
        return dataclasses.replace(found, leaf=leaf)
    whole: Spec = tuple(() for _ in leaf.shape)
    return ArrayLayout(leaf, ("",) * len(whole), whole, whole, whole, whole, "", "")
