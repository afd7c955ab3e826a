"""Orders that need no search: what the compiler does, and what a person would try first.

All ties go to the buffer with the lower number.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from memory_planner.agents.candidates import EAGERNESS_CHOICES, Found, Ledger, Score
from memory_planner.problem import Buffer, MemoryProblem


def total_benefit_ns(problem: MemoryProblem, buffer: Buffer) -> int:
    """What a step saves if the buffer lies in fast memory all its life."""
    return problem.birth_benefit_ns(buffer) + sum(map(problem.benefit_ns, buffer.uses))


def by_benefit(problem: MemoryProblem) -> tuple[int, ...]:
    """The compiler's own order: benefit over the square root of the size, greatest first.

    XLA's memory-space assignment sorts so by default (`MemoryBoundednessBufferIntervalCompare`, in
    which a larger buffer is made to pay for its size by its square root).
    """
    return _sorted(
        problem, lambda b: -total_benefit_ns(problem, b) / math.sqrt(max(1, b.size_bytes))
    )


def by_density(problem: MemoryProblem) -> tuple[int, ...]:
    """Benefit over size times lifetime, greatest first."""

    def density(buffer: Buffer) -> float:
        area = max(1, buffer.size_bytes) * (buffer.end - buffer.begin)
        return -total_benefit_ns(problem, buffer) / area

    return _sorted(problem, density)


def by_size(problem: MemoryProblem) -> tuple[int, ...]:
    """Largest first."""
    return _sorted(problem, lambda b: -b.size_bytes)


def by_size_ascending(problem: MemoryProblem) -> tuple[int, ...]:
    """Smallest first."""
    return _sorted(problem, lambda b: b.size_bytes)


def by_lifetime(problem: MemoryProblem) -> tuple[int, ...]:
    """Shortest life first."""
    return _sorted(problem, lambda b: b.end - b.begin)


def by_begin(problem: MemoryProblem) -> tuple[int, ...]:
    """In order of time."""
    return _sorted(problem, lambda b: b.begin)


def parameters_first(problem: MemoryProblem) -> tuple[int, ...]:
    """Inputs of the program (which need copies) before its own values, each by benefit."""
    return _stable(problem, lambda b: not b.starts_in_hbm)


def results_first(problem: MemoryProblem) -> tuple[int, ...]:
    """The program's own values (which need no copies) before its inputs, each by benefit."""
    return _stable(problem, lambda b: b.starts_in_hbm)


def fusions_last(problem: MemoryProblem) -> tuple[int, ...]:
    """Results of fusions last, the others first, each by benefit."""
    return _stable(problem, lambda b: "fusion" in b.name)


ORDERS: Mapping[str, Callable[[MemoryProblem], tuple[int, ...]]] = {
    "benefit": by_benefit,
    "density": by_density,
    "size": by_size,
    "size ascending": by_size_ascending,
    "lifetime": by_lifetime,
    "begin": by_begin,
    "parameters first": parameters_first,
    "results first": results_first,
    "fusions last": fusions_last,
}


def fixed_orders(problem: MemoryProblem, score: Score, keep: int = 16) -> Found:
    """All of `ORDERS`, with the default eagerness."""
    orders = np.array([order(problem) for order in ORDERS.values()], np.int32)
    ledger = Ledger(score, len(orders), keep)
    ledger.score(orders, np.zeros_like(orders))
    return ledger.found()


def random_orders(
    count: int, score: Score, *, budget: int, batch: int = 32, seed: int = 0, keep: int = 16
) -> Found:
    """Random permutations of `count` buffers, with random eagerness.

    Args:
      count: buffers.
      score: the objective.
      budget: candidates to score.
      batch: candidates in one call of `score`, at most.
      seed: of the chance.
      keep: candidates to return, at most.
    """
    rng = np.random.default_rng(seed)
    ledger = Ledger(score, budget, keep)
    # Few buffers have fewer candidates than the budget: stop when nothing new comes.
    while ledger.left > 0:
        size, before = min(batch, ledger.left), ledger.calls
        orders = rng.permuted(np.tile(np.arange(count), (size, 1)), axis=1)
        ledger.score(orders, rng.integers(EAGERNESS_CHOICES, size=(size, count)))
        if ledger.calls == before:
            break
    return ledger.found()


def _sorted(problem: MemoryProblem, key: Callable[[Buffer], float]) -> tuple[int, ...]:
    buffers = problem.buffers
    return tuple(sorted(range(len(buffers)), key=lambda number: key(buffers[number])))


def _stable(problem: MemoryProblem, is_late: Callable[[Buffer], bool]) -> tuple[int, ...]:
    """By benefit, then those that are late behind the others."""
    return tuple(sorted(by_benefit(problem), key=lambda n: is_late(problem.buffers[n])))
