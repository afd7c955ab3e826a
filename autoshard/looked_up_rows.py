"""Which uses of parameters look rows up in the shards, instead of gathering the parameter."""

from autoshard.program_flow import ParameterUse, ProgramFlow
from autoshard.sharded_program import ShardedProgram
from passes.row_lookup import RowMove, lookup_of, row_move


def move_of(program: ShardedProgram, position: int, use: ParameterUse) -> RowMove | None:
    """How a use of a parameter moves rows; None where it gathers the parameter, or needs not to."""
    graph, array = program.analysis.graph, program.layout.arrays[position]
    op = graph.ops[use.op]
    if op.primitive != "gather" or array.param == array.compute:
        return None
    table, result = graph.shape(op.inputs[0]), graph.shape(op.outputs[0])
    if table != array.leaf.shape:
        return None
    lookup = lookup_of(op.params, table, result, program.spec(op.outputs[0]))
    if lookup is None:
        return None
    return row_move(lookup, array.param, array.compute, program.shards)


def gathering(
    program: ShardedProgram, flow: ProgramFlow, position: int
) -> tuple[ParameterUse, ...]:
    """The uses for which a parameter is gathered, each copy once.

    The compiler merges equal gathers of the forward pass, but for those in loops.
    """
    found: dict[object, ParameterUse] = {}
    for use in flow.uses[position]:
        if move_of(program, position, use) is None:
            found.setdefault(use.slices if use.forward else ("backward", use.op), use)
    return tuple(found.values())


def moving(
    program: ShardedProgram, flow: ProgramFlow, position: int
) -> tuple[tuple[ParameterUse, RowMove], ...]:
    """The uses that look rows of a parameter up in its shards, and how."""
    uses = [(use, move_of(program, position, use)) for use in flow.uses[position]]
    return tuple((use, move) for use, move in uses if move is not None)
