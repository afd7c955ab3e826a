"""Layouts that a known fault of the compiler turns into wrong numbers.

Each check names the fault, so that it can be removed when the compiler is mended.
"""

import math

from autoshard.errors import RuleError
from autoshard.layouts import Layout, spec_of
from autoshard.named_dims import Analysis
from autoshard.sharded_program import class_parts


def check_grouped_convolutions(analysis: Analysis, layout: Layout) -> None:
    """Refuse to train a grouped convolution on a mesh axis that shards neither its batch nor
    groups.

    XLA's partitioner (seen with jax 0.10.2, Shardy and GSPMD alike) sums the kernel's gradient over
    every device, those included that computed the same, and so multiplies it by the idle axis.

    Raises:
      RuleError: the layout has such an axis.
    """
    shards = layout.mesh.refined.by_name
    parts = class_parts(analysis, layout)
    for op in analysis.graph.ops:
        if op.primitive != "conv_general_dilated" or op.params["feature_group_count"] == 1:
            continue
        numbers = op.params["dimension_numbers"]
        spec = spec_of(analysis.dims[op.inputs[0]], parts, shards, analysis.sizes)
        image_dims = (numbers.lhs_spec[0], numbers.lhs_spec[1])
        busy = {part for d in image_dims for part in spec[d]}
        idle = [part for part, size in shards.items() if size > 1 and part not in busy]
        if idle:
            axes = ", ".join(dict.fromkeys(layout.mesh.axis_of(part) for part in idle))
            degree = math.prod(shards[part] for part in idle)
            raise RuleError(
                f"a convolution in {op.params['feature_group_count']} groups would leave mesh axis "
                f"{axes} idle, and XLA then multiplies the gradient of its kernel by {degree}: use "
                f"a number of groups that divides by {axes}, or rules without tensor parallelism "
                "('data', 'zero3')"
            )
