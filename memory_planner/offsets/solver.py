"""Offsets for buffers within a capacity: `solve`; the least capacity that can be found: `minimize`.

In this order: loads and fixed offsets that rule a packing out; first fit in several orders; then
the exact search, one partition of time beside another, each under several orders in turn.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

from memory_planner.offsets.options import Progress, SearchOptions
from memory_planner.offsets.problem import (
    Buffer,
    Infeasible,
    OffsetError,
    OffsetProblem,
    OffsetSolution,
    Outcome,
    Proof,
)
from memory_planner.offsets.sections import (
    Clique,
    cliques,
    describe,
    granularity_bytes,
    load_bytes,
    lower_bound_bytes,
    partitions,
)
from memory_planner.offsets.stretch import Effort, Stretch

ProgressFn = Callable[[Progress], None]

_DEFAULT = SearchOptions()


@functools.cache
def _compile() -> None:
    """Have numba compile the search, or load it: a search of two buffers."""
    problem = OffsetProblem((Buffer("a", 0, 1, 1), Buffer("b", 0, 1, 1)))
    (partition,) = partitions(cliques(problem))
    effort = Effort(float("inf"), None)
    for _ in Stretch(problem, partition, 1).attempts(_DEFAULT, effort):
        pass


def _ruled_out(
    problem: OffsetProblem, found: tuple[Clique, ...], capacity_bytes: int
) -> Infeasible | None:
    """What needs no search: loads, and fixed buffers in each other's way."""
    for clique in sorted(found, key=lambda clique: -load_bytes(problem, clique))[:1]:
        if load_bytes(problem, clique) > capacity_bytes:
            return Infeasible(capacity_bytes, Proof.LOAD, describe(problem, clique))
    for clique in found:
        buffers = [problem.buffers[index] for index in clique.members]
        spans = sorted((b.offset, b.offset + b.size_bytes) for b in buffers if b.offset is not None)
        crowded = any(low[1] > high[0] for low, high in itertools.pairwise(spans))
        if crowded or any(top > capacity_bytes for _, top in spans):
            return Infeasible(capacity_bytes, Proof.FIXED, describe(problem, clique))
    return None


def _offsets(problem: OffsetProblem, stretches: list[Stretch]) -> tuple[int, ...]:
    offsets = [buffer.offset or 0 for buffer in problem.buffers]
    for stretch in stretches:
        for index, offset in zip(stretch.partition.buffers, stretch.best.offset, strict=True):
            offsets[index] = int(offset)
    return tuple(offsets)


def solve(
    problem: OffsetProblem,
    capacity_bytes: int,
    *,
    time_limit_s: float = 60.0,
    node_limit: int | None = None,
    options: SearchOptions = _DEFAULT,
    progress: ProgressFn | None = None,
) -> OffsetSolution | Infeasible:
    """Pack buffers within a capacity, or prove that they cannot be.

    Exact within its limits: a packing with `Outcome.FITS`, or `Infeasible`. Where a limit comes
    first: the lowest packing found, which is higher than the capacity, with `Outcome.BEST_EFFORT`.
    The same problem gives the same answer, unless it is the clock that ends the search.

    Method: "MiniMalloc: A Lightweight Memory Allocator for Hardware-Accelerated Machine Learning"
    (Moffitt, ASPLOS 2023); `docs/offsets.md` says what is different.

    Args:
      time_limit_s: of the whole; numba's compiling, once for each installation, is not counted.
      node_limit: partial packings to try at most: a limit that does not depend on the machine.
      progress: called several times a second while searching.

    Raises:
      OffsetError: a negative capacity or limit.
    """
    if capacity_bytes < 0 or time_limit_s < 0 or (node_limit or 0) < 0:
        raise OffsetError(
            f"capacity of {capacity_bytes} bytes, limits of {time_limit_s} s and {node_limit} "
            "nodes: none may be negative"
        )
    _compile()
    effort = Effort(time_limit_s, node_limit)
    found = cliques(problem)
    impossible = _ruled_out(problem, found, capacity_bytes)
    if impossible is not None:
        return dataclasses.replace(impossible, seconds=effort.seconds)
    step = granularity_bytes(problem)
    stretches = [
        Stretch(problem, partition, capacity_bytes // step * step)
        for partition in partitions(found)
    ]
    failed = _search(stretches, effort, options, progress)
    if failed is not None:
        fullest = max(failed.partition.cliques, key=lambda clique: load_bytes(problem, clique))
        binding = describe(problem, fullest)
        return Infeasible(capacity_bytes, Proof.SEARCH, binding, effort.nodes, effort.seconds)
    for stretch in stretches:
        stretch.climb(10 * options.climb_steps, effort)
    height = max((stretch.best.height for stretch in stretches), default=0)
    outcome = Outcome.FITS if height <= capacity_bytes else Outcome.BEST_EFFORT
    offsets = _offsets(problem, stretches)
    return OffsetSolution(offsets, height, outcome, effort.nodes, effort.seconds)


def _search(
    stretches: list[Stretch],
    effort: Effort,
    options: SearchOptions,
    progress: ProgressFn | None,
) -> Stretch | None:
    """Pack every stretch, or as many as the limits allow; returns one that cannot be packed."""
    for stretch in stretches:
        stretch.climb(options.climb_steps, effort)
    turns = {
        id(stretch): (stretch, stretch.attempts(options, effort))
        for stretch in sorted(stretches, key=lambda stretch: len(stretch.partition.buffers))
        if not stretch.is_packed
    }
    while turns and effort.nodes_left() > 0:
        for key, (stretch, attempts) in list(turns.items()):
            next(attempts, None)
            if stretch.is_ruled_out:
                return stretch
            if stretch.is_packed:
                del turns[key]
        if progress is not None:
            height = max(stretch.best.height for stretch in stretches)
            progress(Progress(effort.nodes, effort.seconds, len(turns), height))
    return None


@dataclasses.dataclass(frozen=True)
class LeastHeight:
    """What `minimize` found.

    Attributes:
      solution: the lowest packing found.
      lower_bound_bytes: no packing is lower than this.
    """

    solution: OffsetSolution
    lower_bound_bytes: int

    @property
    def is_optimal(self) -> bool:
        """Whether the packing is proven to be the lowest."""
        return self.solution.height_bytes == self.lower_bound_bytes


def minimize(
    problem: OffsetProblem,
    *,
    time_limit_s: float = 60.0,
    options: SearchOptions = _DEFAULT,
    progress: ProgressFn | None = None,
) -> LeastHeight:
    """Look for the least capacity that holds a problem, by `solve` at one capacity after another.

    The lower bound first, for a half of the time; then by bisection between what is ruled out and
    the best packing, for a fourth of what is left each time. A capacity at which time runs out is
    passed over as if it were ruled out, but does not raise the lower bound.

    Raises:
      OffsetError: a negative limit, or fixed buffers in each other's way.
    """
    step = granularity_bytes(problem)
    lower = target = -(-lower_bound_bytes(problem) // step) * step
    passed_over = False
    best: OffsetSolution | None = None
    nodes, seconds = 0, 0.0
    while best is None or target < best.height_bytes:
        share = (time_limit_s - seconds) * (0.5 if best is None else 0.25)
        capacity = target if best is None else (target + best.height_bytes - 1) // 2
        found = solve(
            problem, capacity, time_limit_s=max(share, 0.0), options=options, progress=progress
        )
        nodes, seconds = nodes + found.nodes, seconds + found.seconds
        if isinstance(found, Infeasible):
            if found.proof is Proof.FIXED:
                raise OffsetError(str(found))
            target = capacity // step * step + step
            lower = lower if passed_over else target
            continue
        if best is None or found.height_bytes < best.height_bytes:
            best = found
        if found.outcome is Outcome.BEST_EFFORT:
            target, passed_over = capacity // step * step + step, True
            if seconds >= 0.95 * time_limit_s:
                break
    best = dataclasses.replace(best, outcome=Outcome.FITS, nodes=nodes, seconds=seconds)
    return LeastHeight(best, lower)
