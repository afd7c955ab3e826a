"""What several microbatches hold and repeat, one after the other or in a pipeline."""

import dataclasses

from autoshard.layouts import Layout
from autoshard.predicted_collectives import Phase, PredictedCollective
from passes.program import Role

_SUMMED_IN_BYTES = 4  # float32


def summed_gradient_bytes(layout: Layout) -> int:
    """Bytes of a device of the gradients that are added up."""
    mesh = layout.mesh.refined
    return sum(
        array.leaf.size * _SUMMED_IN_BYTES // mesh.shards(p for dim in array.grad for p in dim)
        for array in layout.arrays
        if array.leaf.role is Role.PARAMETER
    )


def repeated(one: PredictedCollective, count: int) -> PredictedCollective:
    """A collective of one microbatch, as often as there are; those of the update come once."""
    if one.phase is Phase.OPTIMIZER:
        return one
    return dataclasses.replace(one, count=one.count * count)
