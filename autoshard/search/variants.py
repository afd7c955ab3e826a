"""The program under other choices of what its loops keep and in how many parts it runs.

Each variant is traced and analysed once, for all layouts.
"""

import dataclasses
import functools

from autoshard.cost import Costed
from autoshard.errors import PassError, PlanError
from autoshard.layouts import ArrayLayout, Layout
from autoshard.named_dims import analyse
from autoshard.search.decision import AS_WRITTEN, MemoryChoice
from autoshard.trace import gradient_program
from autoshard.value_specs import laid_out
from passes import errors as pass_errors
from passes.inline_calls import inline_calls
from passes.microbatch import in_microbatches
from passes.program import Program
from passes.remat import Remat
from passes.remat_regions import count_regions

# From what is computed again the most to what is saved the most.
POLICIES = ("full", "dots_no_batch", "dots", "none")


class Variants:
    """Variants of one forward program, made when they are asked for.

    Attributes:
      program: the forward program.
      trains: whether its gradient counts.
      platform: `cpu`, `tpu` or `gpu`.
    """

    def __init__(self, program: Program, trains: bool, platform: str) -> None:
        self.program = program
        self.trains = trains
        self.platform = platform
        self._known: dict[tuple[str, int], Costed | PassError] = {}

    @property
    def as_written(self) -> Costed:
        """The program without further choices."""
        return self.of(MemoryChoice())

    @functools.cached_property
    def has_regions(self) -> bool:
        """Whether there are checkpoint regions of the user's outside loops."""
        return count_regions(inline_calls(self.program.jaxpr)) > 0

    def of(self, memory: MemoryChoice) -> Costed:
        """The program under a choice; of one with microbatches, a single one.

        Raises:
          PassError: the program has no loop or region to choose for, or its batch cannot be cut.
        """
        key = (memory.remat, memory.microbatches)
        if key not in self._known:
            try:
                self._known[key] = self.costed(self._rewritten(memory))
            except pass_errors.PassError as error:
                self._known[key] = PassError(str(error))
        found = self._known[key]
        if isinstance(found, PassError):
            raise found
        return found

    def costed(self, program: Program) -> Costed:
        """A rewritten program, ready to be costed."""
        analysis = analyse(*gradient_program(program)) if self.trains else analyse(program)
        return Costed(analysis, self.trains, self.platform)

    def _rewritten(self, memory: MemoryChoice) -> Program:
        program = self.program
        if memory.remat == "auto":
            raise PlanError("what 'auto' saves depends on the layout: refine a decision instead")
        if memory.microbatches > 1:
            program = in_microbatches(program, memory.microbatches)
        return program if memory.remat == AS_WRITTEN else Remat(memory.remat).apply(program)  # type: ignore[arg-type]


def layout_for(costed: Costed, layout: Layout) -> Layout:
    """A layout in terms of a variant's inputs, which may be more and smaller."""
    inputs = costed.analysis.program.inputs
    if len(inputs) == len(layout.arrays) and all(
        leaf is array.leaf for leaf, array in zip(inputs, layout.arrays, strict=True)
    ):
        return layout
    known = {(array.leaf.role, array.leaf.path): array for array in layout.arrays}
    arrays: tuple[ArrayLayout, ...] = tuple(laid_out(leaf, known) for leaf in inputs)
    return dataclasses.replace(layout, arrays=arrays)
