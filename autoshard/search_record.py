"""What a plan keeps of the search that found it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RunnerUp:
    """The best of what was costed that differs in one choice.

    Attributes:
      choice: `mesh`, `storage`, `remat`, `microbatches`, or the dimension that is sharded.
      chosen: what was chosen.
      other: what the runner-up has instead.
      slower_s: estimated seconds that it takes more (it may differ elsewhere, too).
      memory_bytes: estimated bytes a device of the runner-up.
      fits: whether it fits the limit.
    """

    choice: str
    chosen: str
    other: str
    slower_s: float
    memory_bytes: int
    fits: bool


@dataclasses.dataclass(frozen=True)
class SearchRecord:
    """How the search went.

    Attributes:
      evaluated: layouts that were costed.
      bound_s: what no layout can beat by the same model: all products shared evenly, nothing sent.
      gap: how far the best is above that, as a share.
      limit_bytes: what a device may hold by the estimate; None: no limit.
      runner_ups: one for each choice that there was.
    """

    evaluated: int
    bound_s: float
    gap: float
    limit_bytes: int | None
    runner_ups: tuple[RunnerUp, ...]


@dataclasses.dataclass(frozen=True)
class Verified:
    """A layout that was compiled for the target.

    Attributes:
      rules: names of its rule sets, and its passes.
      mesh: its shape.
      estimated_s, simulated_s: of a step: by the estimate, and by the compiler's schedule; None
        where it does not fit.
      estimated_bytes, compiled_bytes: of a device.
      verdict: `chosen`, `does not fit`, or empty.
    """

    rules: str
    mesh: str
    estimated_s: float
    simulated_s: float | None
    estimated_bytes: int
    compiled_bytes: int
    verdict: str
