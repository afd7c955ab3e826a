"""What is saved for the backward pass, decided value by value for the best layouts.

memory left by the layout where all is computed again  ->  budget  ->  integer program over the
unique block (`passes.remat_solver`)  ->  program  ->  estimate  ->  budget, corrected
"""

import dataclasses
import math
from collections.abc import Sequence

from jax.sharding import AbstractMesh

from autoshard.errors import AutoshardError
from autoshard.layouts import Layout
from autoshard.search.decision import MemoryChoice
from autoshard.search.evaluate import Evaluated, Evaluator
from autoshard.search.question import Question
from autoshard.value_specs import value_specs
from passes import errors as pass_errors
from passes.microbatch import in_microbatches
from passes.program import Placement, Program
from passes.remat import flat_loops, planned_blocks, rates_of, realised
from passes.remat_problem import kept_bytes
from passes.remat_solver import saved_bytes, solve
from passes.remat_trace import BlockTrace

_LAYOUTS = 4
_TRIES = 3
_MARGIN = 0.97  # of the room: the estimate of what is saved leaves out what tiles add


def refined(
    question: Question, evaluator: Evaluator, ranked: Sequence[Evaluated]
) -> list[Evaluated]:
    """The best layouts with their own choice of what is saved.

    Layouts are taken by the best that they reached under a built-in policy.
    """
    if not question.subject.analysis.graph.loops or question.memory_limit_bytes is None:
        return []
    limit = question.memory_limit_bytes
    seen: set[object] = set()
    found: list[Evaluated] = []
    for one in ranked:
        if one.layout is None or one.cost is None or len(seen) == _LAYOUTS:
            continue
        if one.decision.stages > 1:
            continue  # the pass would see the whole batch, and not a microbatch
        place = dataclasses.replace(one.decision, memory=MemoryChoice())
        key = (place, one.decision.memory.microbatches)
        if key in seen:
            continue
        seen.add(key)
        question.options.say(f"deciding what to save under {place.shape}")
        best = _decided(question, evaluator, one, limit)
        if best is not None:
            found.append(best)
    return found


def _decided(
    question: Question, evaluator: Evaluator, one: Evaluated, limit: int
) -> Evaluated | None:
    layout, count = one.layout, one.decision.memory.microbatches
    assert layout is not None
    try:
        least = evaluator.cost(layout, MemoryChoice("full", count))
        program = _placed(question, evaluator, layout, count)
        flat, loops = flat_loops(program)
        traces, rates = planned_blocks(flat, loops), rates_of(flat)
        problems = [trace.problem for trace in traces]
        budget = limit * _MARGIN - least.memory.total_bytes + _carried_bytes(traces)
        for _ in range(_TRIES):
            choice = solve(problems, budget, rates)
            # What is saved, not what might be: equal programs get equal budgets.
            saved = math.ceil(saved_bytes(problems, choice))
            memory = MemoryChoice("auto", count, saved)
            costed = question.variants.costed(realised(flat, traces, choice))
            cost = evaluator.cost_of(costed, layout, memory)
            decision = dataclasses.replace(one.decision, memory=memory)
            made = dataclasses.replace(one, decision=decision, cost=cost)
            if made.fits(limit):
                return made
            budget = saved - 1.05 * (cost.memory.total_bytes - limit)
    except (AutoshardError, pass_errors.PassError):
        return None  # what carries values over all layers does not fit under this layout
    return None


def _placed(question: Question, evaluator: Evaluator, layout: Layout, count: int) -> Program:
    """The forward program as passes after planning see it."""
    mesh = layout.mesh.refined
    placement = Placement(
        AbstractMesh(mesh.sizes, mesh.names),  # type: ignore[arg-type]  # only sizes are read
        evaluator.timer(layout.mesh.shape).machine,
        value_specs(layout),
    )
    program = dataclasses.replace(question.variants.program, placement=placement)
    return in_microbatches(program, count) if count > 1 else program


def _carried_bytes(traces: Sequence[BlockTrace]) -> float:
    """Bytes of a device of what loops carry, all iterations: saved in any case."""
    total = 0.0
    for trace in traces:
        carries = set(trace.loop.carries)
        indices = frozenset(i for i, var in trace.variable.items() if var in carries)
        total += kept_bytes(trace.problem, indices)
    return total
