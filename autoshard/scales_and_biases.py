"""Which parameters are scales and biases: no product reads them, no rows are taken of them."""

from autoshard import graph as graphs
from autoshard.named_dims import Analysis
from autoshard.program_flow import VIEWS
from passes.program import Role

# What such a parameter goes through on its way to where it is multiplied or added.
_VIEWS = VIEWS | {graphs.SCAN_XS, graphs.SCAN_YS, graphs.ALIAS}
_ELEMENTWISE = frozenset("add add_any sub mul div".split())


def scales_and_biases(analysis: Analysis) -> frozenset[int]:
    """Positions of the parameters of a program that are only added or multiplied with."""
    parameters = analysis.program.with_role(Role.PARAMETER)
    position_of = {analysis.graph.inputs[position]: position for position in parameters}
    read: set[int] = set()
    for op in analysis.graph.ops:
        for value in op.inputs:
            position = position_of.get(value)
            if position is None:
                continue
            if op.primitive in _VIEWS:
                position_of[op.outputs[0]] = position
            elif op.primitive not in (*_ELEMENTWISE, graphs.TIE):
                read.add(position)
    return frozenset(parameters) - read
