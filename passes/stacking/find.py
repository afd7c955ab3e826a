"""The largest loop in a flat program."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from passes import ir
from passes.stacking.keys import Keys
from passes.stacking.order import dependent, layer_order
from passes.stacking.repeats import Repeat, find_repeats
from passes.stacking.unify import Loop, NotAlike, Surroundings, unify

_TRIED_PERIODS = 8
_TRIED_ROTATIONS = 6
_HEAVY = frozenset({"dot_general", "conv_general_dilated", "ragged_dot"})


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
      loop: the loop that covers most equations; None where there is none.
      refusals: why stretches that looked like layers are none, in the order they were tried.
    """

    loop: Loop | None
    refusals: tuple[str, ...]


def find_loop(
    jaxpr: ir.Jaxpr,
    parameters: Sequence[ir.Var],
    data: Sequence[ir.Var],
    least: int,
    keys: Keys,
) -> Found:
    """Look for layers in a program without plain calls.

    Args:
      jaxpr: the program.
      parameters: variables of its parameters.
      data: variables of what the first layer may read directly, such as an image.
      least: layers that a loop must have.
      keys: of equations.
    """
    depends = dependent(jaxpr, (*parameters, *data))
    order = layer_order(jaxpr, depends)
    repeats = find_repeats([keys.number(eqn) for eqn in order], least)
    around = Surroundings(
        maker={
            var: eqn
            for eqn in jaxpr.eqns
            if not any(x in depends for x in eqn.outvars)
            for var in eqn.outvars
        },
        parameters=frozenset(parameters),
        inputs=frozenset((*jaxpr.invars, *jaxpr.constvars)),
        key=keys.number,
    )
    refusals: list[str] = []
    for repeat in repeats[:_TRIED_PERIODS]:
        for begin, count in _cuts(repeat, order, least):
            segments = [
                order[begin + k * repeat.period : begin + (k + 1) * repeat.period]
                for k in range(count)
            ]
            try:
                loop = unify(segments, around)
                _check_apart(jaxpr, loop)
            except NotAlike as error:
                refusals.append(f"{count} repeats of {repeat.period} equations: {error}")
                continue
            if _pays(loop):
                return Found(loop, tuple(refusals))
    return Found(None, tuple(refusals))


def _pays(loop: Loop) -> bool:
    """Whether a loop is a chain of layers: products of matrices, each after the one before.

    Products side by side (query, key and value of one layer) are alike, too, and better left so.
    """
    inside = (eqn for first in loop.eqns for eqn in _with_nested(first))
    return bool(loop.carries) and any(eqn.primitive.name in _HEAVY for eqn in inside)


def _with_nested(eqn: ir.JaxprEqn) -> Iterator[ir.JaxprEqn]:
    yield eqn
    for value in eqn.params.values():
        if isinstance(value, (ir.Jaxpr, ir.ClosedJaxpr)):
            yield from ir.equations(ir.closed(value)[0])


def _cuts(repeat: Repeat, order: Sequence[ir.JaxprEqn], least: int) -> Iterator[tuple[int, int]]:
    """(begin, count) of ways to cut segments: few live values at the cuts first, and then with the
    first or the last layer left out.
    """
    live = _live_bytes(repeat, order)
    rotations = sorted(range(repeat.period), key=lambda r: live[r])[:_TRIED_ROTATIONS]
    for drop in ((0, 0), (1, 0), (0, 1), (1, 1)):
        for rotation in rotations:
            begin = repeat.begin + rotation
            count = (repeat.end - begin) // repeat.period - sum(drop)
            if count >= least:
                yield begin + drop[0] * repeat.period, count


def _live_bytes(repeat: Repeat, order: Sequence[ir.JaxprEqn]) -> list[int]:
    """For each rotation, bytes that cross a cut in the middle of the stretch.

    In the middle, because what follows the last layer (a norm, a head) may look like a beginning of
    one more.
    """
    period = repeat.period
    middle = repeat.begin + (repeat.count // 2) * period
    made_at = {var: i for i, eqn in enumerate(order) for var in eqn.outvars}
    last_read: dict[Any, int] = {}
    for i, eqn in enumerate(order):
        for x in eqn.invars:
            if not ir.is_literal(x) and x in made_at:
                last_read[x] = i
    sizes = []
    for rotation in range(period):
        cut = middle + rotation
        crossing = [
            var for var, read in last_read.items() if repeat.begin <= made_at[var] < cut <= read
        ]
        sizes.append(sum(var.aval.size * var.aval.dtype.itemsize for var in crossing))
    return sizes


def _check_apart(jaxpr: ir.Jaxpr, loop: Loop) -> None:
    """Raises NotAlike if a layer reads something outside that is made of another layer."""
    inside = {id(eqn) for segment in loop.segments for eqn in segment}
    tainted: set[Any] = set()
    own = {var for segment in loop.segments for eqn in segment for var in eqn.outvars}
    for eqn in jaxpr.eqns:
        reads = [x for x in eqn.invars if not ir.is_literal(x)]
        if id(eqn) in inside:
            if any(x in tainted for x in reads):
                raise NotAlike("what one layer makes reaches another by a way outside the layers")
        elif any(x in own or x in tainted for x in reads):
            tainted.update(eqn.outvars)
