"""Rules of gathers and scatters."""

from autoshard.factors import DimFactors, FactorRole, OpRule, RuleWriter
from autoshard.graph import Op, OpGraph

BLOCKED = FactorRole.BLOCKED
INDEXED = FactorRole.INDEXED


def _picked(rows: int) -> FactorRole:
    """The role of a dimension from which an index picks `rows` consecutive rows."""
    return INDEXED if rows == 1 else BLOCKED


def gather(op: Op, graph: OpGraph) -> OpRule:
    """Batch dimensions come from the indices, offset dimensions from the operand.

    An operand dimension that is picked from (`start_index_map` with a slice smaller than it) is
    INDEXED: sharded, each device contributes the rows that it holds and the result is all-reduced.
    A slice of several rows may straddle shards, so those must be whole, as must the index vector.
    """
    numbers = op.params["dimension_numbers"]
    slice_sizes = op.params["slice_sizes"]
    operand_shape, indices_shape = graph.shape(op.inputs[0]), graph.shape(op.inputs[1])
    result_shape = graph.shape(op.outputs[0])
    writer = RuleWriter()
    indices = [*writer.dims(indices_shape[:-1]), writer.new(indices_shape[-1], BLOCKED)]
    operand: list[DimFactors] = [() for _ in operand_shape]
    for d, i in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        operand[d] = indices[i]
    result: list[DimFactors] = [() for _ in result_shape]
    offsets = iter(numbers.offset_dims)
    removed = set(numbers.collapsed_slice_dims) | set(numbers.operand_batching_dims)
    for d, size in enumerate(operand_shape):
        if d in numbers.operand_batching_dims:
            continue
        whole = slice_sizes[d] == size
        operand[d] = writer.new(size) if whole else writer.new(size, _picked(slice_sizes[d]))
        if d not in removed:
            out = next(offsets)
            result[out] = operand[d] if whole else writer.new(slice_sizes[d], BLOCKED)
    batch_positions = [d for d in range(len(result_shape)) if d not in numbers.offset_dims]
    for out, factors in zip(batch_positions, indices[:-1], strict=True):
        result[out] = factors
    return writer.rule([tuple(operand), tuple(indices)], [tuple(result)])


def scatter(op: Op, graph: OpGraph) -> OpRule:
    """Updates fall on rows of the operand.

    Rows may be sharded (each device keeps the updates that fall on its own); the updates' batch
    dimensions are summed over, so they are contracted. Plain `scatter` overwrites, and which of
    two updates wins cannot be had from partial results: it needs all updates.
    """
    numbers = op.params["dimension_numbers"]
    operand_shape, indices_shape = graph.shape(op.inputs[0]), graph.shape(op.inputs[1])
    update_shape = graph.shape(op.inputs[2])
    writer = RuleWriter()
    batching = dict(
        zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    )
    shared = set(batching.values())
    summed = BLOCKED if op.primitive == "scatter" else FactorRole.CONTRACTED
    indices = [
        writer.new(size, FactorRole.PARALLEL if d in shared else summed)
        for d, size in enumerate(indices_shape[:-1])
    ]
    operand: list[DimFactors] = [() for _ in operand_shape]
    updates: list[DimFactors] = [() for _ in update_shape]
    windows = iter(numbers.update_window_dims)
    for d, size in enumerate(operand_shape):
        if d in batching:
            operand[d] = indices[batching[d]]
            continue
        if d in numbers.inserted_window_dims:
            operand[d] = writer.new(size, INDEXED)
            continue
        window = next(windows)
        if update_shape[window] == size:
            operand[d] = updates[window] = writer.new(size)
        else:
            operand[d] = writer.new(size, _picked(update_shape[window]))
            updates[window] = writer.new(update_shape[window], BLOCKED)
    scattered = [d for d in range(len(update_shape)) if d not in numbers.update_window_dims]
    for d, factors in zip(scattered, indices, strict=True):
        updates[d] = factors
    index_vector = writer.new(indices_shape[-1], BLOCKED)
    return writer.rule([tuple(operand), (*indices, index_vector), tuple(updates)], [tuple(operand)])
