"""Best-first search over decisions.

The best decision that has not been looked around in is taken, and all its neighbours are costed
(they differ in one choice). What fits is quicker to be taken than what does not, and what nearly
fits than what is far from it, so that the search walks into the feasible region and on along its
edge. It ends when nothing is left, when the budget is spent, or when the best has not changed for
`_PATIENCE` expansions. Nothing is random: one question has one answer.

Why not another: an integer program an operation (Alpa) grows with depth, and its costs must be
sums over pairs; tree search by rollouts (TOAST) pays where an evaluation is dear and moves are
many. Here the moves from a decision are some dozens and an evaluation takes milliseconds.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable

from autoshard.search.decision import Decision
from autoshard.search.evaluate import Evaluated

_PATIENCE = 12


def best_first(
    seeds: Iterable[Decision],
    neighbours: Callable[[Decision], Iterable[Decision]],
    cost: Callable[[Decision], Evaluated],
    limit_bytes: float | None,
    most: int,
) -> list[Evaluated]:
    """Search from `seeds`.

    Args:
      seeds: where to begin; all of them are costed.
      neighbours: of a decision.
      cost: of a decision.
      limit_bytes: of a device.
      most: evaluations.

    Returns:
      What was costed, best first.
    """
    found: dict[Decision, Evaluated] = {}
    queue: list[tuple[tuple[object, ...], int, Decision]] = []
    number = itertools.count()

    def look(decision: Decision) -> None:
        if decision in found or len(found) >= most:
            return
        found[decision] = cost(decision)
        if found[decision].cost is not None:
            rank = found[decision].rank(limit_bytes)
            heapq.heappush(queue, (rank, next(number), decision))

    for seed in seeds:
        look(seed)
    best: tuple[object, ...] | None = queue[0][0] if queue else None
    waited = 0
    while queue and len(found) < most and waited < _PATIENCE:
        _, _, decision = heapq.heappop(queue)
        waited += 1
        for other in neighbours(decision):
            look(other)
        if queue and best is not None and queue[0][0][:2] < best[:2]:
            best, waited = queue[0][0], 0
    return sorted(found.values(), key=lambda e: e.rank(limit_bytes))
