"""One factor rule a primitive.

Adding a primitive is one function and one line of `TABLE`. A primitive that is not in the table
gets `conservative`: nothing it touches may be sharded for free, and the plan's report lists it.
"""

from collections.abc import Callable

from autoshard import graph as graphs
from autoshard.factors import FactorRole, OpRule, RuleWriter
from autoshard.graph import Op, OpGraph
from autoshard.sharding_rules import contraction, elementwise, indexing, shape, windows

RuleFunction = Callable[[Op, OpGraph], OpRule]

TABLE: dict[str, RuleFunction] = {
    **dict.fromkeys(elementwise.ELEMENTWISE, elementwise.elementwise),
    **dict.fromkeys(elementwise.GENERATED, elementwise.generated),
    **dict.fromkeys(elementwise.KEYED, elementwise.keyed),
    "bitcast_convert_type": elementwise.bitcast,
    "reshape": shape.reshape,
    "broadcast_in_dim": shape.broadcast_in_dim,
    "transpose": shape.transpose,
    "squeeze": shape.squeeze,
    **dict.fromkeys(("slice", "split", "concatenate"), shape.resized),
    "pad": shape.pad,
    "dynamic_slice": shape.dynamic_slice,
    "dynamic_update_slice": shape.dynamic_update_slice,
    "rev": shape.rev,
    "stack": shape.stack,
    "unstack": shape.unstack,
    "tile": shape.tile,
    graphs.SCAN_XS: shape.scan_xs,
    graphs.SCAN_YS: shape.scan_ys,
    "dot_general": contraction.dot_general,
    **dict.fromkeys(
        (
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "reduce_xor",
            "argmax",
            "argmin",
        ),
        contraction.reduction,
    ),
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), contraction.cumulative
    ),
    "sort": contraction.sort,
    "top_k": contraction.top_k,
    "approx_top_k": contraction.top_k,
    "gather": indexing.gather,
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"),
        indexing.scatter,
    ),
    "conv_general_dilated": windows.convolution,
    **dict.fromkeys(
        ("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"),
        windows.reduce_window,
    ),
    "select_and_scatter_add": windows.select_and_scatter_add,
}


def conservative(op: Op, graph: OpGraph) -> OpRule:
    """Every dimension blocked and on its own: correct for any operation, and never free."""
    writer = RuleWriter()
    operands = [writer.dims(graph.shape(v), FactorRole.BLOCKED) for v in op.inputs]
    results = [writer.dims(graph.shape(v), FactorRole.BLOCKED) for v in op.outputs]
    rule = writer.rule(operands, results)
    return OpRule(rule.factors, rule.operands, rule.results, modelled=False)


def rule_for(op: Op, graph: OpGraph) -> OpRule:
    """The factor map of `op`; the conservative one if its primitive is unknown."""
    function = TABLE.get(op.primitive)
    return conservative(op, graph) if function is None else function(op, graph)
