"""From a traced program and the user's wishes to a plan."""

import dataclasses
from collections.abc import Callable

from autoshard import rule_sets
from autoshard.dim_names import name_dims
from autoshard.errors import RuleError, UnmodelledError
from autoshard.layouts import Layout
from autoshard.named_dims import Analysis, analyse
from autoshard.plan import Plan, identify, make_plan
from autoshard.rule_sets.base import RuleSet, Subject
from autoshard.search import Question, search
from autoshard.structure import find_structure
from autoshard.target import Target
from autoshard.trace import gradient_program
from autoshard.validate import validate
from passes.program import Program


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the user asked of the planner.

    Attributes:
      rules: rule sets, or the single `auto`.
      task: `train`, `eval` or `function`.
      strict: raise where a primitive has no rule or a rule could be applied only in part.
      memory_limit_bytes: bytes that one device may hold, or None.
      pins: pairs (named dimension, mesh axis) that passes ask for; the axes serve nothing else.
    """

    rules: tuple[RuleSet, ...] = (rule_sets.AUTO,)
    task: str = "train"
    strict: bool = False
    memory_limit_bytes: int | None = None
    pins: tuple[tuple[str, str], ...] = ()


def examine(program: Program) -> Subject:
    """Analyse a forward program: named dimensions, structure, names."""
    analysis = analyse(program)
    structure = find_structure(analysis)
    return Subject(analysis, structure, name_dims(analysis, structure))


def make(
    program: Program, target: Target, wishes: Wishes, optimizer_bytes: Callable[[Layout], int]
) -> Plan:
    """Plan a program for a target.

    Args:
      program: the forward program.
      target: machine and mesh shapes.
      wishes: what the user asked for.
      optimizer_bytes: bytes of optimizer state a device under a layout.

    Raises:
      RuleError, BatchError, PlanError: no layout is possible.
      UnmodelledError: strict, and a primitive has no sharding rule.
    """
    subject = examine(program)
    _check_modelled(subject.analysis, wishes.strict)
    trains = wishes.task == "train"
    costed = analyse(*gradient_program(program)) if trains else subject.analysis
    question = Question(
        subject=subject,
        costed=costed,
        shapes=target.shapes,
        rules=wishes.rules,
        trains=trains,
        optimizer_bytes=optimizer_bytes,
        memory_limit_bytes=wishes.memory_limit_bytes,
        platform=target.topology.platform,
        pins=wishes.pins,
    )
    answer = search(question)
    if wishes.strict and answer.layout.notes:
        raise RuleError(answer.layout.notes[0])
    plan = make_plan(
        subject.analysis,
        answer.layout,
        answer.cost,
        wishes.task,
        str(target.topology),
        answer.alternatives,
    )
    _validate(plan, program)
    return plan


def check(plan: Plan, program: Program, target: Target, task: str) -> None:
    """Check a plan that was made earlier against a program and a target.

    Raises:
      PlanError: it was made for another task, mesh or program, or is not valid.
    """
    plan.check_task(task)
    plan.check_mesh(target.shapes)
    plan.check_program(identify(analyse(program)), program.inputs)
    _validate(plan, program)


def _validate(plan: Plan, program: Program) -> None:
    shape = plan.mesh.shape
    validate(plan, program.inputs, shape.by_name)


def _check_modelled(analysis: Analysis, strict: bool) -> None:
    if strict and analysis.unmodelled:
        listed = ", ".join(f"{name} ({count}x)" for name, count in analysis.unmodelled.items())
        raise UnmodelledError(
            f"{analysis.program.name} uses primitives that have no sharding rule: {listed}. "
            "Without strict=True they are treated as if they needed whole arrays; to model one, "
            "add its factor rule to autoshard.sharding_rules.TABLE"
        )
