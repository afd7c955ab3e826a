"""Rules of operations that sum: matrix products, reductions, scans along a dimension, sorts."""

from autoshard.factors import DimFactors, FactorRole, OpRule, RuleWriter
from autoshard.graph import Op, OpGraph

BLOCKED = FactorRole.BLOCKED
CONTRACTED = FactorRole.CONTRACTED


def dot_general(op: Op, graph: OpGraph) -> OpRule:
    """([batch, left, k], [batch, right, k]) -> [batch, left, right], k contracted."""
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = op.params["dimension_numbers"]
    lhs_shape, rhs_shape = graph.shape(op.inputs[0]), graph.shape(op.inputs[1])
    writer = RuleWriter()
    lhs: list[DimFactors | None] = [None] * len(lhs_shape)
    rhs: list[DimFactors | None] = [None] * len(rhs_shape)
    result: list[DimFactors] = []
    for i, j in zip(lhs_batch, rhs_batch, strict=True):
        lhs[i] = rhs[j] = writer.new(lhs_shape[i])
        result.append(lhs[i] or ())
    for i, j in zip(lhs_contract, rhs_contract, strict=True):
        lhs[i] = rhs[j] = writer.new(lhs_shape[i], CONTRACTED)
    for side, shape in ((lhs, lhs_shape), (rhs, rhs_shape)):
        for d, size in enumerate(shape):
            if side[d] is None:
                factor = writer.new(size)
                side[d] = factor
                result.append(factor)
    operands = [tuple(x or () for x in lhs), tuple(x or () for x in rhs)]
    return writer.rule(operands, [tuple(result)])


def reduction(op: Op, graph: OpGraph) -> OpRule:
    """`reduce_sum` and its kin: the reduced dimensions are contracted."""
    axes = {int(d) for d in op.params.get("axes", op.params.get("dimensions", ()))}
    writer = RuleWriter()
    shape = graph.shape(op.inputs[0])
    letters = tuple(
        writer.new(size, CONTRACTED if d in axes else FactorRole.PARALLEL)
        for d, size in enumerate(shape)
    )
    kept = tuple(x for d, x in enumerate(letters) if d not in axes)
    operands = [letters if graph.shape(v) == shape else () for v in op.inputs]
    return writer.rule(operands, [kept] * len(op.outputs))


def cumulative(op: Op, graph: OpGraph) -> OpRule:
    """`cumsum` and its kin: the scanned dimension must be whole."""
    axis = int(op.params["axis"])
    writer = RuleWriter()
    letters = tuple(
        writer.new(size, BLOCKED if d == axis else FactorRole.PARALLEL)
        for d, size in enumerate(graph.shape(op.inputs[0]))
    )
    return writer.rule([letters] * len(op.inputs), [letters] * len(op.outputs))


def sort(op: Op, graph: OpGraph) -> OpRule:
    """The sorted dimension must be whole."""
    dimension = int(op.params["dimension"])
    writer = RuleWriter()
    letters = tuple(
        writer.new(size, BLOCKED if d == dimension else FactorRole.PARALLEL)
        for d, size in enumerate(graph.shape(op.inputs[0]))
    )
    return writer.rule([letters] * len(op.inputs), [letters] * len(op.outputs))


def top_k(op: Op, graph: OpGraph) -> OpRule:
    """The searched dimension must be whole; the k best are a new dimension in its place."""
    shape = graph.shape(op.inputs[0])
    axis = int(op.params.get("axis", op.params.get("reduction_dimension", -1))) % len(shape)
    writer = RuleWriter()
    letters = [
        writer.new(size, BLOCKED if d == axis else FactorRole.PARALLEL)
        for d, size in enumerate(shape)
    ]
    result = list(letters)
    result[axis] = writer.new(graph.shape(op.outputs[0])[axis], BLOCKED)
    return writer.rule([tuple(letters)], [tuple(result)] * len(op.outputs))
