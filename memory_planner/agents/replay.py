"""A ring of training samples: a pytree of arrays of fixed sizes, so that it fits a checkpoint."""

import dataclasses
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Replay:
    """The newest samples.

    Attributes:
      samples: pytree of arrays [capacity, ...], written in place by `add`.
      added: int64[], samples added so far; the oldest are overwritten.
    """

    samples: Any
    added: np.ndarray

    @property
    def capacity(self) -> int:
        """Samples that are kept."""
        return len(jax.tree.leaves(self.samples)[0])

    @property
    def size(self) -> int:
        """Samples that are there."""
        return min(int(self.added), self.capacity)

    def add(self, samples: Any) -> "Replay":
        """The replay with further samples, a pytree of arrays [count, ...]; `self` is used up."""
        count = len(jax.tree.leaves(samples)[0])
        places = (int(self.added) + np.arange(count)) % self.capacity
        keep = slice(max(0, count - self.capacity), None)

        def write(ring: np.ndarray, new: np.ndarray) -> None:
            ring[places[keep]] = new[keep]

        jax.tree.map(write, self.samples, samples)
        return Replay(self.samples, self.added + count)

    def draw(self, count: int, seed: tuple[int, ...]) -> Any:
        """`count` samples, with replacement, as a pytree of arrays [count, ...]."""
        chosen = np.random.default_rng(seed).integers(self.size, size=count)
        return jax.tree.map(lambda ring: ring[chosen], self.samples)


def empty(capacity: int, samples: Any) -> Replay:
    """A replay for samples like these, a pytree of arrays [count, ...]."""
    ring = jax.tree.map(lambda a: np.zeros((capacity, *a.shape[1:]), a.dtype), samples)
    return Replay(ring, np.zeros((), np.int64))
