"""What a plan's step should take on a machine, before anything is compiled.

Matrix products at the machine's sustained rate, and the predicted collectives one after the other
on their links. Elementwise work and copies are left out, and nothing is overlapped.
"""

import dataclasses

from autoshard.mesh_groups import groups_over
from autoshard.plan import Plan
from passes.hlo.collective_time import collective_time
from passes.hlo.machine import MachineModel


@dataclasses.dataclass(frozen=True)
class PredictedStep:
    """Seconds of a step.

    Attributes:
      products_s: matrix products and convolutions.
      collectives_s: collectives, nothing overlapped.
    """

    products_s: float
    collectives_s: float


def predict_step(plan: Plan, machine: MachineModel, dtype: str) -> PredictedStep:
    """Seconds of a plan's step on a machine.

    Args:
      plan: the plan.
      machine: its model, devices in the order of the plan's mesh.
      dtype: of the products, in HLO's spelling.
    """
    mesh = plan.mesh.refined
    moving = 0.0
    for collective in plan.cost.collectives:
        groups = groups_over(mesh, collective.axes)
        time = collective_time(machine, collective.kind, collective.payload_bytes, groups)
        moving += collective.count * time.seconds
    rate = machine.flops_per_s(dtype) * machine.efficiency
    return PredictedStep(plan.cost.flops / rate, moving)
