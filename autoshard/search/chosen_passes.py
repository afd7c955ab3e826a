"""The passes that carry out what the search decided about memory."""

from typing import Any

from autoshard.search.decision import AS_WRITTEN, MemoryChoice
from passes.microbatch import Microbatch
from passes.pass_pipeline import Pass
from passes.remat import Remat


def passes_of(memory: MemoryChoice) -> tuple[Pass, ...]:
    """Passes after planning, in their order."""
    found: list[Any] = []
    if memory.microbatches > 1:
        found.append(Microbatch(memory.microbatches))
    if memory.remat == "auto":
        found.append(Remat(budget_bytes=memory.budget_bytes))
    elif memory.remat != AS_WRITTEN:
        found.append(Remat(memory.remat))  # type: ignore[arg-type]
    return tuple(found)
