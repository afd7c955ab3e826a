"""The arrays of an attention, sorted by how they are cut.

queries   the query, and what has a row for each query (segment ids of queries, ...)
keys      key, value, and what has a row for each key (segment ids, padding, ...)
both      what has a row for each query and a column for each key (a dense bias)
neither   what is needed whole (slopes of a bias, a temperature)
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from passes.attention.pattern import Attention
from passes.attention.steps import Along, Leaf


@dataclasses.dataclass(frozen=True)
class Arrays:
    """One value for each array of an attention; None where there is no value (a gradient).

    Registered as a pytree.
    """

    queries: tuple[Any, ...]
    keys: tuple[Any, ...]
    both: tuple[Any, ...] = ()
    neither: tuple[Any, ...] = ()


jax.tree_util.register_dataclass(
    Arrays, data_fields=["queries", "keys", "both", "neither"], meta_fields=[]
)


def leaves_along(attention: Attention, along: Along) -> list[Leaf]:
    """Leaves that are cut in one way, in order."""
    return [leaf for leaf in attention.steps.leaves if leaf.along is along]


def query_dims(attention: Attention) -> tuple[int, ...]:
    """The dimension of positions of each of `Arrays.queries`."""
    leaves = leaves_along(attention, Along.QUERY)
    along = attention.steps.query
    return (attention.query_dim, *(leaf.dims.index(along) for leaf in leaves))


def key_dims(attention: Attention) -> tuple[int, ...]:
    """The dimension of positions of each of `Arrays.keys`."""
    leaves = leaves_along(attention, Along.KEY)
    along = attention.steps.key
    own = (attention.key_dim, attention.value_dim)
    return (*own, *(leaf.dims.index(along) for leaf in leaves))


def both_dims(attention: Attention) -> tuple[tuple[int, int], ...]:
    """The dimensions of queries and keys of each of `Arrays.both`."""
    leaves = leaves_along(attention, Along.BOTH)
    along = attention.steps
    return tuple((x.dims.index(along.query), x.dims.index(along.key)) for x in leaves)


def leaf_values(attention: Attention, arrays: Arrays) -> list[Any]:
    """The values of `attention.steps.leaves`, in order."""
    rest = {
        Along.QUERY: iter(arrays.queries[1:]),
        Along.KEY: iter(arrays.keys[2:]),
        Along.BOTH: iter(arrays.both),
        Along.NEITHER: iter(arrays.neither),
    }
    return [next(rest[leaf.along]) for leaf in attention.steps.leaves]


def sorted_arrays(
    attention: Attention, operands: Sequence[Any], value_of: Callable[[Leaf], Any]
) -> Arrays:
    """Arrays from query, key, value, and the value of each leaf."""
    query, key, value = operands
    by = {along: tuple(map(value_of, leaves_along(attention, along))) for along in Along}
    return Arrays(
        (query, *by[Along.QUERY]), (key, value, *by[Along.KEY]), by[Along.BOTH], by[Along.NEITHER]
    )


def cut(arrays: Sequence[Any], dims: Sequence[int], start: Any, size: int) -> tuple[Any, ...]:
    """`size` rows of each array from `start` on; None stays None."""
    return tuple(
        x if x is None or (x.shape[d] == size and isinstance(start, int) and start == 0)
        else jax.lax.dynamic_slice_in_dim(x, start, size, d)
        for x, d in zip(arrays, dims, strict=True)
    )  # fmt: skip


def put(whole: Any, part: Any, start: Any, dim: int) -> Any:
    """The array with rows from `start` on replaced."""
    if part.shape == whole.shape:
        return part
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, dim)


def add_rows(
    wholes: Sequence[Any], parts: Sequence[Any], dims: Sequence[int], start: Any
) -> tuple[Any, ...]:
    """Each array with a part added to its rows from `start` on; None stays None."""
    found = []
    for whole, part, dim in zip(wholes, parts, dims, strict=True):
        if whole is not None:
            (rows,) = cut((whole,), (dim,), start, part.shape[dim])
            whole = put(whole, rows + part.astype(whole.dtype), start, dim)
        found.append(whole)
    return tuple(found)


def is_differentiable(x: Any) -> bool:
    """Whether an array has a gradient."""
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def sums(arrays: Sequence[Any]) -> tuple[Any, ...]:
    """Zeros to add gradients to, at least in float32; None for arrays without gradient."""
    return tuple(
        jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
        if is_differentiable(x)
        else None
        for x in arrays
    )


def as_given(gradients: Arrays, arrays: Arrays) -> Arrays:
    """Gradients in the types of what they are by; None stays None."""
    found: Arrays = jax.tree.map(
        lambda x, like: x if x is None else x.astype(like.dtype),
        gradients,
        arrays,
        is_leaf=lambda x: x is None,
    )
    return found
