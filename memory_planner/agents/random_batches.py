"""Batches of random problems of mixed sizes, in one padded shape, to train and to measure on."""

import dataclasses

import numpy as np

from memory_planner.padding import PaddedProblem, PaddedShape, pad, stack
from memory_planner.problem import MemoryProblem
from memory_planner.problems_random import RandomShape, random_problem

# Training draws batches 0, 1, 2, ...; what an agent is measured on begins here.
HELD_OUT = 10**6


@dataclasses.dataclass(frozen=True)
class RandomBatches:
    """Makes the problems of a batch from its number, always the same.

    Attributes:
      lanes: problems of a batch.
      least, most: buffers of a problem.
      contention: capacity as a fraction of the peak demand, the least and the most.
      shape: that they are padded to; it must hold `most` buffers.
      seed: of all.
    """

    lanes: int
    least: int
    most: int
    shape: PaddedShape
    seed: int = 0
    contention: tuple[float, float] = (0.05, 0.6)

    def problems(self, number: int) -> list[MemoryProblem]:
        """The problems of batch `number`."""
        rng = np.random.default_rng((self.seed, number))
        sizes = rng.integers(self.least, self.most + 1, self.lanes)
        return [
            random_problem(rng, self._size(size), f"random {number}.{lane}")
            for lane, size in enumerate(sizes)
        ]

    def _size(self, buffers: int) -> RandomShape:
        return RandomShape(int(buffers), contention=self.contention)

    def __call__(self, number: int) -> PaddedProblem:
        """Batch `number` in arrays [lanes, ...]."""
        return stack([pad(problem, self.shape) for problem in self.problems(number)])
