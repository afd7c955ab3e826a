"""How hard to search, and how far a search has come."""

import dataclasses

from memory_planner.offsets.orders import ORDERS
from memory_planner.offsets.problem import OffsetError
from memory_planner.offsets.search_state import Inference


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How `solve` searches.

    Attributes:
      inference: what the search concludes from partial packings.
      orders: names of static orders (`orders.py` says what their letters mean), each searched
        on and on, in turn.
      restarts: random orders in each round, each searched from the start for one slice.
      first_slice: nodes of each search in the first round.
      growth: of the slice from round to round.
      climb_steps: of hill climbing, before the search; after it, ten times as many.
    """

    inference: Inference = Inference.ALL
    orders: tuple[str, ...] = ORDERS
    restarts: int = 12
    first_slice: int = 300
    growth: float = 1.25
    climb_steps: int = 50

    def __post_init__(self) -> None:
        if not self.orders and not self.restarts:
            raise OffsetError("search options with neither orders nor restarts search nothing")
        for name in self.orders:
            if not name or set(name) - set("WZAT"):
                raise OffsetError(f"order {name!r}: its letters must be among W, Z, A and T")
        if self.first_slice < 1 or self.growth < 1 or self.restarts < 0 or self.climb_steps < 0:
            raise OffsetError(
                f"{self}: slices of at least 1 that do not shrink, no negative counts"
            )


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far `solve` has come.

    Attributes:
      nodes: partial packings tried.
      seconds: since the start.
      open_partitions: stretches of time still without a packing.
      height_bytes: least height of a packing found so far.
    """

    nodes: int
    seconds: float
    open_partitions: int
    height_bytes: int
