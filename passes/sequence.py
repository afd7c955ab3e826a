"""Attention over a mesh axis, so that long sequences are cut into pieces, one a device.

    tokens [B, S]  ->  every layer on S / n positions  ->  attention meets all S by
                       ring            keys and values go round the devices
                       bidirectional   two halves go round in opposite directions
                       ulysses         an all-to-all to heads and back
                       heads           heads cut by constraint

Attention is found by what it computes (`attention.pattern`), masks made from positions are made
again block by block, and no array of S x S is left (but for a bias given as one). Each attention
gets the way that is quickest on the machine, or the one asked for.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax

from passes import ir
from passes.attention.block import Block, JnpBlock
from passes.attention.choose import Axis, Candidate, Settings, axis_of, candidates
from passes.attention.parallel import attend
from passes.attention.pattern import Attention, Refusal, find
from passes.attention.rewrite import Replacement, rewritten
from passes.attention.scopes import scopes
from passes.errors import PassError
from passes.program import Placement, Program


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Spreads attention over a mesh axis.

    Attributes:
      axis: of the mesh; positions of the batch are to be sharded over it.
      method: how; `auto` chooses for each attention.
      balance: zig-zag chunks where attention is causal, so that all devices have as much to do.
      block: the greatest side of a tile of scores, in positions; tiles of chunks shorter than eight
        times that are smaller, down to 512.
      inner: the work of one tile.
    """

    axis: str = "seq"
    method: Literal["auto", "ring", "bidirectional", "ulysses", "heads"] = "auto"
    balance: bool = True
    block: int = 1024
    inner: Block = dataclasses.field(default_factory=JnpBlock, repr=False)
    name: str = dataclasses.field(default="sequence", init=False, repr=False)
    after_planning: ClassVar[bool] = True

    @property
    def pins(self) -> tuple[tuple[str, str], ...]:
        """The batch's positions are sharded over the axis."""
        return (("sequence", self.axis),)

    def apply(self, program: Program) -> Program:
        """The program with its attention spread.

        Raises:
          PassError: the mesh is not known or lacks the axis, a sequence does not divide, or the
            method that was asked for is not possible.
        """
        axis, placement = self._axis(program)
        if axis.size == 1:
            return program.noting(f"axis {self.axis!r} has one device: nothing to do")
        root = scopes(program.jaxpr)
        replacements: dict[int, tuple[Attention, Replacement]] = {}
        notes: list[str] = []
        for found in find(root):
            reason = str(found) if isinstance(found, Refusal) else self._unfit(found, axis)
            if reason or isinstance(found, Refusal):
                notes.append(reason)
                continue
            chosen = self._chosen(found, axis, placement)
            notes.append(_note(found, chosen, axis))
            replacements[id(found.eqn)] = (found, _replacement(chosen, placement))
        if not replacements:
            return program.noting(*_counted(notes), "no attention was spread")
        function = rewritten(root, replacements)
        specs = [ir.spec(x) for x in ir.closed(program.jaxpr)[0].invars]
        traced = jax.make_jaxpr(function)(*specs)
        jaxpr, consts = ir.closed(traced)
        return dataclasses.replace(program, jaxpr=ir.ClosedJaxpr(ir.live(jaxpr), consts)).noting(
            *_counted(notes)
        )

    def _axis(self, program: Program) -> tuple[Axis, Placement]:
        placement = program.placement
        if placement is None:
            raise PassError(
                "it needs a mesh, and the program is not placed yet: put it after the passes that "
                "come before planning"
            )
        names = tuple(str(name) for name in placement.mesh.axis_names)
        mine = tuple(n for n in names if n == self.axis or n.startswith(f"{self.axis}."))
        if not mine:
            raise PassError(
                f"the mesh has no axis {self.axis!r}, its axes are {', '.join(names)}: name one of "
                f"them, or add one to the mesh, as in 'data=2,{self.axis}=4'"
            )
        sizes = {str(n): s for n, s in placement.mesh.shape.items()}
        return axis_of(mine, names, sizes), placement

    def _unfit(self, found: Attention, axis: Axis) -> str:
        """Why an attention cannot be spread over so many devices; empty where it can.

        Raises:
          PassError: its own positions do not divide.
        """
        n = axis.size
        uneven = [s for s in (found.queries, found.keys) if s % n]
        if not uneven:
            return ""
        where = f"attention at {found.line}" if found.line else "attention"
        if found.queries != found.keys:
            return (
                f"{where} is left alone: {found.queries} queries and {found.keys} keys do not "
                f"both divide over the {n} devices of axis {self.axis!r}"
            )
        length = uneven[0]
        fits = max(d for d in range(1, n + 1) if length % d == 0)
        raise PassError(
            f"{where}: a sequence of {length} does not divide over the {n} devices of axis "
            f"{self.axis!r}: pad it to {math.ceil(length / n) * n}, or give the axis {fits} devices"
        )

    def _chosen(self, found: Attention, axis: Axis, placement: Placement) -> Candidate:
        settings = Settings(self.balance, self.block, self.inner)
        ways = candidates(found, axis, placement.machine, settings)
        if self.method == "auto":
            return ways[0]
        named = [way for way in ways if way.name == self.method]
        if named:
            return named[0]
        if self.method == "bidirectional":  # a window leaves nothing to send the other way round
            return next(way for way in ways if way.name == "ring")
        heads = ", ".join(str(h.size) for h in found.heads) or "no heads"
        raise PassError(
            f"attention at {found.line}: method {self.method!r} cuts heads over {axis.size} "
            f"devices, and none of its dimensions ({heads}) divides by that: use 'ring' or "
            f"'bidirectional', or give axis {self.axis!r} fewer devices"
        )


def _replacement(chosen: Candidate, placement: Placement) -> Replacement:
    def run(arrays: Any) -> Any:
        with jax.named_scope(f"{chosen.name}_attention"):
            return attend(chosen.method, placement.mesh, arrays)

    return run


def _note(found: Attention, chosen: Candidate, axis: Axis) -> str:
    ring = getattr(chosen.method, "ring", None)
    details = [f"{found.queries} queries, {found.keys} keys over {axis.size} devices"]
    if ring is not None and ring.chunks == 2:
        details.append("zig-zag")
    if ring is not None and ring.forward_course.blocks < axis.size:
        steps = max(lane.steps for lane in ring.forward_course.lanes)
        details.append(f"{steps} steps reach the whole window")
    details.append(
        f"predicted {chosen.seconds * 1e6:.3g} us forward and backward, "
        f"{chosen.waits_s * 1e6:.3g} us of it waiting"
    )
    where = f" at {found.line}" if found.line else ""
    return f"attention{where} became {chosen.name}: {'; '.join(details)}"


def _counted(notes: list[str]) -> list[str]:
    """Equal notes once, with how often."""
    return [
        note if notes.count(note) == 1 else f"{note} ({notes.count(note)} times)"
        for note in dict.fromkeys(notes)
    ]
