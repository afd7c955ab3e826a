"""Puts a loop in the place of its segments."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from passes import ir
from passes.stacking.unify import Carry, Inner, Invariant, Loop, Made, Ref, Stacked


@dataclasses.dataclass(frozen=True)
class Rolled:
    """A program with a loop.

    Attributes:
      jaxpr: the program. Its inputs are those of the old one that remain, in their order, and then
        the stacks.
      kept: positions, among the old inputs, of those that remain.
      stacked: for each stack, positions of the old inputs that it is made of.
    """

    jaxpr: ir.ClosedJaxpr
    kept: tuple[int, ...]
    stacked: tuple[tuple[int, ...], ...]


def roll(program: ir.ClosedJaxpr, loop: Loop, parameters: Sequence[ir.Var], remat: bool) -> Rolled:
    """Replace segments of a flat program by a scan over stacks of what differs between them.

    Parameters that only the segments read become stacks among the program's inputs; others are
    stacked in the program.

    Args:
      program: flat.
      loop: found in it.
      parameters: variables of its parameters.
      remat: whether the loop keeps nothing of an iteration but its carries for the backward pass.
    """
    jaxpr, consts = ir.closed(program)
    shape = _Shape(jaxpr, loop)
    position = {var: i for i, var in enumerate(jaxpr.invars)}
    shared = shape.read_outside | _read_twice(loop)
    own = {
        number: tuple(position[x] for x in stack)
        for number, stack in enumerate(loop.stacks)
        if all(not ir.is_literal(x) and x in set(parameters) and x not in shared for x in stack)
    }
    taken = {i for places in own.values() for i in places}
    kept = tuple(i for i in range(len(jaxpr.invars)) if i not in taken)

    def function(*inputs: Any) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update((jaxpr.invars[i], x) for i, x in zip(kept, inputs[: len(kept)], strict=True))
        given = dict(zip(own, inputs[len(kept) :], strict=True))
        _run(jaxpr, shape.before, env)
        stacks = [
            given[number] if number in given else jnp.stack([_array(env, x) for x in stack])
            for number, stack in enumerate(loop.stacks)
        ]
        env.update(_loop(jaxpr, loop, shape, env, stacks, remat))
        _run(jaxpr, shape.after, env)
        return [ir.read(env, x) for x in jaxpr.outvars]

    specs = [ir.spec(jaxpr.invars[i]) for i in kept]
    count = len(loop.segments)
    for places in own.values():
        one = ir.spec(jaxpr.invars[places[0]])
        specs.append(jax.ShapeDtypeStruct((count, *one.shape), one.dtype))
    made = jax.make_jaxpr(function)(*specs)
    # What each layer made for itself of no parameter, the loop makes once or in its body.
    alive = ir.ClosedJaxpr(ir.live(made.jaxpr), made.consts)
    return Rolled(alive, kept, tuple(own.values()))


class _Shape:
    """What stands before and after the loop, and what it must hand out."""

    def __init__(self, jaxpr: ir.Jaxpr, loop: Loop) -> None:
        inside = {id(eqn) for segment in loop.segments for eqn in segment}
        made_by = {
            var: (k, index, result)
            for k, segment in enumerate(loop.segments)
            for index, eqn in enumerate(segment)
            for result, var in enumerate(eqn.outvars)
        }
        depends = set(made_by)
        self.before: list[ir.JaxprEqn] = []
        self.after: list[ir.JaxprEqn] = []
        for eqn in jaxpr.eqns:
            if id(eqn) in inside:
                continue
            late = any(not ir.is_literal(x) and x in depends for x in eqn.invars)
            (self.after if late else self.before).append(eqn)
            if late:
                depends.update(eqn.outvars)
        read = [x for eqn in self.after for x in eqn.invars] + list(jaxpr.outvars)
        outside = [x for eqn in (*self.before, *self.after) for x in eqn.invars]
        self.read_outside = {x for x in (*outside, *jaxpr.outvars) if not ir.is_literal(x)}
        wanted = dict.fromkeys(x for x in read if not ir.is_literal(x) and x in made_by)
        last = len(loop.segments) - 1
        handed = {(index, result): n for n, (_, index, result) in enumerate(loop.carries)}
        self.finals: dict[Any, int] = {}  # variable after the loop -> carry
        self.extra: list[tuple[int, int]] = []  # results that only the last iteration hands out
        self.taps: dict[tuple[int, int], list[tuple[int, Any]]] = {}
        early = {made_by[x][1:] for x in wanted if made_by[x][0] != last}
        for var in wanted:
            k, *place = made_by[var]
            key = (place[0], place[1])
            if key in early:
                self.taps.setdefault(key, []).append((k, var))
            elif key in handed:
                self.finals[var] = handed[key]
            else:
                handed[key] = len(loop.carries) + len(self.extra)
                self.finals[var] = handed[key]
                self.extra.append(key)


def _read_twice(loop: Loop) -> set[ir.Var]:
    """Variables in more than one stack, or twice in one, or of all iterations alike."""
    seen: set[ir.Var] = set()
    twice: set[ir.Var] = set()
    invariants = [
        ref.atom
        for refs in (*loop.refs, *(refs for _, refs in loop.made))
        for ref in refs
        if isinstance(ref, Invariant)
    ]
    initial = [init for init, _, _ in loop.carries]
    for x in (*(x for stack in loop.stacks for x in stack), *invariants, *initial):
        if not ir.is_literal(x):
            (twice if x in seen else seen).add(x)
    return twice


def _loop(
    jaxpr: ir.Jaxpr,
    loop: Loop,
    shape: _Shape,
    env: dict[Any, Any],
    stacks: Sequence[Any],
    remat: bool,
) -> dict[Any, Any]:
    """The values after the loop of the variables that are read there."""
    taps = list(shape.taps)

    def body(carry: Sequence[Any], slices: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        results = _iteration(jaxpr, loop, env, carry, slices)
        kept = [results[index][result] for _, index, result in loop.carries]
        kept += [results[index][result] for index, result in shape.extra]
        return kept, [results[index][result] for index, result in taps]

    again = remat and not any(e.primitive.name in ir.CHECKPOINTS for e in loop.eqns)
    once = jax.checkpoint(body, prevent_cse=False) if again else body
    initial = [ir.read(env, init) for init, _, _ in loop.carries]
    for index, result in shape.extra:
        like = ir.spec(loop.eqns[index].outvars[result])
        initial.append(jnp.zeros(like.shape, like.dtype))
    with jax.named_scope("layers"):
        finals, ys = jax.lax.scan(once, initial, list(stacks), length=len(loop.segments))
    found = {var: finals[number] for var, number in shape.finals.items()}
    for key, stack in zip(taps, ys, strict=True):
        found.update((var, stack[k]) for k, var in shape.taps[key])
    return found


def _iteration(
    jaxpr: ir.Jaxpr,
    loop: Loop,
    env: dict[Any, Any],
    carry: Sequence[Any],
    slices: Sequence[Any],
) -> list[list[Any]]:
    """The results of each equation of a segment, given the carries and the slices of the stacks."""
    made: list[list[Any]] = []
    results: list[list[Any]] = []

    def value(ref: Ref) -> Any:
        match ref:
            case Inner(index, result):
                return results[index][result]
            case Carry(number):
                return carry[number]
            case Stacked(number):
                return slices[number]
            case Made(number, result):
                return made[number][result]
            case Invariant(atom):
                return ir.read(env, atom)

    for eqn, refs in loop.made:
        made.append(ir.alone(eqn)(*(value(ref) for ref in refs)))
    for eqn, refs in zip(loop.eqns, loop.refs, strict=True):
        results.append(ir.alone(eqn)(*(value(ref) for ref in refs)))
    return results


def _array(env: dict[Any, Any], atom: Any) -> Any:
    """A value to be stacked: a literal in the type that the program has it in."""
    return jnp.asarray(atom.val, ir.spec(atom).dtype) if ir.is_literal(atom) else env[atom]


def _run(jaxpr: ir.Jaxpr, eqns: Sequence[ir.JaxprEqn], env: dict[Any, Any]) -> None:
    """Evaluate equations and add their results to `env`."""
    if not eqns:
        return
    makes = [x for eqn in eqns for x in eqn.outvars if not ir.is_dropped(x)]
    made = set(makes)
    reads: list[Any] = list(
        dict.fromkeys(x for e in eqns for x in e.invars if not ir.is_literal(x) and x not in made)
    )
    env.update(
        zip(makes, ir.part(jaxpr, eqns, reads, makes)(*(env[x] for x in reads)), strict=True)
    )
