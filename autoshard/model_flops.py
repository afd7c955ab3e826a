"""FLOPs that a model needs, counted from its forward program on shapes alone."""

from autoshard.named_dims import Analysis
from autoshard.product_flops import product_flops
from passes.ir import PRODUCTS


def model_flops(analysis: Analysis, trains: bool) -> float:
    """FLOPs of one step over all devices: what MFU counts.

    Matrix products and convolutions of the forward program, a multiply-add as two, nothing
    recomputed and masks not counted; three times that for a training step, whose backward pass has
    two products for each ("PaLM", appendix B).

    Args:
      analysis: of the forward program.
      trains: whether gradients are computed.
    """
    total = sum(
        product_flops(analysis, index) * op.repeats
        for index, op in enumerate(analysis.graph.ops)
        if op.primitive in PRODUCTS
    )
    return total * (3 if trains else 1)
