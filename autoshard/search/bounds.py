"""What no layout can beat: a lower bound on the estimated step."""

import math

from autoshard.cost import Costed
from autoshard.named_dims import Analysis
from autoshard.product_flops import product_flops
from passes.hlo.machine import MachineModel, hlo_dtype
from passes.ir import PRODUCTS
from passes.program import Leaf, Role


def least_step_s(costed: Costed, machine: MachineModel, devices: int, parts: int = 1) -> float:
    """Seconds of the program's products, shared evenly by all devices that never wait.

    Each takes its FLOPs at the sustained rate, or what it reads and writes, if that takes longer.

    Args:
      costed: the variant that computes least.
      machine: one of its devices.
      devices: how many there are.
      parts: microbatches that the variant is one of.
    """
    analysis: Analysis = costed.analysis
    seconds = 0.0
    for index, op in enumerate(analysis.graph.ops):
        if op.primitive not in PRODUCTS or not any(analysis.sources[v] for v in op.inputs):
            continue
        name = analysis.graph.values[op.inputs[0]].dtype
        rate = machine.flops_per_s(hlo_dtype(name)) * machine.efficiency
        flops = product_flops(analysis, index)
        touched = sum(_bytes(analysis, v) for v in {*op.inputs, *op.outputs})
        seconds += op.repeats * max(flops / rate, touched / machine.hbm_bytes_per_s)
    return seconds * parts / devices


def _bytes(analysis: Analysis, value: int) -> float:
    array = analysis.graph.values[value]
    return math.prod(array.shape) * Leaf("", Role.CONSTANT, (), array.dtype).itemsize_bytes
