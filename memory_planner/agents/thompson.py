"""Which of several ways to try next, drawn by how often each has helped.

Thompson's sampling ("On the likelihood that one unknown probability exceeds another in view of the
evidence of two samples"), with a beta distribution for each.
"""

import enum
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np

Arm = TypeVar("Arm", bound=enum.Enum)


class Thompson(Generic[Arm]):
    """Counts of what helped and what did not.

    Args:
      arms: all ways.
      rng: of the chance.
    """

    def __init__(self, arms: Iterable[Arm], rng: np.random.Generator) -> None:
        self._rng = rng
        self._helped = dict.fromkeys(arms, 0)
        self._failed = dict.fromkeys(self._helped, 0)

    def draw(self, open_arms: Sequence[Arm]) -> Arm:
        """One of those that are open."""
        chances = [self._rng.beta(1 + self._helped[a], 1 + self._failed[a]) for a in open_arms]
        return open_arms[int(np.argmax(chances))]

    def tell(self, arm: Arm, helped: bool) -> None:
        """Whether a way that was drawn has helped."""
        (self._helped if helped else self._failed)[arm] += 1
