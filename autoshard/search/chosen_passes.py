"""The passes that carry out what the search decided about memory and stages."""

from typing import Any

from autoshard.search.decision import AS_WRITTEN, Decision
from autoshard.search.pipelines import SCHEDULE
from autoshard.sharded_program import STAGE
from passes.microbatch import Microbatch
from passes.pass_pipeline import Pass
from passes.pipeline import Pipeline
from passes.remat import Remat


def passes_of(decision: Decision) -> tuple[Pass, ...]:
    """Passes after planning, in their order."""
    memory, found = decision.memory, list[Any]()
    if memory.microbatches > 1 and decision.stages == 1:
        found.append(Microbatch(memory.microbatches))
    if memory.remat == "auto":
        found.append(Remat(budget_bytes=memory.budget_bytes))
    elif memory.remat != AS_WRITTEN:
        found.append(Remat(memory.remat))  # type: ignore[arg-type]
    if decision.stages > 1:
        found.append(Pipeline(STAGE, SCHEDULE, memory.microbatches))
    return tuple(found)
