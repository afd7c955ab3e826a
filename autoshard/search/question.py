"""What is to be laid out, and everything that costing many layouts of it has in common."""

import dataclasses
import functools
from collections.abc import Callable

from autoshard.cost import Costed
from autoshard.layouts import Layout
from autoshard.mesh_shape import MeshShape
from autoshard.rule_sets import RuleSet
from autoshard.rule_sets.base import Subject
from autoshard.search.options import SearchOptions
from autoshard.search.pipelines import possible_stages
from autoshard.search.variants import Variants
from passes.hlo.machine import MachineModel


@dataclasses.dataclass(frozen=True)
class Question:
    """What is to be laid out.

    Attributes:
      subject: the analysed forward program.
      variants: the program under other choices of what it keeps for the backward pass.
      shapes: mesh shapes to choose from.
      rules: the user's rule sets, or `(AUTO,)`, alone or after rule sets that bind the search.
      optimizer_bytes: optimizer bytes a device under a layout.
      machine: devices in the order of a mesh.
      options: of the search.
      memory_limit_bytes: bytes that one device may hold, or None.
      pins: pairs (named dimension, mesh axis) that passes ask for; the axes serve nothing else.
    """

    subject: Subject
    variants: Variants
    shapes: tuple[MeshShape, ...]
    rules: tuple[RuleSet, ...]
    optimizer_bytes: Callable[[Layout], int]
    machine: Callable[[MeshShape], MachineModel]
    options: SearchOptions
    memory_limit_bytes: int | None = None
    pins: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def costed(self) -> Costed:
        """The program as it was written."""
        return self.variants.as_written

    @functools.cached_property
    def stage_counts(self) -> tuple[int, ...]:
        """Stages that a pipeline of the search's own may have; none where passes pin axes."""
        own = self.options.choose_passes and self.trains and not self.pins
        return possible_stages(self.subject) if own else ()

    @property
    def trains(self) -> bool:
        """Whether the program trains."""
        return self.costed.trains
