"""Pipelines as a choice of the search: what one costs, from the cost of a microbatch.

A mesh axis `stage` holds the layers, one share a stage. The program of one microbatch is costed
with loops over layers divided by the stages; from that:

    time    M microbatches, and the ticks in which a stage waits (`passes.pipelining.closed_forms`);
            what a stage hands on, both ways, is waited for
    memory  what one microbatch saves in a stage's layers, the inputs of the 2 S - 1 microbatches
            that are under way in 1F1B, and summed gradients
"""

import dataclasses

from autoshard.cost import Costed, CostReport
from autoshard.graph import TIE
from autoshard.layouts import Layout
from autoshard.named_dims import Source
from autoshard.predicted_collectives import ALL_REDUCE, Phase, PredictedCollective, Purpose
from autoshard.rule_sets import RuleSet, dims
from autoshard.rule_sets.base import Subject
from autoshard.search.accumulation import repeated, summed_gradient_bytes
from autoshard.sharded_program import STAGE, ShardedProgram
from autoshard.step_time import PERMUTE, StepTimer
from passes.pipelining.closed_forms import ScheduleName, bubble

SCHEDULE: ScheduleName = "1f1b"
_MOST_STAGES = 16


def possible_stages(subject: Subject) -> tuple[int, ...]:
    """Numbers of stages that the layers divide into; none where there is not one chain of them."""
    layers = subject.names.find("layers")
    if layers is None or len(layers.sizes) != 1 or len(subject.analysis.graph.loops) != 1:
        return ()
    return tuple(s for s in range(2, _MOST_STAGES + 1) if layers.sizes[0] % s == 0)


def stage_rules(subject: Subject, stages: int) -> RuleSet:
    """The layers over the stages, and the vocabulary where it divides, as `Pipeline` pins them."""
    pairs = []
    for name in ("layers", "vocab"):
        found = subject.names.find(name)
        if found is not None and all(size % stages == 0 for size in found.sizes):
            pairs.append((name, STAGE))
    rule = dims(*pairs)
    return RuleSet(rule.name, rule.decide, axis_rules=rule.axis_rules, reserves=frozenset({STAGE}))


def pipelined(
    one: CostReport, costed: Costed, layout: Layout, timer: StepTimer, microbatches: int
) -> CostReport:
    """The cost of a step in a pipeline, from that of one microbatch.

    Args:
      one: of a microbatch, loops over layers divided by the stages.
      costed: its program.
      layout: for its inputs.
      timer: of the mesh.
      microbatches: M.
    """
    mesh = layout.mesh.refined
    stages, program = layout.mesh.shape.size(STAGE), ShardedProgram(costed.analysis, layout)
    handed_bytes = _carried_bytes(costed, program)
    hop = PredictedCollective(
        PERMUTE, Purpose.ACTIVATIONS, Phase.FORWARD, "", "what a stage hands on",
        layout.mesh.of(STAGE), stages, 2 * microbatches, round(handed_bytes),
    )  # fmt: skip
    hops_s = hop.count * timer.collective_s(mesh, hop)
    time = one.time
    # Gradients are summed over devices once, behind the last microbatch.
    sums_s = sum(
        c.count * timer.collective_s(mesh, c)
        for c in one.collectives
        if c.purpose is Purpose.GRADIENTS and c.kind == ALL_REDUCE
    )
    waits_s = max(0.0, time.exposed_s - sums_s)
    busy = microbatches * (time.products_s + time.traffic_s + waits_s) + hops_s
    share = bubble(SCHEDULE, stages, microbatches)
    gradients = summed_gradient_bytes(layout)
    return CostReport(
        flops=one.flops * microbatches,
        memory=dataclasses.replace(
            one.memory,
            gradients_bytes=one.memory.gradients_bytes + gradients,
            other_bytes=one.memory.other_bytes * microbatches,
            activations_bytes=one.memory.activations_bytes + round((2 * stages - 1) * handed_bytes),
        ),
        time=dataclasses.replace(
            time,
            products_s=time.products_s * microbatches,
            traffic_s=time.traffic_s * microbatches,
            communication_s=time.communication_s * microbatches + hops_s,
            exposed_s=waits_s * microbatches + sums_s + hops_s,
            idle_s=busy * share / (1 - share),
        ),
        collectives=(*(_often(c, microbatches) for c in one.collectives), hop),
    )


def _often(one: PredictedCollective, count: int) -> PredictedCollective:
    return one if one.purpose is Purpose.GRADIENTS else repeated(one, count)


def _carried_bytes(costed: Costed, program: ShardedProgram) -> float:
    """Bytes of a device of what the layers carry: the largest, of the batch."""
    graph, sources = costed.analysis.graph, costed.analysis.sources
    carried = [
        program.local_bytes(op.inputs[0])
        for index, op in enumerate(graph.ops)
        if op.primitive == TIE and sources[op.inputs[0]] & Source.BATCH and graph.in_loop(index)
    ]
    return max(carried, default=0.0)
