"""FLOPs of matrix products and convolutions, from shapes alone."""

import math

from autoshard.factors import FactorRole
from autoshard.named_dims import Analysis


def product_flops(analysis: Analysis, index: int) -> float:
    """Multiply-adds counted twice, of one execution of a product or convolution, all of it.

    Of a convolution those with zeros between dilated inputs are left out.
    """
    op, rule = analysis.graph.ops[index], analysis.rules[index]
    if op.primitive == "dot_general":
        return 2.0 * math.prod(f.size for f in rule.factors if f.role is not FactorRole.INDEXED)
    kernel, result = (analysis.graph.shape(v) for v in (op.inputs[1], op.outputs[0]))
    made = kernel[op.params["dimension_numbers"].rhs_spec[0]]
    zeros = math.prod(op.params["lhs_dilation"])
    return 2.0 * math.prod(result) * math.prod(kernel) / made / zeros
