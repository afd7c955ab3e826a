"""Which parameters are stacks that the program scans over, slice by slice."""

from collections.abc import Iterator

from autoshard import graph as graphs
from autoshard.named_dims import Analysis, Source
from passes.lazy_inputs import SLICED_THROUGH
from passes.program import Role


def _origins(analysis: Analysis) -> Iterator[tuple[graphs.Op, int]]:
    """(scan of an operand, the value that the operand is a view, a cast or a slice of)."""
    made_by = {value: op for op in analysis.graph.ops for value in op.outputs}
    for op in analysis.graph.ops:
        if op.primitive != graphs.SCAN_XS:
            continue
        value = op.inputs[0]
        while value in made_by and made_by[value].primitive in (*SLICED_THROUGH, graphs.SCAN_XS):
            value = made_by[value].inputs[0]
        yield op, value


def scanned_atoms(analysis: Analysis) -> frozenset[int]:
    """Atoms of the dimensions along which a forward or gradient program scans over parameters."""
    parameters = {
        analysis.graph.inputs[position] for position in analysis.program.with_role(Role.PARAMETER)
    }
    return frozenset(
        atom
        for op, origin in _origins(analysis)
        if origin in parameters
        for atom in analysis.dims[op.inputs[0]][0]
    )


def scans_made_stacks(analysis: Analysis) -> bool:
    """Whether a forward program scans over stacks that it makes of parameters."""
    inputs = set(analysis.graph.inputs)
    return any(
        analysis.sources[op.inputs[0]] == Source.PARAMETER and origin not in inputs
        for op, origin in _origins(analysis)
    )
