"""From a question to layouts, best first.

question -> space of decisions -> solver (costs by `evaluate`) -> refinement of what is saved
         -> answer, with a lower bound and the runner-up of each choice
"""

import dataclasses

from autoshard.cost import Costed
from autoshard.errors import PassError
from autoshard.rule_sets import AUTO, logical
from autoshard.search.answer import Answer, runner_ups
from autoshard.search.bound_rules import axes_taken, bound_rules, kept_whole
from autoshard.search.bounds import least_step_s
from autoshard.search.decision import Decision, MemoryChoice
from autoshard.search.evaluate import Evaluated, Evaluator
from autoshard.search.no_fit import check_fits
from autoshard.search.options import SearchOptions
from autoshard.search.question import Question
from autoshard.search.refine import refined
from autoshard.search.solver import best_first
from autoshard.search.space import (
    Space,
    column_units,
    find_conflicts,
    find_units,
    memory_choices,
)
from autoshard.search_record import SearchRecord
from passes.program import Role

_WORTH_TELLING = 0.02

__all__ = ["Answer", "Question", "SearchOptions", "search", "space_of"]


def space_of(question: Question) -> Space:
    """The space of a question's decisions."""
    subject, options = question.subject, question.options
    units = find_units(subject, (*options.forbid, *kept_whole(question)))
    program = subject.analysis.program
    rows = [
        program.inputs[p].shape[0] for p in program.with_role(Role.BATCH) if program.inputs[p].shape
    ]
    return Space(
        units=units,
        shapes=question.shapes,
        conflicts=find_conflicts(subject, units),
        column_units=column_units(subject, units),
        trains=question.trains,
        memories=memory_choices(
            bool(subject.analysis.graph.loops) or question.variants.has_regions,
            options.microbatches if question.trains else (1,),
            min(rows, default=1),
            options.choose_passes and question.trains,
        ),
        taken_axes=axes_taken(question),
        stage_counts=frozenset(question.stage_counts),
    )


def search(question: Question) -> Answer:
    """Find layouts, or cost the user's own on each mesh.

    Raises:
      RuleError, BatchError: no layout is possible; the error of the first.
      PlanError: none fits the memory limit; the message says what would.
    """
    if AUTO in question.rules:
        space = space_of(question)
        evaluator = Evaluator(question, space.by_label)
        ranked = _searched(question, space, evaluator)
    else:
        evaluator = Evaluator(question, {})
        rules = bound_rules(question)
        ranked = [evaluator.of_rules(Decision(s), rules) for s in question.shapes]
    limit = question.memory_limit_bytes
    ranked.sort(key=lambda one: one.rank(limit))
    if ranked[0].cost is None:
        first = next((e.error for e in ranked if e.error is not None), None)
        assert isinstance(first, Exception)
        raise first
    check_fits(question, tuple(ranked))
    notes = _price_of_rules(question, ranked[0])
    return Answer(tuple(ranked), _record(question, evaluator, tuple(ranked)), notes)


def _price_of_rules(question: Question, best: Evaluated) -> tuple[str, ...]:
    """What the user's rules beside `auto` cost, where they cost much."""
    own = [rule.name for rule in question.rules if rule is not AUTO]
    if not own or AUTO not in question.rules:
        return ()
    free = dataclasses.replace(question, rules=(AUTO,))
    space = space_of(free)
    evaluator = Evaluator(free, space.by_label)
    limit = question.memory_limit_bytes
    other = best_first(
        space.seeds(), space.neighbours, evaluator.of, limit, question.options.max_layouts
    )[0]
    assert best.cost is not None
    if other.cost is None or not other.fits(limit):
        return ()
    slower = best.cost.time.total_s / other.cost.time.total_s - 1
    if slower < _WORTH_TELLING:
        return ()
    layout = "+".join(rule.name for rule in other.rules)
    return (
        f"the rules {'+'.join(own)} are obeyed, and make the step an estimated {slower:.0%} "
        f"slower than the best without them ({layout} on mesh {other.decision.shape})",
    )


def _searched(question: Question, space: Space, evaluator: Evaluator) -> list[Evaluated]:
    bound, limit, options = bound_rules(question), question.memory_limit_bytes, question.options

    def cost(decision: Decision) -> Evaluated:
        done = len(evaluator.known)
        if done % 100 == 99:
            options.say(f"{done + 1} layouts costed")
        return evaluator.of(decision, bound)

    ranked = best_first(space.seeds(), space.neighbours, cost, limit, options.max_layouts)
    if any(leaf.metadata for leaf in question.subject.analysis.program.inputs):
        ranked += _by_metadata(question, evaluator)
    if options.choose_passes and question.trains:
        ranked += refined(question, evaluator, ranked)
    return ranked


def _by_metadata(question: Question, evaluator: Evaluator) -> list[Evaluated]:
    """Layouts that the model's own logical axes ask for, where it has such metadata."""
    rules = (*bound_rules(question), logical())
    found = [evaluator.of_rules(Decision(shape), rules) for shape in question.shapes]
    return [one for one in found if one.cost is not None]


def _record(
    question: Question, evaluator: Evaluator, ranked: tuple[Evaluated, ...]
) -> SearchRecord:
    best = ranked[0]
    assert best.cost is not None
    shape = best.decision.shape
    machine = evaluator.timer(shape).machine
    bound_s = least_step_s(_least(question), machine, shape.device_count)
    total_s = best.cost.time.total_s
    limit = question.memory_limit_bytes
    return SearchRecord(
        evaluated=len(ranked),
        bound_s=bound_s,
        gap=total_s / bound_s - 1 if bound_s else 0.0,
        limit_bytes=limit,
        runner_ups=runner_ups(ranked, best, limit),
    )


def _least(question: Question) -> Costed:
    """The variant that computes least: nothing computed again."""
    if not (question.options.choose_passes and question.trains):
        return question.costed
    try:
        return question.variants.of(MemoryChoice("none"))
    except PassError:
        return question.costed
