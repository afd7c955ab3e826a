"""An order of the buffers with an eagerness for each: what the compiler's allocator can be told.

Searches over them know only a score, so that the same search works on the order game, where a score
costs microseconds, and on the compiler, where it costs a second.
"""

import dataclasses
from typing import Protocol

import numpy as np

EAGERNESS_CHOICES = 3


class Score(Protocol):
    """How good candidates are; more is better."""

    def __call__(self, orders: np.ndarray, eagerness: np.ndarray) -> np.ndarray:
        """Scores a batch.

        Args:
          orders: int32[B, n], each row a permutation of the buffers' numbers, first served first.
          eagerness: int32[B, n], of buffer i in column i: 0 default, 1 earliest, 2 latest.

        Returns:
          float64[B].
        """
        ...


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An order that was scored.

    Attributes:
      order: the buffers' numbers, first served first.
      eagerness: of buffer i at place i.
      score: of it.
    """

    order: tuple[int, ...]
    eagerness: tuple[int, ...]
    score: float


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
      candidates: the best distinct ones, best first; of equal scores the earlier first.
      calls: candidates that were scored.
    """

    candidates: tuple[Candidate, ...]
    calls: int


class Ledger:
    """Scores candidates, counts them against a budget, and keeps the best.

    A candidate that was scored before is answered from memory and costs nothing.

    Args:
      score: the objective.
      budget: candidates that may be scored.
      keep: candidates that `found` returns, at most.
    """

    def __init__(self, score: Score, budget: int, keep: int):
        self._score = score
        self._keep = keep
        self._known: dict[bytes, Candidate] = {}
        self.budget = budget
        self.calls = 0

    @property
    def left(self) -> int:
        """Candidates that may still be scored."""
        return self.budget - self.calls

    def score(self, orders: np.ndarray, eagerness: np.ndarray) -> np.ndarray:
        """float64[B] of candidates int[B, n]; -inf for those that the budget leaves unscored."""
        pairs = np.stack([orders, eagerness], axis=1).astype(np.int32)
        keys = [pair.tobytes() for pair in pairs]
        new: dict[bytes, int] = {}
        for number, key in enumerate(keys):
            if key not in self._known and len(new) < self.left:
                new.setdefault(key, number)
        if new:
            chosen = pairs[list(new.values())]
            scores = np.asarray(self._score(chosen[:, 0], chosen[:, 1]), np.float64)
            for key, (order, eager), value in zip(new, chosen, scores, strict=True):
                self._known[key] = Candidate(
                    tuple(map(int, order)), tuple(map(int, eager)), float(value)
                )
            self.calls += len(new)
        found = [self._known.get(key) for key in keys]
        return np.array([-np.inf if one is None else one.score for one in found])

    def found(self) -> Found:
        """The best so far."""
        ranked = sorted(self._known.values(), key=lambda c: -c.score)
        return Found(tuple(ranked[: self._keep]), self.calls)
