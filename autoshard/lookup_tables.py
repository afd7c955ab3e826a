"""Which parameters are tables that rows are looked up in."""

import collections
from collections.abc import Mapping

from autoshard.named_dims import Analysis
from passes.lazy_inputs import SLICED_THROUGH
from passes.program import Role

_KEEP_DIMENSIONS = SLICED_THROUGH - {"transpose"}


def looked_up_dims(analysis: Analysis) -> Mapping[int, frozenset[int]]:
    """For each parameter from which a program picks rows, by position, the picked dimensions."""
    position_of = {
        analysis.graph.inputs[position]: position
        for position in analysis.program.with_role(Role.PARAMETER)
    }
    found: dict[int, set[int]] = collections.defaultdict(set)
    for op in analysis.graph.ops:
        position = position_of.get(op.inputs[0]) if op.inputs else None
        if position is None:
            continue
        if op.primitive in _KEEP_DIMENSIONS:
            position_of[op.outputs[0]] = position
        elif op.primitive == "gather":
            found[position].update(op.params["dimension_numbers"].start_index_map)
    return {position: frozenset(dims) for position, dims in found.items()}
