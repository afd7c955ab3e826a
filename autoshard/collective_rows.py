"""Predicted collectives beside those of the compiled program.

Arrays are matched, not operations: a compiler combines many into one. In order:

    equal       kind, payload and devices agree; those of the same source first
    rewritten   another form of the same: a reduce-scatter as an all-reduce and a slice or as
                permutes in a loop, a gather as an all-reduce or in two stages, what every
                iteration sums as one sum after the loop, another element type, padding

Whatever is left on either side differs, and its row says where it comes from.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from autoshard.compile_report import CollectiveRow
from autoshard.predicted_collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    REDUCE_SCATTER,
    PredictedCollective,
)
from passes.hlo.module import HloModule
from passes.hlo.moved_arrays import MovedArray, moved_arrays

PERMUTE = "collective-permute"
# A compiler pads shards to its tiles: more than this is another array.
_MOST_PADDING = 1.15


@dataclasses.dataclass
class _Wanted:
    """A predicted collective, and how many of its arrays are not found yet."""

    predicted: PredictedCollective
    left: int


@dataclasses.dataclass
class _Moved:
    """A compiled array, and how many times it is not accounted for yet."""

    array: MovedArray
    left: int


@dataclasses.dataclass(frozen=True)
class _Form:
    """A way in which a compiler may do what was predicted.

    Attributes:
      words: what the row says; empty where it is as predicted.
      fits: whether a compiled array is the predicted one in this form.
      same_source: whether they must come from one line.
    """

    words: str
    fits: Callable[[PredictedCollective, MovedArray], bool]
    same_source: bool


def _as_predicted(p: PredictedCollective, m: MovedArray) -> bool:
    return (p.kind, p.payload_bytes, p.devices) == (m.kind, m.payload_bytes, m.devices)


def _as_all_reduce(p: PredictedCollective, m: MovedArray) -> bool:
    same = (p.payload_bytes, p.devices) == (m.payload_bytes, m.devices)
    return same and p.kind != ALL_REDUCE and m.kind == ALL_REDUCE


def _ratio(p: PredictedCollective, m: MovedArray) -> float:
    return m.payload_bytes / max(1, p.payload_bytes)


def _other_type(p: PredictedCollective, m: MovedArray) -> bool:
    return p.kind == m.kind and p.devices == m.devices and _ratio(p, m) in (0.5, 2.0)


def _gather_as_all_reduce(p: PredictedCollective, m: MovedArray) -> bool:
    gathers = p.kind == ALL_GATHER and m.kind == ALL_REDUCE
    return gathers and p.devices == m.devices and _ratio(p, m) in (0.5, 2.0)


def _padded(p: PredictedCollective, m: MovedArray) -> bool:
    return p.kind == m.kind and p.devices == m.devices and 1 < _ratio(p, m) <= _MOST_PADDING


_FORMS = (
    _Form("", _as_predicted, True),
    _Form("as an all-reduce", _as_all_reduce, True),
    _Form("padded", _padded, True),
    _Form("in another type", _other_type, True),
    _Form("as an all-reduce, in another type", _gather_as_all_reduce, True),
)
_LATE_FORMS = tuple(
    dataclasses.replace(form, same_source=False) for form in _FORMS if form.words != "padded"
)


class _Matcher:
    """Takes predicted and compiled arrays off two lists, and adds them up in rows."""

    def __init__(
        self, predicted: Iterable[PredictedCollective], moved: Iterable[MovedArray]
    ) -> None:
        self.wanted = [_Wanted(p, p.count) for p in predicted]
        self.moved = [_Moved(m, m.count) for m in moved]
        self.sums: dict[tuple[str, str], list[int]] = {}

    def rows(self) -> tuple[CollectiveRow, ...]:
        for form in _FORMS:
            self._match(form)
        self._match_stages()
        self._match_permutes()
        self._match_after_loops()
        for form in _LATE_FORMS:
            self._match(form)
        for w in self.wanted:
            if w.left:
                p = w.predicted
                self._add(p.kind, _name(p), "", (w.left, w.left * p.payload_bytes), (0, 0))
        for m in self.moved:
            if m.left:
                a = m.array
                source = a.source or a.op_name or a.instruction
                self._add(a.kind, source, "", (0, 0), (m.left, m.left * a.payload_bytes))
        found = (CollectiveRow(kind, source, *sums) for (kind, source), sums in self.sums.items())
        return tuple(sorted(found, key=lambda r: -max(r.predicted_bytes, r.compiled_bytes)))

    def _add(
        self,
        kind: str,
        source: str,
        words: str,
        predicted: tuple[int, int],
        compiled: tuple[int, int],
    ) -> None:
        """Add (count, bytes) on both sides to a row."""
        key = (kind, f"{source}, {words}" if words else source)
        row = self.sums.setdefault(key, [0, 0, 0, 0])
        for i, number in enumerate((predicted[0], compiled[0], predicted[1], compiled[1])):
            row[i] += number

    def _open(self) -> Iterator[tuple[_Wanted, _Moved]]:
        """Pairs of what is not matched yet."""
        wanted = [w for w in self.wanted if w.left]
        moved = [m for m in self.moved if m.left]
        return itertools.product(wanted, moved)

    def _match(self, form: _Form) -> None:
        for w, m in self._open():
            p, a = w.predicted, m.array
            if form.same_source and a.source != p.source:
                continue
            if not w.left or not m.left or not form.fits(p, a):
                continue
            count = min(w.left, m.left)
            w.left -= count
            m.left -= count
            self._add(
                p.kind, _name(p), form.words,
                (count, count * p.payload_bytes), (count, count * a.payload_bytes),
            )  # fmt: skip

    def _match_stages(self) -> None:
        """Gathers of a few devices' shards and then of what they gathered, which send as much."""
        for w, last in self._open():
            p, a = w.predicted, last.array
            if (p.kind, p.source, p.payload_bytes) != (a.kind, a.source, a.payload_bytes):
                continue
            if p.kind != ALL_GATHER or p.devices % a.devices:
                continue
            first = [
                m
                for m in self.moved
                if (m.array.kind, m.array.source, m.array.devices * a.devices)
                == (p.kind, p.source, p.devices)
                and m.array.payload_bytes * a.devices == p.payload_bytes
            ]
            count = min(w.left, last.left, sum(m.left for m in first))
            w.left -= count
            last.left -= count
            total = (count, count * p.payload_bytes)
            if count:
                self._add(p.kind, _name(p), "in two stages", total, total)
            for m in first:
                taken = min(m.left, count)
                m.left -= taken
                count -= taken

    def _match_permutes(self) -> None:
        """Reductions and gathers that go around a ring while a product is computed, in chunks.

        A ring of n takes n - 1 steps, and up to two more where both directions begin with a shift
        (Wang et al., "Overlap Communication with Dependent Computation via Decomposition in Large
        Deep Learning Models", ASPLOS 2023).
        """
        for w in self.wanted:
            p = w.predicted
            if not w.left or p.kind not in (REDUCE_SCATTER, ALL_GATHER):
                continue
            alike = [
                v
                for v in self.wanted
                if v.left and (v.predicted.source, v.predicted.payload_bytes, v.predicted.kind)
                == (p.source, p.payload_bytes, p.kind)
            ]  # fmt: skip
            chunks = [
                m
                for m in self.moved
                if m.left and m.array.kind == PERMUTE and m.array.source == p.source
                and m.array.payload_bytes * p.devices == p.payload_bytes
            ]  # fmt: skip
            rings = sum(v.left for v in alike)
            steps = sum(m.left for m in chunks)
            if not (p.devices - 1) * rings <= steps <= (p.devices + 1) * rings:
                continue
            total = (rings, rings * p.payload_bytes)
            self._add(p.kind, _name(p), "as permutes in a loop", total, total)
            for v in alike:
                v.left = 0
            for m in chunks:
                m.left = 0

    def _match_after_loops(self) -> None:
        """Gradients of all iterations, stacked and reduced once.

        Their source may be the loop's, which is none of those that were predicted.
        """
        sources = {w.predicted.source for w in self.wanted}
        both = [(same, w, m) for same in (True, False) for w, m in self._open()]
        for same_source, w, m in both:
            p, a = w.predicted, m.array
            if w.left < 2 or not m.left or a.in_loop or a.kind != ALL_REDUCE:
                continue
            if p.kind == ALL_GATHER or p.devices != a.devices:
                continue
            if p.source != a.source if same_source else a.source in sources:
                continue
            if a.payload_bytes / (w.left * p.payload_bytes) in (0.5, 1.0, 2.0):
                predicted = (w.left, w.left * p.payload_bytes)
                self._add(p.kind, _name(p), "after the loop", predicted, (1, a.payload_bytes))
                w.left = 0
                m.left -= 1


def _name(p: PredictedCollective) -> str:
    return p.source or p.operation


def collective_rows(
    predicted: Sequence[PredictedCollective], compiled: HloModule | Sequence[MovedArray]
) -> tuple[CollectiveRow, ...]:
    """Predicted collectives beside compiled ones, by kind and source, largest first.

    Args:
      predicted: `plan.cost.collectives`.
      compiled: the program after compilation, or `moved_arrays` of it.

    Returns:
      Rows whose sides agree in count and bytes, and rows that differ. What is matched in another
      form says so behind its source: `model.py:8 (block), as an all-reduce`.
    """
    moved = moved_arrays(compiled) if isinstance(compiled, HloModule) else compiled
    return _Matcher(predicted, moved).rows()


def differs(row: CollectiveRow) -> bool:
    """Whether a row's sides differ in count or bytes."""
    return (row.predicted_count, row.predicted_bytes) != (row.compiled_count, row.compiled_bytes)
