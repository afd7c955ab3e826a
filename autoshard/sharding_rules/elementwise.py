"""Rules of operations that act on each element alone, or that make arrays from nothing."""

from collections.abc import Sequence

from autoshard.factors import ArrayFactors, DimFactors, FactorRole, OpRule, RuleWriter
from autoshard.graph import Op, OpGraph

# One line a family; the list is explicit because an unknown primitive must never be free.
ELEMENTWISE = """
abs acos acosh add add_any alias and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
clamp clz complex conj convert_element_type copy cos cosh device_put digamma div eq eq_to erf
erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite
layout_constraint le le_to lgamma log log1p logistic lt lt_to max min mul mulhi name ne neg
nextafter not one_minus_square optimization_barrier or polygamma polynomial population_count pow
pvary real reduce_precision regularized_incomplete_beta rem reshard round rsqrt select_n
sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt
square stop_gradient sub tan tanh threefry2x32 tie xor zeta
""".split()

# Results that depend on no operand's layout: each device makes its own part.
GENERATED = "iota rng_uniform rng_bit_generator empty axis_index".split()

# The leading dimensions are those of a batch of keys, each of which is used alone.
KEYED = """
random_bits random_clone random_fold_in random_gamma random_seed random_split random_unwrap
random_wrap
""".split()

# These treat operand i and result i as one array each, instead of mixing all operands.
PAIRWISE = frozenset(["optimization_barrier", "device_put", "copy"])


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
    """Fresh result dimensions; operands (the words of a key) must be whole."""
    writer = RuleWriter()
    operands = [writer.dims(graph.shape(v), FactorRole.BLOCKED) for v in op.inputs]
    return writer.rule(operands, [writer.dims(graph.shape(v)) for v in op.outputs])


def keyed(op: Op, graph: OpGraph) -> OpRule:
    """Operations on random keys: the leading dimensions, a batch of keys, are shared.

    What a result has behind them is new; what only an operand has (the words of a raw key) must be
    whole.
    """
    shapes = [graph.shape(v) for v in (*op.inputs, *op.outputs)]
    longest = max(shapes, key=len, default=())
    in_result = max((len(graph.shape(v)) for v in op.outputs), default=0)
    writer = RuleWriter()
    letters = writer.dims(longest[:in_result])
    letters += writer.dims(longest[in_result:], FactorRole.BLOCKED)

    def array(shape: Sequence[int]) -> ArrayFactors:
        dims: list[DimFactors] = []
        for d, size in enumerate(shape):
            dims.append(letters[d] if size == longest[d] else writer.new(size, FactorRole.BLOCKED))
        return tuple(dims)

    return writer.rule(
        [array(graph.shape(v)) for v in op.inputs], [array(graph.shape(v)) for v in op.outputs]
    )


def bitcast(op: Op, graph: OpGraph) -> OpRule:
    """`bitcast_convert_type`: elementwise, with a trailing dimension where the width changes.

    The parts of one wide number, which that dimension counts, stay together.
    """
    (operand,), (result,) = op.inputs, op.outputs
    source, target = graph.shape(operand), graph.shape(result)
    writer = RuleWriter()
    letters = writer.dims(source[: min(len(source), len(target))])
    return writer.rule(
        [letters + writer.dims(source[len(letters) :], FactorRole.BLOCKED)],
        [letters + writer.dims(target[len(letters) :], FactorRole.BLOCKED)],
    )
