"""What the user may ask of the search."""

import dataclasses
from collections.abc import Callable

from autoshard.errors import PlanError

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How far the planner goes.

    Attributes:
      max_layouts: layouts that are costed at most; the search ends earlier where all are known.
      verify: how many of the best are compiled for the target, to be ranked by what its compiler
        says; 0: the estimate decides. None: 4 where the target's compiler is there and its chip is
        known, and the devices are not; else 0.
      choose_passes: whether microbatches and rematerialisation are decided, too.
      forbid: names of dimensions that are not to be sharded, and of mesh axes (`data`, `fsdp`,
        `model`, `expert`, `stage`) that an open mesh is not to have.
      microbatches: counts to choose from.
      progress: called with a line now and then.
    """

    max_layouts: int = 600
    verify: int | None = None
    choose_passes: bool = False
    forbid: tuple[str, ...] = ()
    microbatches: tuple[int, ...] = (1, 2, 4, 8, 16)
    progress: Report | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.max_layouts < 1:
            raise PlanError(f"max_layouts={self.max_layouts}: the search needs at least one")
        if self.verify is not None and self.verify < 0:
            raise PlanError(f"verify={self.verify}: give the number of layouts to compile, or 0")
        if "data" in self.forbid:
            raise PlanError("the axis 'data' takes what the others leave and cannot be forbidden")

    def say(self, line: str) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(line)
