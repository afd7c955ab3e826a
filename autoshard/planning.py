"""From a traced program and the user's wishes to a plan."""

import dataclasses
from collections.abc import Callable, Iterator

from autoshard import rule_sets
from autoshard.costly_places import costly_places
from autoshard.dim_names import name_dims
from autoshard.errors import RuleError, UnmodelledError
from autoshard.layouts import Layout
from autoshard.mesh_shape import MeshShape
from autoshard.named_dims import Analysis, analyse
from autoshard.plan import Plan, identify, make_plan
from autoshard.rule_sets.base import RuleSet, Subject
from autoshard.search import Answer, Question, SearchOptions, search
from autoshard.search.alternatives import alternatives
from autoshard.search.chosen_passes import passes_of
from autoshard.search.pipelines import possible_stages
from autoshard.search.space import open_shapes
from autoshard.search.variants import Variants
from autoshard.structure import find_structure
from autoshard.target import Target
from autoshard.validate import validate
from memory_planner.mapper import Budget
from passes.pass_pipeline import Pass
from passes.program import Program

_MOST_CANDIDATES = 16
_VERIFIED = 4  # layouts that are compiled where the user gives no number


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the user asked of the planner.

    Attributes:
      rules: rule sets, or the single `auto`.
      task: `train`, `eval` or `function`.
      strict: raise where a primitive has no rule or a rule could be applied only in part.
      memory_limit_bytes: bytes that one device may hold, or None.
      pins: pairs (named dimension, mesh axis) that passes ask for; the axes serve nothing else.
      options: how far the search goes.
      memory_mapping: what to spend on a better memory mapping; None for nothing.
    """

    rules: tuple[RuleSet, ...] = (rule_sets.AUTO,)
    task: str = "train"
    strict: bool = False
    memory_limit_bytes: int | None = None
    pins: tuple[tuple[str, str], ...] = ()
    options: SearchOptions = dataclasses.field(default_factory=SearchOptions)
    memory_mapping: Budget | None = None

    def without_memory_mapping(self) -> "Wishes":
        """The same for a trial, which is compiled as it is."""
        return dataclasses.replace(self, memory_mapping=None)

    def limit_bytes(self, target: Target) -> int | None:
        """What a device may hold by the estimate.

        The chip's memory bounds what the planner chooses. Rules of the user's own are obeyed in any
        case, and the compiler says whether they fit.
        """
        if self.memory_limit_bytes is not None or rule_sets.AUTO not in self.rules:
            return self.memory_limit_bytes
        return target.memory_bytes

    def corrected(self, ratio: float, chip_bytes: int | None) -> "Wishes":
        """The same where memory is compiled at `ratio` times its estimate."""
        limit = self.memory_limit_bytes or chip_bytes
        if limit is None or ratio == 1:
            return self
        return dataclasses.replace(self, memory_limit_bytes=int(limit / ratio))

    def compiled_layouts(self, target: Target) -> int:
        """How many layouts are compiled before one is chosen."""
        if rule_sets.AUTO not in self.rules or not target.compiles_elsewhere:
            return 0
        verify = self.options.verify
        return _VERIFIED if verify is None else verify


def examine(program: Program) -> Subject:
    """Analyse a forward program: named dimensions, structure, names."""
    analysis = analyse(program)
    structure = find_structure(analysis)
    return Subject(analysis, structure, name_dims(analysis, structure))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layout that could be the plan.

    Attributes:
      plan: the plan, with estimates.
      passes: what the search adds to the user's passes after planning.
    """

    plan: Plan
    passes: tuple[Pass, ...]


def make(
    program: Program, target: Target, wishes: Wishes, optimizer_bytes: Callable[[Layout], int]
) -> Iterator[Candidate]:
    """Plan a program for a target.

    Args:
      program: the forward program.
      target: machine and mesh shapes.
      wishes: what the user asked for.
      optimizer_bytes: bytes of optimizer state a device under a layout.

    Returns:
      Candidates, the best by the estimate first.

    Raises:
      RuleError, BatchError, PlanError: no layout is possible.
      UnmodelledError: strict, and a primitive has no sharding rule.
    """
    subject = examine(program)
    _check_modelled(subject.analysis, wishes.strict)
    trains = wishes.task == "train"
    question = Question(
        subject=subject,
        variants=Variants(program, trains, target.topology.platform),
        shapes=mesh_shapes(target, subject, wishes),
        rules=wishes.rules,
        optimizer_bytes=optimizer_bytes,
        machine=target.planning_machine,
        options=wishes.options,
        memory_limit_bytes=wishes.limit_bytes(target),
        pins=wishes.pins,
    )
    answer = search(question)
    if wishes.strict and answer.best.layout is not None and answer.best.layout.notes:
        raise RuleError(answer.best.layout.notes[0])
    return _candidates(subject, answer, wishes, target)


def _candidates(
    subject: Subject, answer: Answer, wishes: Wishes, target: Target
) -> Iterator[Candidate]:
    identity = identify(subject.analysis)
    for one in answer.finalists(_MOST_CANDIDATES):
        assert one.layout is not None and one.cost is not None
        layout = dataclasses.replace(
            one.layout,
            notes=one.layout.notes + costly_places(subject, one.layout) + answer.notes,
        )
        plan = make_plan(
            subject.analysis,
            layout,
            one.cost,
            wishes.task,
            str(target.topology),
            alternatives(answer, one),
            identity,
            answer.record_for(one),
        )
        _validate(plan, subject.analysis.program)
        yield Candidate(plan, passes_of(one.decision))


def mesh_shapes(target: Target, subject: Subject, wishes: Wishes) -> tuple[MeshShape, ...]:
    """The meshes to choose from.

    An open mesh gets an axis `expert` where the program has experts, and `fsdp` beside `data`, for
    storage that is sharded inside a slice or a host and replicated across, where the machine has
    such levels; and `stage`, where passes are to be chosen and the layers are one chain.
    """
    if not target.is_open:
        return target.shapes
    topology = target.topology
    axes = ["model"]
    if subject.names.find("experts") is not None:
        axes.insert(0, "expert")
    if topology.slices > 1 or (topology.platform == "gpu" and len(topology.shape) > 1):
        axes.insert(0, "fsdp")
    options = wishes.options
    pipelines = options.choose_passes and wishes.task == "train" and not wishes.pins
    stages = possible_stages(subject) if pipelines else ()
    return open_shapes(topology.device_count, topology.slices, axes, options.forbid, stages)


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
