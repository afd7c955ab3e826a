"""Anti-unification: what equal segments have in common, and where they differ.

Equations with equal keys stand side by side; what decides is where their operands come from. For
each operand, the same in every segment:

    inner      an equation of the same segment, at the same place
    carry      an equation of the segment before, at the same place; for the first, from outside
    invariant  one and the same value
    stacked    values that differ: parameters, literals, small values that are known before
    made       equal equations that depend on no parameter (a mask, random bits): made in the loop

A pattern that is none of these is no layer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from passes import ir

# Values of this size or less may be put in a stack though they are not parameters.
SMALL_BYTES = 1 << 16


class NotAlike(Exception):
    """Segments differ in more than a loop can express; says where."""


@dataclasses.dataclass(frozen=True)
class Inner:
    """Result `result` of equation `index` of the same segment."""

    index: int
    result: int


@dataclasses.dataclass(frozen=True)
class Carry:
    """The loop's carry of this number."""

    number: int


@dataclasses.dataclass(frozen=True)
class Invariant:
    """One value for all segments: a variable or a literal of the program."""

    atom: Any


@dataclasses.dataclass(frozen=True)
class Stacked:
    """The loop's stack of this number."""

    number: int


@dataclasses.dataclass(frozen=True)
class Made:
    """Result `result` of the loop's own equation `number`, which depends on no parameter."""

    number: int
    result: int


Ref = Inner | Carry | Invariant | Stacked | Made


@dataclasses.dataclass(frozen=True)
class Loop:
    """Equal segments as one loop.

    Attributes:
      eqns: the first segment's equations.
      refs: for each of them, where its operands come from.
      made: equations that depend on no parameter, each with where its operands come from; a loop's
        iteration runs those before `eqns`.
      carries: (initial variable, equation, result) of each carry.
      stacks: of each stack, the variable or literal for every segment.
      segments: all segments' equations.
    """

    eqns: tuple[ir.JaxprEqn, ...]
    refs: tuple[tuple[Ref, ...], ...]
    made: tuple[tuple[ir.JaxprEqn, tuple[Ref, ...]], ...]
    carries: tuple[tuple[Any, int, int], ...]
    stacks: tuple[tuple[Any, ...], ...]
    segments: tuple[tuple[ir.JaxprEqn, ...], ...]


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What surrounds the segments.

    Attributes:
      maker: the equation that makes a variable, of those that depend on no parameter.
      parameters: the variables of the program's parameters.
      inputs: all inputs of the program.
      key: number of an equation's key.
    """

    maker: dict[Any, ir.JaxprEqn]
    parameters: frozenset[ir.Var]
    inputs: frozenset[ir.Var]
    key: Any


def unify(segments: Sequence[Sequence[ir.JaxprEqn]], around: Surroundings) -> Loop:
    """One loop that does what segments do.

    Raises:
      NotAlike: they differ in more than a loop can express.
    """
    return _Unifier(segments, around).run()


class _Unifier:
    def __init__(self, segments: Sequence[Sequence[ir.JaxprEqn]], around: Surroundings) -> None:
        self.segments = segments
        self.around = around
        self.place: dict[Any, tuple[int, int, int]] = {
            var: (k, index, result)
            for k, segment in enumerate(segments)
            for index, eqn in enumerate(segment)
            for result, var in enumerate(eqn.outvars)
        }
        self.carries: dict[tuple[Any, int, int], int] = {}
        self.stacks: list[tuple[Any, ...]] = []
        self.made: list[tuple[ir.JaxprEqn, tuple[Ref, ...]]] = []
        self.known: dict[tuple[Any, ...], Ref] = {}

    def run(self) -> Loop:
        refs = []
        for index, eqn in enumerate(self.segments[0]):
            rows = zip(*(segment[index].invars for segment in self.segments), strict=True)
            refs.append(tuple(self._ref(atoms, eqn) for atoms in rows))
        return _pruned(
            Loop(
                tuple(self.segments[0]),
                tuple(refs),
                tuple(self.made),
                tuple(self.carries),
                tuple(self.stacks),
                tuple(tuple(segment) for segment in self.segments),
            )
        )

    def _ref(self, atoms: tuple[Any, ...], eqn: ir.JaxprEqn) -> Ref:
        if all(ir.is_literal(x) for x in atoms):
            return self._literals(atoms)
        if any(ir.is_literal(x) for x in atoms):
            raise NotAlike(f"an operand of {ir.described(eqn)} is a literal in some layers only")
        found = self.known.get(atoms)
        if found is None:
            found = self._variables(atoms, eqn)
            self.known[atoms] = found
        return found

    def _literals(self, atoms: tuple[Any, ...]) -> Ref:
        values = [np.asarray(x.val) for x in atoms]
        if all(np.array_equal(values[0], v, equal_nan=v.dtype.kind == "f") for v in values[1:]):
            return Invariant(atoms[0])
        return self._stack(atoms)

    def _variables(self, atoms: tuple[Any, ...], eqn: ir.JaxprEqn) -> Ref:
        places = [self.place.get(x) for x in atoms]
        if all(p is not None for p in places) and self._is_inner(places):
            return Inner(*places[0][1:])  # type: ignore[index]
        if places[-1] is not None:
            return self._carry(atoms, places, eqn)
        if all(x is atoms[0] for x in atoms):
            return Invariant(atoms[0])
        if any(p is not None for p in places):
            raise NotAlike(f"{ir.described(eqn)} reads a layer in some layers, and none in others")
        return self._outside(atoms, eqn)

    def _is_inner(self, places: Sequence[Any]) -> bool:
        return all(p[0] == k and p[1:] == places[0][1:] for k, p in enumerate(places))

    def _carry(self, atoms: tuple[Any, ...], places: Sequence[Any], eqn: ir.JaxprEqn) -> Ref:
        index, result = places[-1][1:]
        expected = [(k - 1, index, result) for k in range(1, len(atoms))]
        if list(places[1:]) != expected or places[0] is not None:
            raise NotAlike(f"{ir.described(eqn)} reads other layers than the one before")
        if str(atoms[0].aval) != str(atoms[1].aval):
            raise NotAlike(
                f"{ir.described(eqn)} gets {atoms[0].aval} in the first layer and {atoms[1].aval} "
                "in the second"
            )
        key = (atoms[0], index, result)
        return Carry(self.carries.setdefault(key, len(self.carries)))

    def _outside(self, atoms: tuple[Any, ...], eqn: ir.JaxprEqn) -> Ref:
        if len({str(x.aval) for x in atoms}) > 1:
            raise NotAlike(f"an operand of {ir.described(eqn)} has another shape or type by layer")
        makers = [self.around.maker.get(x) for x in atoms]
        if all(m is not None for m in makers):
            try:
                return self._made_in_loop(atoms, makers)  # type: ignore[arg-type]
            except NotAlike:
                pass
        if all(x in self.around.parameters for x in atoms):
            return self._stack(atoms)
        free = all(x in self.around.inputs or x in self.around.maker for x in atoms)
        if free and _bytes(atoms[0]) <= SMALL_BYTES:
            return self._stack(atoms)
        raise NotAlike(f"{ir.described(eqn)} reads values that come from elsewhere by layer")

    def _made_in_loop(self, atoms: tuple[Any, ...], makers: Sequence[ir.JaxprEqn]) -> Ref:
        results = {
            next(i for i, v in enumerate(m.outvars) if v is x)
            for m, x in zip(makers, atoms, strict=True)
        }
        if len(results) > 1 or len({self.around.key(m) for m in makers}) > 1:
            raise NotAlike("made by different equations")
        rows = zip(*(m.invars for m in makers), strict=True)
        refs = tuple(self._ref(row, makers[0]) for row in rows)
        result = results.pop()
        if all(isinstance(ref, Invariant) for ref in refs):
            return Invariant(atoms[0])
        eqns = (makers[0], refs)
        for number, known in enumerate(self.made):
            if known[0] is makers[0] and known[1] == refs:
                return Made(number, result)
        self.made.append(eqns)
        return Made(len(self.made) - 1, result)

    def _stack(self, atoms: tuple[Any, ...]) -> Ref:
        for number, known in enumerate(self.stacks):
            if all(x is y for x, y in zip(known, atoms, strict=True)):
                return Stacked(number)
        self.stacks.append(atoms)
        return Stacked(len(self.stacks) - 1)


def _pruned(loop: Loop) -> Loop:
    """Without what was found on the way to a way that did not work out."""
    made, stacks = set(), set()
    waiting = [ref for refs in loop.refs for ref in refs]
    while waiting:
        ref = waiting.pop()
        if isinstance(ref, Stacked):
            stacks.add(ref.number)
        elif isinstance(ref, Made) and ref.number not in made:
            made.add(ref.number)
            waiting.extend(loop.made[ref.number][1])
    new_made = {old: new for new, old in enumerate(sorted(made))}
    new_stack = {old: new for new, old in enumerate(sorted(stacks))}

    def renamed(refs: tuple[Ref, ...]) -> tuple[Ref, ...]:
        return tuple(
            Stacked(new_stack[ref.number])
            if isinstance(ref, Stacked)
            else Made(new_made[ref.number], ref.result)
            if isinstance(ref, Made)
            else ref
            for ref in refs
        )

    return dataclasses.replace(
        loop,
        refs=tuple(renamed(refs) for refs in loop.refs),
        made=tuple((loop.made[i][0], renamed(loop.made[i][1])) for i in sorted(made)),
        stacks=tuple(loop.stacks[i] for i in sorted(stacks)),
    )


def _bytes(atom: Any) -> int:
    return int(np.prod(atom.aval.shape, dtype=np.int64)) * 8
