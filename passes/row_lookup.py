"""Looking rows of a table up in its shards, rather than gathering the table.

    table [words, width/data], indices [batch/data, positions]
    indices gathered  ->  the rows of all of the batch, [batch, positions, width/data]
    ->  each to whose batch it is, [batch/data, positions, width]   (an all-to-all)

A device receives the rows of its own batch, where of a gathered table it would receive all words;
in the backward pass the gradients of rows go the same way back, and the table's is made in shards.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from passes.spec import Spec

# Of an element of a row against one of a gathered table: a TPU copies rows to lay them out for the
# move and after it. With rows of half a table a small Llama step on 64 v5p was 1.4% longer, with
# rows of an eighth on 8 v5e 4% shorter (simulated).
_WEIGHT = 2


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Rows that an equation `gather` takes from a table.

    Attributes:
      table, result: shapes.
      columns: pairs (dimension of the table, dimension of the result) that are taken whole.
      rows: dimensions of the result that are those of the indices, in their order.
      spec: how the result is sharded where it is used.
    """

    table: tuple[int, ...]
    result: tuple[int, ...]
    columns: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    spec: Spec


@dataclasses.dataclass(frozen=True)
class RowMove:
    """How arrays lie when rows are looked up in shards.

    Attributes:
      indices: the indices, their last dimension the coordinates.
      cut: the rows of all of the batch, cut as the table is.
      moved: the rows where they are used.
      parts: the parts of the mesh over which they move.
    """

    indices: Spec
    cut: Spec
    moved: Spec
    parts: tuple[str, ...]


def lookup_of(
    params: Mapping[str, Any], table: tuple[int, ...], result: tuple[int, ...], spec: Spec
) -> Lookup | None:
    """What a `gather` with these parameters looks up; None where it is batched.

    Args:
      params: of the equation.
      table, result: shapes.
      spec: how the result is sharded where it is used.
    """
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if numbers.operand_batching_dims:
        return None
    taken = [d for d in range(len(table)) if d not in numbers.collapsed_slice_dims]
    pairs = zip(taken, numbers.offset_dims, strict=True)
    columns = tuple((d, r) for d, r in pairs if sizes[d] == table[d])
    rows = tuple(r for r in range(len(result)) if r not in numbers.offset_dims)
    return Lookup(table, result, columns, rows, spec)


def row_move(lookup: Lookup, stored: Spec, used: Spec, shards: Mapping[str, int]) -> RowMove | None:
    """How rows are looked up in shards; None where the table is better gathered, or must be.

    Args:
      lookup: what is looked up.
      stored, used: how the table lies between steps and, gathered, in use.
      shards: sizes of the mesh's parts.
    """
    lost = [d for d, (s, u) in enumerate(zip(stored, used, strict=True)) if s != u]
    column = dict(lookup.columns).get(lost[0]) if len(lost) == 1 else None
    if column is None:
        return None
    (dim,) = lost
    kept, parts = used[dim], stored[dim][len(used[dim]) :]
    holders = [r for r in lookup.rows if set(parts) <= set(lookup.spec[r])]
    if stored[dim][: len(kept)] != kept or lookup.spec[column] != kept or not holders:
        return None
    rows, table = _local(lookup.result, lookup.spec, shards), _local(lookup.table, used, shards)
    if _WEIGHT * rows > table:
        return None
    cut = list(lookup.spec)
    cut[holders[0]] = tuple(p for p in cut[holders[0]] if p not in parts)
    indices = (*(cut[r] for r in lookup.rows), ())
    cut[column] = (*kept, *parts)
    return RowMove(indices, tuple(cut), lookup.spec, parts)


def _local(shape: tuple[int, ...], spec: Spec, shards: Mapping[str, int]) -> float:
    """Elements on a device."""
    return math.prod(shape) / math.prod(shards[p] for dim in spec for p in dim)
