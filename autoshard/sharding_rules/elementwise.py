"""Rules of operations that act on each element alone, and of those that make arrays from nothing."""

from collections.abc import Sequence

from autoshard.factors import ArrayFactors, OpRule, RuleWriter
from autoshard.graph import Op, OpGraph

# One line a family; the list is explicit because an unknown primitive must never be free.
ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp complex conj
convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1
floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le lgamma log log1p logistic lt
max min mul ne neg nextafter not or polygamma population_count pow real reduce_precision
regularized_incomplete_beta rem round rsqrt select_and_n select_n shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
threefry2x32 xor clz mulhi
name sharding_constraint layout_constraint device_put optimization_barrier mesh_cast reshard
pvary pcast preferred_element_type create_token alias tie
""".split()

# Results that depend on no operand's layout: each device makes its own part.
GENERATED = """
iota random_bits random_fold_in random_seed random_split random_wrap random_unwrap rng_uniform
rng_bit_generator random_clone random_gamma empty full partition_id axis_index
""".split()

# These treat operand i and result i as one array each, instead of mixing all operands.
PAIRWISE = frozenset(["optimization_barrier", "device_put", "copy", "copy_p"])


def elementwise(op: Op, graph: OpGraph) -> OpRule:
    """All operands and results share their dimensions; scalars and size-1 dimensions broadcast."""
    writer = RuleWriter()
    if op.primitive in PAIRWISE and len(op.inputs) == len(op.outputs):
        arrays = [writer.dims(graph.shape(v)) for v in op.inputs]
        return writer.rule(arrays, arrays)
    shapes = [graph.shape(v) for v in (*op.inputs, *op.outputs)]
    rank = max((len(s) for s in shapes), default=0)
    full = [max((s[d] for s in shapes if len(s) == rank), default=1) for d in range(rank)]
    letters = writer.dims(full)

    def array(shape: Sequence[int]) -> ArrayFactors:
        if len(shape) != rank:  # a scalar beside full operands (clamp, select_n's predicate)
            return tuple(() for _ in shape)
        return tuple(letters[d] if size == full[d] else () for d, size in enumerate(shape))

    return writer.rule(
        [array(graph.shape(v)) for v in op.inputs], [array(graph.shape(v)) for v in op.outputs]
    )


def generated(op: Op, graph: OpGraph) -> OpRule:
    """Fresh result dimensions; operands (keys, seeds) keep dimensions of their own."""
    writer = RuleWriter()
    operands = [writer.dims(graph.shape(v)) for v in op.inputs]
    return writer.rule(operands, [writer.dims(graph.shape(v)) for v in op.outputs])


def bitcast(op: Op, graph: OpGraph) -> OpRule:
    """`bitcast_convert_type`: elementwise, with a trailing dimension where the width changes."""
    (operand,), (result,) = op.inputs, op.outputs
    source, target = graph.shape(operand), graph.shape(result)
    writer = RuleWriter()
    letters = writer.dims(source[: min(len(source), len(target))])
    return writer.rule(
        [letters + writer.dims(source[len(letters) :])],
        [letters + writer.dims(target[len(letters) :])],
    )
