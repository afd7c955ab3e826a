"""Choosing a layout: candidates, their estimated cost, the cheapest that fits.

Today's space is combinations of rule sets on the mesh's axes (and, when the mesh is left open, its
`data x model` shapes). The word `auto` stays when a wider search takes over.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from autoshard.compiler_faults import check_grouped_convolutions
from autoshard.cost import CostReport, estimate
from autoshard.costly_places import costly_places
from autoshard.errors import AutoshardError, BatchError, PlanError, RuleError
from autoshard.layouts import Layout, lay_out
from autoshard.memory import StateBytes
from autoshard.memory_buffers import Buffer, find_buffers
from autoshard.mesh_shape import MeshShape
from autoshard.named_dims import Analysis
from autoshard.plan import Alternative
from autoshard.program_flow import ProgramFlow, program_flow
from autoshard.rule_sets import AUTO, RuleSet, data, dims, logical, redco, zero
from autoshard.rule_sets.base import TENSOR_AXIS_NAMES, Subject, check_axis, is_data_axis

Candidate = tuple[MeshShape, tuple[RuleSet, ...]]


@dataclasses.dataclass(frozen=True)
class Question:
    """What is to be laid out.

    Attributes:
      subject: the analysed forward program.
      costed: analysis of the program whose cost counts (the gradient program when training).
      shapes: mesh shapes to choose from.
      rules: the user's rule sets, or `(AUTO,)`.
      trains: whether the program trains.
      optimizer_bytes: optimizer bytes a device under a layout.
      memory_limit_bytes: bytes that one device may hold, or None.
      platform: of the target.
      pins: pairs (named dimension, mesh axis) that passes ask for; the axes serve nothing else.
    """

    subject: Subject
    costed: Analysis
    shapes: tuple[MeshShape, ...]
    rules: tuple[RuleSet, ...]
    trains: bool
    optimizer_bytes: Callable[[Layout], int]
    memory_limit_bytes: int | None = None
    platform: str = "cpu"
    pins: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def flow(self) -> ProgramFlow:
        """Where values of the costed program come from and go to."""
        return program_flow(self.costed)

    @functools.cached_property
    def buffers(self) -> tuple[Buffer, ...]:
        """What the costed program holds in memory."""
        return find_buffers(self.costed, self.flow, makes_again=self.platform != "cpu")


@dataclasses.dataclass(frozen=True)
class Answer:
    """The layout chosen, its cost, and what else was considered, best first."""

    layout: Layout
    cost: CostReport
    alternatives: tuple[Alternative, ...]


@dataclasses.dataclass(frozen=True)
class _Costed:
    shape: MeshShape
    rules: tuple[str, ...]
    layout: Layout | None
    cost: CostReport | None
    error: AutoshardError | None = None


def _tensor_axes(question: Question, shape: MeshShape) -> list[str]:
    """Axes that `auto` may use for tensor parallelism: by name, else those not for data."""
    pinned = {axis for _, axis in question.pins}
    wide = [n for n, s in zip(shape.names, shape.sizes, strict=True) if s > 1 and n not in pinned]
    named = [n for n in wide if n.lower() in TENSOR_AXIS_NAMES]
    return named or [n for n in wide if not is_data_axis(n)]


def _combinations(question: Question, shape: MeshShape) -> Iterator[tuple[RuleSet, ...]]:
    open_mesh = len(question.shapes) > 1
    zeros: list[tuple[RuleSet, ...]] = (
        [(), (zero(1),), (zero(2),), (zero(3),)] if question.trains else [()]
    )
    axes = _tensor_axes(question, shape)
    if not (open_mesh and axes):  # on an open mesh this is the same as the shape with model=1
        for stage in zeros:
            yield stage or (data(),)
    for axis in axes:
        for stage in zeros:
            yield (*stage, redco(axis))
    if any(leaf.metadata for leaf in question.subject.analysis.program.inputs):
        for stage in zeros:
            yield (*stage, logical())


def candidates(question: Question) -> list[Candidate]:
    """All layouts to be costed."""
    pinned = _pinned(question)
    if question.rules != (AUTO,):
        return [(shape, (*question.rules, *pinned)) for shape in question.shapes]
    return [
        (shape, (*rules, *pinned))
        for shape in question.shapes
        for rules in _combinations(question, shape)
    ]


def _pinned(question: Question) -> tuple[RuleSet, ...]:
    """The rule set of the passes' pins: of dimensions that the program has and that divide.

    The axes are reserved in any case: they shard neither the batch nor anything else.
    """
    if not question.pins:
        return ()
    names = question.subject.names

    def divides(dimension: str, axis: str) -> bool:
        found = names.find(dimension)
        return found is not None and all(
            size % shape.size(axis) == 0 for size in found.sizes for shape in question.shapes
        )

    for shape in question.shapes:
        for _, axis in question.pins:
            check_axis(shape, axis, "a pass")
    axes = frozenset(axis for _, axis in question.pins)
    rule = dims(*(pair for pair in question.pins if divides(*pair)))
    return (RuleSet(rule.name or "passes", rule.decide, axis_rules=rule.axis_rules, reserves=axes),)


def _cost(question: Question, shape: MeshShape, rules: Sequence[RuleSet]) -> _Costed:
    names = tuple(rule.name for rule in rules)
    try:
        layout = lay_out(question.subject, shape, rules)
        if question.trains:
            check_grouped_convolutions(question.subject.analysis, layout)
    except (RuleError, BatchError) as error:
        return _Costed(shape, names, None, None, error)
    layout = dataclasses.replace(
        layout, notes=layout.notes + costly_places(question.subject, layout)
    )
    state = StateBytes(question.optimizer_bytes(layout))
    cost = estimate(
        question.costed, layout, state, question.trains,
        flow=question.flow,
        buffers=question.buffers, platform=question.platform,
    )  # fmt: skip
    return _Costed(shape, names, layout, cost)


def search(question: Question) -> Answer:
    """Cost all candidates and take the cheapest that fits.

    Raises:
      RuleError, BatchError: no candidate is possible; the error of the first.
      PlanError: none fits the memory limit; the message names the least memory reached.
    """
    costed = [_cost(question, shape, rules) for shape, rules in candidates(question)]
    possible = [c for c in costed if c.cost is not None]
    if not possible:
        first = next(c.error for c in costed if c.error is not None)
        raise first
    limit = question.memory_limit_bytes
    ranked = sorted(possible, key=lambda c: c.cost.score_s if c.cost else 0.0)
    fitting = [
        c for c in ranked if limit is None or (c.cost and c.cost.memory.total_bytes <= limit)
    ]
    if not fitting:
        least = min(ranked, key=lambda c: c.cost.memory.total_bytes if c.cost else 0)
        assert least.cost is not None
        raise PlanError(
            f"no layout of {question.subject.analysis.program.name} fits {limit} bytes a device: "
            f"the least is an estimated {least.cost.memory.total_bytes} bytes with rules "
            f"{'+'.join(least.rules)} on mesh ({least.shape}): use more devices, a smaller batch, "
            "or a higher memory_limit_bytes"
        )
    best = fitting[0]
    assert best.layout is not None and best.cost is not None
    others = [*fitting, *(c for c in ranked if c not in fitting), *(c for c in costed if c.error)]
    rows = tuple(_alternative(c, best, limit) for c in others) if len(costed) > 1 else ()
    return Answer(best.layout, best.cost, rows)


def _alternative(costed: _Costed, best: _Costed, limit: int | None) -> Alternative:
    if costed.cost is None:
        verdict = f"impossible: {str(costed.error).split(':')[0]}"
        return Alternative(costed.rules, str(costed.shape), None, None, None, verdict)
    memory = costed.cost.memory.total_bytes
    fits = limit is None or memory <= limit
    verdict = "chosen" if costed is best else ("" if fits else "does not fit")
    return Alternative(
        costed.rules,
        str(costed.shape),
        costed.cost.score_s,
        memory,
        costed.cost.moved_bytes,
        verdict,
    )
