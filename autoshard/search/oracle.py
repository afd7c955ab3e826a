"""The best decision by looking at every one: what the solver is checked against."""

from collections.abc import Callable, Iterable

from autoshard.search.decision import Decision
from autoshard.search.evaluate import Evaluated


def exhaustive(
    everything: Iterable[Decision],
    cost: Callable[[Decision], Evaluated],
    limit_bytes: float | None,
) -> Evaluated:
    """The best of all decisions; the first of equals."""
    return min(map(cost, everything), key=lambda evaluated: evaluated.rank(limit_bytes))
