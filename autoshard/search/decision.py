"""`Decision`: everything that the search decides, as a small value."""

import dataclasses

from autoshard.mesh_shape import MeshShape
from autoshard.rule_sets import RuleSet, data, zero
from autoshard.rule_sets.assigned import Unit, assigned

AS_WRITTEN = "as written"


@dataclasses.dataclass(frozen=True)
class MemoryChoice:
    """What a step keeps for its backward pass.

    Attributes:
      remat: what loops over layers save: `as written` by the model, a policy of `passes.remat`, or
        `auto`, decided value by value under `budget_bytes`.
      microbatches: parts of the batch, one after the other.
      budget_bytes: of a device, for what `auto` saves.
    """

    remat: str = AS_WRITTEN
    microbatches: int = 1
    budget_bytes: int | None = None

    def __str__(self) -> str:
        budget = f" {self.budget_bytes / 2**30:.2f} GiB" if self.budget_bytes is not None else ""
        parts = f", {self.microbatches} microbatches" if self.microbatches > 1 else ""
        return f"remat {self.remat}{budget}{parts}"


@dataclasses.dataclass(frozen=True)
class Decision:
    """One point of the space.

    Attributes:
      shape: the mesh.
      uses: (label of a unit, mesh axis) pairs, sorted.
      zero: stage 0 to 3.
      zero_axes: data axes over which storage is sharded; replicas differ along the others. Empty:
        all of them.
      memory: what is kept, recomputed, accumulated.
      stages: of a pipeline over the mesh axis `stage`; 1 for none, whatever the axes are called.
    """

    shape: MeshShape
    uses: tuple[tuple[str, str], ...] = ()
    zero: int = 0
    zero_axes: tuple[str, ...] = ()
    memory: MemoryChoice = MemoryChoice()
    stages: int = 1

    def rules(self, units: dict[str, Unit]) -> tuple[RuleSet, ...]:
        """The rule sets that make the layout."""
        stage = (zero(self.zero, self.zero_axes),) if self.zero else ()
        pairs = tuple((units[label], axis) for label, axis in self.uses)
        placed = (assigned(pairs),) if pairs else ()
        return (*stage, *placed) or (data(),)

    @property
    def simplicity(self) -> tuple[int, int, int, str]:
        """Sorts what is equally quick: the plainer first."""
        return (
            len(self.uses) + len(self.shape.names),
            self.zero + len(self.zero_axes),
            self.memory.microbatches,
            repr(self),
        )

    def __str__(self) -> str:
        uses = " ".join(f"{label}={axis}" for label, axis in self.uses)
        over = f" over {','.join(self.zero_axes)}" if self.zero_axes else ""
        storage = f"zero{self.zero}{over}" if self.zero else "data"
        return "; ".join(x for x in (str(self.shape), storage, uses, str(self.memory)) if x)
