"""Tandem repeats: where a sequence of keys says the same again and again."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Repeat:
    """A stretch of a sequence in which each element equals the one a period later.

    Attributes:
      begin, end: the stretch, half-open; any rotation of the period may be cut out of it.
      period: elements.
    """

    begin: int
    end: int
    period: int

    @property
    def count(self) -> int:
        """Whole periods."""
        return (self.end - self.begin) // self.period

    @property
    def covered(self) -> int:
        """Elements in whole periods."""
        return self.count * self.period


def find_repeats(keys: Sequence[int], least: int) -> list[Repeat]:
    """Stretches with at least `least` periods, those that cover most first.

    Of stretches that cover nearly the same (nine tenths), the one with the shortest period is
    first. For each period only its longest stretch is given.
    """
    sequence = np.asarray(keys)
    found: list[Repeat] = []
    for period in range(1, len(sequence) // least + 1):
        same = sequence[period:] == sequence[:-period]
        edges = np.flatnonzero(np.diff(np.concatenate(([0], same.astype(np.int8), [0]))))
        if not len(edges):
            continue
        lengths = edges[1::2] - edges[::2]
        longest = int(np.argmax(lengths))
        begin = int(edges[::2][longest])
        repeat = Repeat(begin, begin + int(lengths[longest]) + period, period)
        if repeat.count >= least:
            found.append(repeat)
    found.sort(key=lambda r: -r.covered)
    if not found:
        return []
    most = found[0].covered
    near = sorted((r for r in found if 10 * r.covered >= 9 * most), key=lambda r: r.period)
    return [*near, *(r for r in found if 10 * r.covered < 9 * most)]
