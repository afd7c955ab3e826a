"""Static orders of buffers: which of two that would lie at one offset is tried first."""

import random
from collections.abc import Iterator, Sequence

from memory_planner.offsets.problem import OffsetProblem
from memory_planner.offsets.sections import Partition, load_bytes

# Letters of an order's name, each descending: W lifetime ("width"), Z size, A their product
# ("area"), T the largest load among the buffer's sections ("total"). The first three names are
# those of MiniMalloc (section "preordering heuristics").
ORDERS = ("WAT", "TAW", "TWA", "AWT")

# Exponents of lifetime, size and load in the keys that random orders start from.
_BLENDS = (
    (1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 0.5, 0.0), (0.5, 1.0, 0.0), (1.0, 0.0, 8.0),
    (1.0, 1.0, 8.0), (0.0, 1.0, 8.0), (1.0, 0.5, 30.0), (1.0, 0.0, 30.0),
)  # fmt: skip
_NOISE = (0.1, 0.5)


class Measures:
    """What orders look at, of the buffers of one partition: by local index."""

    def __init__(self, problem: OffsetProblem, partition: Partition) -> None:
        largest: dict[int, int] = {}
        for clique in partition.cliques:
            load = load_bytes(problem, clique)
            for index in clique.members:
                largest[index] = max(largest.get(index, 0), load)
        buffers = [problem.buffers[index] for index in partition.buffers]
        self.lifetime = [b.pieces[-1][1] - b.pieces[0][0] for b in buffers]
        self.size = [b.size_bytes for b in buffers]
        self.load = [largest[index] for index in partition.buffers]

    def key(self, letters: str, buffer: int) -> tuple[int, ...]:
        """The key of a named order, ascending.

        Raises:
          KeyError: a letter is not one of W, Z, A, T.
        """
        width, size = self.lifetime[buffer], self.size[buffer]
        values = {"W": width, "Z": size, "A": width * size, "T": self.load[buffer]}
        return (*(-values[letter] for letter in letters), buffer)

    def named(self, letters: str) -> list[int]:
        """Local indices in a named order."""
        return sorted(range(len(self.size)), key=lambda buffer: self.key(letters, buffer))


def random_orders(measures: Measures, seed: int = 0) -> Iterator[list[int]]:
    """Endless orders by blends of the measures, times log-normal noise; the same every time."""
    rng = random.Random(seed)
    most = max(measures.load)
    for count in range(10**18):
        width, size, load = rng.choice(_BLENDS)
        noise = _NOISE[count % len(_NOISE)]
        keys = [
            w**width * z**size * (t / most) ** load * rng.lognormvariate(0.0, noise)
            for w, z, t in zip(measures.lifetime, measures.size, measures.load, strict=True)
        ]
        yield sorted(range(len(keys)), key=keys.__getitem__, reverse=True)


def before(order: Sequence[int], buffer: int, rng: random.Random) -> list[int]:
    """The order with one buffer moved to a random earlier place."""
    at = order.index(buffer)
    to = rng.randrange(at) if at else 0
    return [*order[:to], buffer, *order[to:at], *order[at + 1 :]]
