"""Named dimensions: which dimensions of which arrays are the same thing.

Union-find over all factor maps of the program gives classes of atoms. A layout is then a few
choices of "mesh axis -> class" instead of one choice an operation (the idea of TOAST, 2025).
Classes that the same part of the architecture repeats in every layer share a name;
`autoshard.dim_names` finds the names.

Arrays that depend on no parameter and no batch (iotas, causal masks, dropout bits) are cut out:
they are cheap to make in any layout, and a mask shared by all layers would tie their choices into
one.
"""

import dataclasses
import enum
import functools
from collections.abc import Sequence

from autoshard import graph as graphs
from autoshard.atoms import Atoms, Dim
from autoshard.factors import OpRule
from autoshard.graph import OpGraph
from autoshard.sharding_rules import rule_for
from passes.program import Program, Role


class Source(enum.IntFlag):
    """What a value is computed from."""

    NOTHING = 0
    PARAMETER = 1
    BATCH = 2  # or what was kept of batches before: a cache


ValueDims = tuple[Dim, ...]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The classes found in a graph.

    Attributes:
      program: what was analysed.
      graph: its flat form.
      rules: one factor map an operation, in the order of `graph.ops`.
      sources: for each value, what it is computed from.
      dims: for each value, for each dimension, its atoms, major to minor.
      sizes: size of each atom.
      majors: for each atom, those that stand before it in some dimension. It can only be sharded
        without communication where those are sharded fully.
      conflicts: values in which one atom occurs twice.
      unmodelled: names of primitives that have no rule, with how often they occur.
    """

    program: Program
    graph: OpGraph
    rules: tuple[OpRule, ...]
    sources: tuple[Source, ...]
    dims: tuple[ValueDims, ...]
    sizes: dict[int, int]
    majors: dict[int, frozenset[int]]
    conflicts: tuple[int, ...]
    unmodelled: dict[str, int]

    def leaf_dims(self, position: int) -> ValueDims:
        """Dimensions of the program's input at `position`."""
        return self.dims[self.graph.inputs[position]]

    def factor_dims(self, op_index: int) -> tuple[Dim, ...]:
        """For each factor of an operation, the atoms that it stands for (empty if not derived)."""
        return self._bound[op_index]

    @functools.cached_property
    def _bound(self) -> tuple[tuple[Dim, ...], ...]:
        # Layouts by the hundred are costed on one analysis.
        return tuple(self._bind_factors(index) for index in range(len(self.rules)))

    def _bind_factors(self, op_index: int) -> tuple[Dim, ...]:
        op, rule = self.graph.ops[op_index], self.rules[op_index]
        bound: list[Dim] = [()] * len(rule.factors)
        arrays = zip((*op.inputs, *op.outputs), (*rule.operands, *rule.results), strict=True)
        for value, dims in arrays:
            if not self.sources[value]:  # its dimensions are its own, whatever the rule says
                continue
            for dim, factors in zip(self.dims[value], dims, strict=True):
                _bind(bound, rule, dim, factors, self.sizes)
        return tuple(bound)


def _bind(bound: list[Dim], rule: OpRule, dim: Dim, factors: Dim, sizes: dict[int, int]) -> None:
    """Deal a dimension's atoms out to its factors, as far as they line up."""
    rest = list(dim)
    for factor in factors:
        taken: list[int] = []
        product = 1
        while rest and product < rule.factors[factor].size:
            taken.append(rest.pop(0))
            product *= sizes[taken[-1]]
        if product != rule.factors[factor].size:
            return
        if not bound[factor]:
            bound[factor] = tuple(taken)


_SOURCE_OF_ROLE = {
    Role.PARAMETER: Source.PARAMETER,
    Role.MODEL_STATE: Source.PARAMETER,
    Role.OPTIMIZER: Source.PARAMETER,
    Role.BATCH: Source.BATCH,
    Role.CACHE: Source.BATCH,
    Role.RNG: Source.NOTHING,
    Role.CONSTANT: Source.NOTHING,
}


def _sources(program: Program, graph: OpGraph) -> list[Source]:
    """Forward data flow to a fixed point (loop carries feed back through their ties)."""
    sources = [Source.NOTHING] * len(graph.values)
    for leaf, value in zip(program.inputs, graph.inputs, strict=True):
        sources[value] |= _SOURCE_OF_ROLE[leaf.role]
    changed = True
    while changed:
        changed = False
        for op in graph.ops:
            joined = Source.NOTHING
            for value in op.inputs:
                joined |= sources[value]
            targets = op.inputs if op.primitive == graphs.TIE else op.outputs
            for value in targets:
                if sources[value] | joined != sources[value]:
                    sources[value] |= joined
                    changed = changed or op.primitive == graphs.TIE
    return sources


class _Solver:
    def __init__(self, graph: OpGraph, sources: Sequence[Source]) -> None:
        self.graph = graph
        self.sources = sources
        self.atoms = Atoms()
        self.dims: list[ValueDims | None] = [None] * len(graph.values)

    def value_dims(self, value: int) -> ValueDims:
        known = self.dims[value]
        if known is None:
            known = tuple(self.atoms.new(size) for size in self.graph.shape(value))
            self.dims[value] = known
        return known

    def apply(self, inputs: Sequence[int], outputs: Sequence[int], rule: OpRule) -> None:
        """Unify every dimension with the factors that the rule gives it."""
        bound: list[Dim | None] = [None] * len(rule.factors)
        for value, dims in zip(inputs, rule.operands, strict=True):
            if self.sources[value]:
                for dim, factors in zip(self.value_dims(value), dims, strict=True):
                    self._unify(rule, bound, dim, factors)
        for value, dims in zip(outputs, rule.results, strict=True):
            if self.dims[value] is None and self.sources[value]:
                self.dims[value] = tuple(self._product(rule, bound, f) for f in dims)
            elif self.sources[value]:
                for dim, factors in zip(self.value_dims(value), dims, strict=True):
                    self._unify(rule, bound, dim, factors)

    def _unify(self, rule: OpRule, bound: list[Dim | None], dim: Dim, factors: Dim) -> None:
        if len(factors) == 1 and bound[factors[0]] is None:
            bound[factors[0]] = dim
        elif factors:
            self.atoms.unify(dim, self._product(rule, bound, factors))

    def _product(self, rule: OpRule, bound: list[Dim | None], factors: Dim) -> Dim:
        result: Dim = ()
        for factor in factors:
            atoms = bound[factor]
            if atoms is None:
                atoms = bound[factor] = self.atoms.new(rule.factors[factor].size)
            result += atoms
        return result


def analyse(program: Program, ties: Sequence[tuple[int, int]] = ()) -> Analysis:
    """Find the named dimensions of a program.

    Args:
      program: forward or gradient program.
      ties: (output, input) positions laid out alike; see `build_graph`. The gradient of an
        embedding needs it: its scatter starts from fresh zeros.
    """
    graph = graphs.build_graph(program, ties)
    sources = _sources(program, graph)
    solver = _Solver(graph, sources)
    for value in graph.inputs:
        solver.value_dims(value)
    rules = tuple(rule_for(op, graph) for op in graph.ops)
    unmodelled: dict[str, int] = {}
    for op, rule in zip(graph.ops, rules, strict=True):
        solver.apply(op.inputs, op.outputs, rule)
        if not rule.modelled:
            unmodelled[op.primitive] = unmodelled.get(op.primitive, 0) + 1
    return _finish(program, graph, rules, sources, solver, unmodelled)


def _finish(
    program: Program,
    graph: OpGraph,
    rules: tuple[OpRule, ...],
    sources: list[Source],
    solver: _Solver,
    unmodelled: dict[str, int],
) -> Analysis:
    expand = solver.atoms.expand
    dims = tuple(
        tuple(expand(dim) for dim in solver.value_dims(value)) for value in range(len(graph.values))
    )
    sizes: dict[int, int] = {}
    majors: dict[int, set[int]] = {}
    conflicts = []
    for value, value_dims in enumerate(dims):
        flat = [atom for dim in value_dims for atom in dim]
        for atom in flat:
            sizes.setdefault(atom, solver.atoms.size(atom))
        if not sources[value]:
            continue
        if len(set(flat)) < len(flat):
            conflicts.append(value)
        for dim in value_dims:
            for position, atom in enumerate(dim):
                majors.setdefault(atom, set()).update(dim[:position])
    return Analysis(
        program=program,
        graph=graph,
        rules=rules,
        sources=tuple(sources),
        dims=dims,
        sizes=sizes,
        majors={atom: frozenset(before) for atom, before in majors.items()},
        conflicts=tuple(conflicts),
        unmodelled=unmodelled,
    )
