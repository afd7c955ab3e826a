"""Activations of loops over layers in host memory between the forward and the backward pass.

A value goes to the host where its iteration makes it, and comes back for that iteration of the
backward pass; what is kept nowhere is made again. What is carried from layer to layer can go, too:
the region then starts from the copy on the host. The state of optimizers is moved by another part
(`passes.host_stream`).
"""

import dataclasses
import fnmatch
from typing import ClassVar, Literal

from passes.errors import PassError
from passes.program import Program
from passes.remat import DECISION, Remat, flat_loops, planned_blocks, realised, summary
from passes.remat_problem import Choice
from passes.remat_solver import trimmed


@dataclasses.dataclass(frozen=True)
class Offload:
    """Keeps values of loops on the host.

    Attributes:
      values: patterns (`*/carry`, `*/mlp/*`) of names of values that go to the host; what is
        carried and matches none stays on the device, everything else is made again. Empty: decided
        by cost, as `Remat(offload=...)` does.
      budget_bytes: of a device, for what is saved on it where cost decides.
      hidden: where cost decides, whether an iteration's transfers must fit in the time of its
        forward pass.
    """

    values: tuple[str, ...] = ()
    budget_bytes: float = 0.0
    hidden: bool = True
    name: str = dataclasses.field(default="offload", init=False, repr=False)
    after_planning: ClassVar[bool] = True
    decides: ClassVar[str] = DECISION

    def apply(self, program: Program) -> Program:
        """The program with a checkpoint region around each loop's body.

        Raises:
          PassError: no loop over parameters, no plan, a pattern that no value matches, or a budget
            that is too small.
        """
        if not self.values:
            reach: Literal["auto", "all"] = "auto" if self.hidden else "all"
            return Remat(budget_bytes=self.budget_bytes, offload=reach).apply(program)
        flat, loops = flat_loops(program)
        traces = planned_blocks(flat, loops)
        choices = []
        matched: set[str] = set()
        for trace in traces:
            block = trace.problem
            host = {
                i: pattern
                for i in block.nameable
                for pattern in self.values
                if fnmatch.fnmatchcase(block.values[i].name, pattern)
            }
            matched.update(host.values())
            carries = set(trace.loop.carries)
            saved = {i for i in block.nameable if trace.variable[i] in carries and i not in host}
            choices.append(trimmed(block, frozenset(saved), frozenset(host)))
        for pattern in self.values:
            if pattern not in matched:
                names = [v.name for t in traces for v in t.problem.values if v.name]
                raise PassError(
                    f"no value matches {pattern!r}: there are {', '.join(names[:20])}"
                    + (f" and {len(names) - 20} more" if len(names) > 20 else "")
                )
        choice = Choice(tuple(choices), 0.0, proved=True)
        return realised(flat, traces, choice).noting(*summary(traces, choice))
