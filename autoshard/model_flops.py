"""FLOPs that a model needs, counted from its forward program on shapes alone."""

import math

from autoshard.factors import FactorRole
from autoshard.named_dims import Analysis

_PRODUCTS = ("dot_general", "conv_general_dilated")


def model_flops(analysis: Analysis, trains: bool) -> float:
    """FLOPs of one step over all devices: what MFU counts.

    Matrix products and convolutions of the forward program, a multiply-add as two, nothing
    recomputed and masks not counted; three times that for a training step, whose backward pass has
    two products for each ("PaLM", appendix B).

    Args:
      analysis: of the forward program.
      trains: whether gradients are computed.
    """
    total = 0.0
    for op, rule in zip(analysis.graph.ops, analysis.rules, strict=True):
        if op.primitive in _PRODUCTS:
            sizes = (f.size for f in rule.factors if f.role is not FactorRole.INDEXED)
            total += 2.0 * math.prod(sizes) * op.repeats
    return total * (3 if trains else 1)
