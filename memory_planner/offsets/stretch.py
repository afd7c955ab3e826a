"""A partition of time on its way to a packing: first fit, then searches that take turns."""

import math
import time
from collections.abc import Iterator

from memory_planner.offsets import depth_first, orders, search_state
from memory_planner.offsets.first_fit import Fit, climb, first_fit
from memory_planner.offsets.options import SearchOptions
from memory_planner.offsets.problem import OffsetProblem
from memory_planner.offsets.sections import Partition

# Work of one call into the search, in nodes times buffers: some hundredths of a second, after
# which the clock is read.
_STRIDE = 500_000


class Effort:
    """Nodes and seconds spent, and their limits."""

    # Of the time: the rest is for hill climbing, where the search came to no end.
    _SEARCH_SHARE = 0.9

    def __init__(self, time_limit_s: float, node_limit: int | None) -> None:
        self.nodes = 0
        self._began = time.monotonic()
        self._time_limit_s = time_limit_s
        self._node_limit = math.inf if node_limit is None else node_limit

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def is_late(self) -> bool:
        return self.seconds >= self._time_limit_s

    def nodes_left(self) -> float:
        """That the search may still try: 0 once its time is up, too."""
        in_time = self.seconds < self._SEARCH_SHARE * self._time_limit_s
        return max(self._node_limit - self.nodes, 0) if in_time else 0


class Stretch:
    """A partition on its way to a packing."""

    def __init__(self, problem: OffsetProblem, partition: Partition, capacity_bytes: int) -> None:
        self.problem = problem
        self.partition = partition
        self.packed = search_state.packing(problem, partition, capacity_bytes)
        self.measures = orders.Measures(problem, partition)
        self.fixed = [problem.buffers[index].offset is not None for index in partition.buffers]
        self.is_ruled_out = False
        self.best: Fit = min(
            (
                first_fit(self.packed, self.measures.named(name), self.fixed)
                for name in ("ZWA", "WZA", "AWZ", "TAW")
            ),
            key=lambda fit: fit.height,
        )

    @property
    def is_packed(self) -> bool:
        return self.best.height <= self.packed.capacity

    def climb(self, steps: int, effort: Effort) -> None:
        """Improve `best` without search, until it fits or time is up."""

        def is_enough(height: int) -> bool:
            return height <= self.packed.capacity or effort.is_late

        self.best = climb(self.packed, self.best, self.fixed, steps, is_enough)

    def complete(self, offset: search_state.Ints) -> None:
        """Try the deepest partial packing of a search, the rest put in by first fit."""
        order = sorted(
            self.measures.named("AWZ"),
            key=lambda buffer: (offset[buffer] < 0, offset[buffer] if offset[buffer] >= 0 else 0),
        )
        fit = first_fit(self.packed, order, self.fixed)
        self.best = min(self.best, fit, key=lambda fit: fit.height)

    def _run(
        self, search: search_state.Search, nodes: int, effort: Effort
    ) -> Iterator[search_state.Search]:
        """Search on in strides, to a result or the slice's end; yields after each."""
        stride = max(1, _STRIDE // len(self.packed.size))
        while nodes > 0 and effort.nodes_left() > 0:
            before = int(search.counts[search_state.NODES])
            allowed = int(min(nodes, stride, effort.nodes_left()))
            status = depth_first.advance(self.packed, search, allowed)
            spent = int(search.counts[search_state.NODES]) - before
            effort.nodes += spent
            nodes -= spent
            if status == depth_first.OUT_OF_ROOM:
                search = search_state.grown(search)
            elif status == depth_first.SOLVED:
                height = int((search.offset + self.packed.size).max())
                self.best = Fit(self.best.order, search.offset.copy(), height)
            elif status == depth_first.EXHAUSTED:
                self.is_ruled_out = True
            yield search
            if self.is_packed or self.is_ruled_out:
                return

    def attempts(self, options: SearchOptions, effort: Effort) -> Iterator[None]:
        """Search until it is packed or ruled out; yields often, for others to have their turn."""
        randoms = orders.random_orders(self.measures)
        kept = [self._start(self.measures.named(name), options) for name in options.orders]
        nodes = float(options.first_slice)
        while True:
            for position in range(len(kept) + options.restarts):
                is_kept = position < len(kept)
                search = kept[position] if is_kept else self._start(next(randoms), options)
                for continued in self._run(search, int(nodes), effort):
                    search = continued
                    yield
                if is_kept:
                    kept[position] = search
                if not self.is_packed:
                    self.complete(search.deepest)
                if self.is_packed or self.is_ruled_out:
                    return
                yield
            nodes *= options.growth

    def _start(self, order: list[int], options: SearchOptions) -> search_state.Search:
        twin = search_state.twins(self.problem, self.partition, order)
        return search_state.start(self.packed, order, twin, options.inference)
