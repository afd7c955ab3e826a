"""Attention of whole arrays, computed over the devices of mesh axes, forward and backward.

`jax.shard_map` over those axes alone: other axes of the mesh stay the partitioner's. The derivative
is a rule of its own, around both: what the backward pass needs are the arrays of attention, its
result, and two numbers a row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from passes.attention.arrays import (
    Arrays,
    as_given,
    both_dims,
    is_differentiable,
    key_dims,
    leaves_along,
    query_dims,
)
from passes.attention.band import HIDDEN
from passes.attention.block import Saved, finished, to_result, to_rows
from passes.attention.pattern import Attention
from passes.attention.ring import Ring
from passes.attention.steps import Along
from passes.attention.zigzag import from_zigzag, to_zigzag


@dataclasses.dataclass(frozen=True)
class Forward:
    """What the forward pass makes; a pytree.

    Attributes:
      result: of attention.
      hidden: rows that saw no key, in the layout of the scores with one key; None where each row is
        sure to see one, or all blocks of keys were computed.
      greatest, total: of each row, in the order in which `kept` is.
      kept: the arrays, for the backward pass.
    """

    result: Any
    hidden: Any
    greatest: Any
    total: Any
    kept: Arrays


jax.tree_util.register_dataclass(
    Forward, data_fields=["result", "hidden", "greatest", "total", "kept"], meta_fields=[]
)


class Method(Protocol):
    """How attention is spread: local functions, and where their arrays are cut."""

    @property
    def attention(self) -> Attention:
        """What is computed."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Mesh axes that it is spread over."""

    @property
    def positions_outside(self) -> bool:
        """Whether query, key, value and result are cut along positions around attention."""

    def cut(self) -> Arrays:
        """The dimension in which each array is cut; None where it is whole."""

    def rows(self) -> tuple[int, int]:
        """The same of the result, and of one number a row in the scores' layout."""

    def forward(self, arrays: Arrays) -> Forward:
        """A device's share."""

    def backward(self, kept: Arrays, saved: Saved) -> Arrays:
        """Gradients by the arrays as given, from those kept."""


@dataclasses.dataclass(frozen=True)
class RingMethod:
    """Positions stay cut; blocks go round a ring."""

    ring: Ring

    @property
    def attention(self) -> Attention:
        """See `Method`."""
        return self.ring.attention

    @property
    def axes(self) -> tuple[str, ...]:
        """See `Method`."""
        return self.ring.axes

    @property
    def positions_outside(self) -> bool:
        """See `Method`; `shard_map` asks for it as it is."""
        return False

    def cut(self) -> Arrays:
        """See `Method`."""
        a = self.attention
        rows = tuple(d[0] for d in both_dims(a))
        neither = tuple(None for _ in leaves_along(a, Along.NEITHER))
        return Arrays(query_dims(a), key_dims(a), rows, neither)

    def rows(self) -> tuple[int, int]:
        """See `Method`."""
        return self.attention.result_dim, self.attention.steps.query

    def forward(self, arrays: Arrays) -> Forward:
        """See `Method`."""
        arrays = self._moved(arrays, to_zigzag)
        state = self.ring.forward(arrays)
        a = self.attention
        result = finished(a, state, a.eqn.outvars[0].aval.dtype)  # type: ignore[attr-defined]
        hidden = hidden_rows(a, state.greatest)
        if hidden is not None:
            hidden = self._one(hidden, a.steps.query, from_zigzag)
        result = self._there(result, from_zigzag)
        return Forward(result, hidden, state.greatest, state.total, arrays)

    def backward(self, kept: Arrays, saved: Saved) -> Arrays:
        """See `Method`."""
        row = self.attention.steps.query
        saved = dataclasses.replace(
            saved,
            cotangent=self._there(saved.cotangent, to_zigzag),
            inner=self._one(saved.inner, row, to_zigzag),
        )
        found = self.ring.backward(kept, saved)
        neither = tuple(None if x is None else jax.lax.psum(x, self.axes) for x in found.neither)
        whole = as_given(dataclasses.replace(found, neither=neither), kept)
        return self._moved(whole, from_zigzag)

    def _moved(self, arrays: Arrays, way: Callable[..., Any]) -> Arrays:
        if self.ring.chunks == 1:
            return arrays
        given = self.cut()
        return Arrays(
            tuple(map(lambda x, d: self._one(x, d, way), arrays.queries, given.queries)),
            tuple(map(lambda x, d: self._one(x, d, way), arrays.keys, given.keys)),
            tuple(map(lambda x, d: self._one(x, d, way), arrays.both, given.both)),
            arrays.neither,
        )

    def _there(self, result: Any, way: Callable[..., Any]) -> Any:
        return self._one(result, self.attention.result_dim, way)

    def _one(self, x: Any, dim: int, way: Callable[..., Any]) -> Any:
        if x is None or self.ring.chunks == 1:
            return x
        return way(x, dim, self.axes, self.ring.size)


def attend(method: Method, mesh: Mesh, arrays: Arrays) -> Any:
    """The result of attention, of whole arrays.

    Differentiable by every floating array, in reverse mode.

    Args:
      method: how it is spread.
      mesh: holds the method's axes, all of them Auto. Where a mesh with these axes is set already
        (`jax.set_mesh`, or inside another `shard_map`), that one is used.
      arrays: of the attention, whole.
    """

    @jax.custom_vjp
    def run(arrays: Arrays) -> tuple[Any, Any]:
        found = _forward(method, mesh, arrays)
        return found.result, found.hidden

    def forward(arrays: Arrays) -> Any:
        found = _forward(method, mesh, arrays)
        return (found.result, found.hidden), found

    def backward(found: Forward, cotangents: Any) -> Any:
        return (_backward(method, mesh, found, cotangents[0]),)

    run.defvjp(forward, backward)
    a = method.attention
    if method.positions_outside:
        (query, *rows), (key, value, *columns) = arrays.queries, arrays.keys
        query, key, value = (
            _along(x, dim, method, mesh)
            for x, dim in ((query, a.query_dim), (key, a.key_dim), (value, a.value_dim))
        )
        arrays = dataclasses.replace(arrays, queries=(query, *rows), keys=(key, value, *columns))
    result, hidden = run(arrays)
    if hidden is not None:
        result = _with_hidden_rows(a, result, hidden, arrays.keys[1])
    return _along(result, a.result_dim, method, mesh) if method.positions_outside else result


def _along(x: Any, dim: int, method: Method, mesh: Mesh) -> Any:
    """The array, cut along one dimension; how it is cut otherwise is left open."""
    names: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    names[dim] = method.axes
    spec = PartitionSpec(*names)
    inside = _is_set(method)
    return jax.lax.with_sharding_constraint(x, spec if inside else NamedSharding(mesh, spec))


def _is_set(method: Method) -> bool:
    """Whether a mesh with the method's axes is set here."""
    context = jax.sharding.get_abstract_mesh()
    return all(axis in context.axis_names for axis in method.axes)


def hidden_rows(attention: Attention, greatest: Any) -> Any:
    """Rows whose scores are all hugely negative, where blocks of keys were left out for them."""
    return greatest < HIDDEN / 2 if rows_may_be_hidden(attention) else None


def rows_may_be_hidden(attention: Attention) -> bool:
    """Whether a query may see no key at all, and blocks of keys are left out for it."""
    band = attention.band
    if band.is_everything:
        return False
    same = attention.queries == attention.keys
    return not (band.alone and same and band.least <= 0 <= band.most)


def _with_hidden_rows(attention: Attention, result: Any, hidden: Any, value: Any) -> Any:
    """A row all of whose scores are the same huge negative weighs all values alike."""
    a = attention
    shape = list(a.shape)
    shape[a.steps.query] = 1
    weights = jnp.transpose(jnp.full(shape, 1 / a.keys, a.weights_dtype), a.weights_order)
    both = (weights, value) if a.result.first else (value, weights)
    params = {**a.result.params, "preferred_element_type": result.dtype}
    mean = jax.lax.dot_general_p.bind(*both, **params)
    return jnp.where(to_result(a, hidden), mean, result)


def _forward(method: Method, mesh: Mesh, arrays: Arrays) -> Forward:
    wide, row = method.rows()
    a = method.attention
    rows = _spec(row, len(a.shape), method)
    outs = Forward(
        _spec(wide, len(a.result_dims), method),
        rows if rows_may_be_hidden(a) else None,
        rows,
        rows,
        _specs(method.cut(), arrays, method),
    )
    given = (_specs(method.cut(), arrays, method),)
    found: Forward = _shard_map(method.forward, mesh, method, given, outs)(arrays)
    return found


def _backward(method: Method, mesh: Mesh, found: Forward, cotangent: Any) -> Arrays:
    a, kept, greatest = method.attention, found.kept, found.greatest
    wide, row = method.rows()
    inner = to_rows(a, cotangent.astype(greatest.dtype) * found.result.astype(greatest.dtype))
    rows = _spec(row, len(a.shape), method)
    saved = Saved(cotangent, greatest, found.total, inner)
    specs = (
        _specs(method.cut(), kept, method),
        Saved(_spec(wide, len(a.result_dims), method), rows, rows, rows),
    )
    given = _specs(method.cut(), kept, method)

    outs = jax.tree.map(lambda x, spec: spec if is_differentiable(x) else None, kept, given)
    gradients: Arrays = _shard_map(method.backward, mesh, method, specs, outs)(kept, saved)
    return gradients


def _spec(dim: int | None, rank: int, method: Method) -> PartitionSpec:
    names: list[Any] = [None] * rank
    if dim is not None:
        names[dim] = method.axes
    return PartitionSpec(*names)


def _specs(dims: Arrays, like: Arrays, method: Method) -> Arrays:
    def of(places: tuple[Any, ...], arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_spec(d, x.ndim, method) for d, x in zip(places, arrays, strict=True))

    return Arrays(
        of(dims.queries, like.queries),
        of(dims.keys, like.keys),
        of(dims.both, like.both),
        of(dims.neither, like.neither),
    )


def _shard_map(
    function: Callable[..., Any], mesh: Mesh, method: Method, specs: Any, outs: Any
) -> Callable[..., Any]:
    # Types of what varies over the axis are left out: no derivative is taken through this.
    return jax.shard_map(
        function,
        mesh=None if _is_set(method) else mesh,
        in_specs=specs,
        out_specs=outs,
        axis_names=set(method.axes),
        check_vma=False,
    )
