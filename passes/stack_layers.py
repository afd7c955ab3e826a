"""Unrolled layers become one loop over stacked parameters.

    x = layer(x, w0); x = layer(x, w1); ...   ->   scan(layer, x, stack of w)

Compile time stops growing with depth, and pipelines, rematerialisation and offload get a block to
work on. The layers are found in the flat program: equations are put in an order in which layers are
contiguous (`stacking.order`), tandem repeats of their keys propose layers (`stacking.repeats`), and
anti-unification decides (`stacking.unify`). A model may have several loops (encoder, decoder).

The stacks are inputs of the new program; `Leaf.parts` says which of the user's arrays they are
made of. A loop keeps what each iteration computes for the backward pass, where unrolled layers are
fused and freed; so a loop gets a remat policy with it.
"""

import collections
import dataclasses
import re
from typing import Literal

from passes import ir
from passes.errors import PassError
from passes.inline_calls import inline_calls
from passes.program import Leaf, Program, Role
from passes.stacking.find import find_loop
from passes.stacking.keys import Keys
from passes.stacking.lift_literals import lift_literals
from passes.stacking.roll import Rolled, roll
from passes.stacking.unify import Loop


@dataclasses.dataclass(frozen=True)
class StackLayers:
    """Rolls repeated layers.

    Attributes:
      least: layers that are worth a loop. Below four, unrolled code compiles about as fast.
      remat: `full`: a loop keeps its carries alone for the backward pass (a later `Remat` chooses
        anew); `none`: what the layers compute.
      required: raise where no layers are found, instead of leaving the program as it is.
    """

    least: int = 4
    remat: Literal["full", "none"] = "full"
    required: bool = False
    name: str = dataclasses.field(default="stack_layers", init=False, repr=False)

    def apply(self, program: Program) -> Program:
        """The program with loops.

        Raises:
          PassError: `required`, and there are no layers that can be rolled.
        """
        effects = _first_effect(program)
        if effects:
            return self._refused(program, f"it has effects whose order must stay ({effects})")
        flat = lift_literals(inline_calls(program.jaxpr))
        current = dataclasses.replace(
            program, jaxpr=ir.ClosedJaxpr(ir.live(flat.jaxpr), flat.consts)
        )
        keys, rolled, refusals = Keys(), 0, list[str]()
        while True:
            jaxpr, _ = ir.closed(current.jaxpr)
            parameters = [jaxpr.invars[i] for i in current.with_role(Role.PARAMETER)]
            data = [
                var
                for var, leaf in zip(jaxpr.invars, current.inputs, strict=True)
                if leaf.role is Role.BATCH and "float" in leaf.dtype
            ]
            found = find_loop(jaxpr, parameters, data, self.least, keys)
            refusals += found.refusals[:1]
            if found.loop is None:
                break
            result = roll(current.jaxpr, found.loop, parameters, self.remat == "full")
            current = _with_stacks(current, result).noting(_summary(found.loop, result))
            rolled += 1
        if not rolled:
            reason = refusals[0] if refusals else f"nothing repeats {self.least} times or more"
            return self._refused(program, reason)
        return current

    def _refused(self, program: Program, reason: str) -> Program:
        if self.required:
            raise PassError(
                f"no layers of {program.name} can be rolled: {reason}. Leave the pass out, or "
                "write the layers alike"
            )
        return program.noting(f"nothing rolled: {reason}")


def _first_effect(program: Program) -> str:
    for eqn in ir.equations(ir.closed(program.jaxpr)[0]):
        if eqn.effects and not ir.callee(eqn) and eqn.primitive.name not in ("scan", "while"):
            return ir.described(eqn)
    return ""


def _summary(loop: Loop, rolled: Rolled) -> str:
    inputs = sum(len(places) for places in rolled.stacked)
    inside = len(loop.stacks) - len(rolled.stacked)
    return (
        f"{len(loop.segments)} layers of {len(loop.eqns)} equations became a loop: {inputs} arrays "
        f"in {len(rolled.stacked)} stacks, {len(loop.carries)} values carried from layer to layer"
        + (f"; {inside} stacks are made in the step" if inside else "")
    )


def _with_stacks(program: Program, rolled: Rolled) -> Program:
    """The program with the loop's stacks among its inputs, parameters sorted by path as a tree."""
    leaves = [program.inputs[i] for i in rolled.kept]
    names = {leaf.path for leaf in program.inputs}
    stacks = []
    for places in rolled.stacked:
        parts = [program.inputs[i] for i in places]
        path = _stack_path([leaf.path for leaf in parts], names)
        names.add(path)
        metadata = (None, *parts[0].metadata) if parts[0].metadata else ()
        shape = (len(parts), *parts[0].shape)
        own = tuple(leaf.path for leaf in parts)
        stacks.append(Leaf(path, Role.PARAMETER, shape, parts[0].dtype, metadata, own))
    both = [*leaves, *stacks]
    parameters = sorted(
        (i for i, leaf in enumerate(both) if leaf.role is Role.PARAMETER),
        key=lambda i: tuple(both[i].path.split("/")),
    )
    others = [i for i, leaf in enumerate(both) if leaf.role is not Role.PARAMETER]
    order = [*parameters, *others]
    jaxpr, consts = ir.closed(rolled.jaxpr)
    inner = jaxpr.replace(invars=[jaxpr.invars[i] for i in order])
    return dataclasses.replace(
        program,
        jaxpr=ir.ClosedJaxpr(inner, consts),
        inputs=tuple(both[i] for i in order),
    )


def _stack_path(paths: list[str], taken: set[str]) -> str:
    """`layers/*/kernel` for `layers/0/kernel`, `layers/1/kernel`, ...; made unique if needed."""
    pieces = [re.split(r"(\d+)", path) for path in paths]
    if len({len(p) for p in pieces}) == 1:
        columns = [
            column[0] if len(set(column)) == 1 else "*" for column in zip(*pieces, strict=True)
        ]
        varying = collections.Counter(columns)["*"]
        path = "".join(columns)
        if varying == 1:
            first = next(p for p, c in zip(pieces[0], columns, strict=True) if c == "*")
            return path if path not in taken else path.replace("*", f"*from{first}")
    path = f"{paths[0]}*"
    while path in taken:
        path += "*"
    return path
