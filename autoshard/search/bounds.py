"""What no layout can beat: a lower bound on the estimated step."""

import math

from autoshard.cost import Costed
from autoshard.factors import FactorRole
from autoshard.named_dims import Analysis
from autoshard.step_time import PRODUCTS
from passes.hlo.machine import MachineModel

_HLO_DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "int8": "s8"}


def least_step_s(costed: Costed, machine: MachineModel, devices: int, parts: int = 1) -> float:
    """Seconds of the program's products, shared evenly by all devices that never wait.

    Args:
      costed: the variant that computes least.
      machine: one of its devices.
      devices: how many there are.
      parts: microbatches that the variant is one of.
    """
    analysis: Analysis = costed.analysis
    seconds = 0.0
    for op, rule in zip(analysis.graph.ops, analysis.rules, strict=True):
        if op.primitive not in PRODUCTS or not any(analysis.sources[v] for v in op.inputs):
            continue
        name = analysis.graph.values[op.inputs[0]].dtype
        rate = machine.flops_per_s(_HLO_DTYPES.get(name, name)) * machine.efficiency
        flops = 2.0 * math.prod(f.size for f in rule.factors if f.role is not FactorRole.INDEXED)
        seconds += flops * op.repeats / rate
    return seconds * parts / devices
