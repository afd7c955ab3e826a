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
from jax.sharding import Mesh, PartitionSpec

from passes.attention.arrays import Arrays, both_dims, is_differentiable, key_dims, query_dims
from passes.attention.band import HIDDEN
from passes.attention.block import Saved, finished, to_result, to_rows
from passes.attention.pattern import Attention
from passes.attention.ring import Ring
from passes.attention.zigzag import from_zigzag, to_zigzag


class Method(Protocol):
    """How attention is spread: local functions, and where their arrays are cut."""

    @property
    def attention(self) -> Attention:
        """What is computed."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Mesh axes that it is spread over."""

    def given(self) -> Arrays:
        """Dimension in which each array is cut; None where it is whole."""

    def kept(self) -> Arrays:
        """The same for the arrays that are kept for the backward pass."""

    def rows(self) -> tuple[int | None, int | None]:
        """Of the result, and of one number a row in the scores' layout."""

    def forward(self, arrays: Arrays) -> tuple[Any, Any, Any, Arrays]:
        """(result, greatest and total of each row, arrays to keep) of a device."""

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

    def given(self) -> Arrays:
        """See `Method`."""
        a = self.attention
        rows = tuple(d[0] for d in both_dims(a))
        neither = tuple(
            None for x in a.steps.leaves if not {a.steps.query, a.steps.key} & {*x.dims}
        )
        return Arrays(query_dims(a), key_dims(a), rows, neither)

    def kept(self) -> Arrays:
        """See `Method`."""
        return self.given()

    def rows(self) -> tuple[int | None, int | None]:
        """See `Method`."""
        return self.attention.result_dim, self.attention.steps.query

    def forward(self, arrays: Arrays) -> tuple[Any, Any, Any, Arrays]:
        """See `Method`."""
        arrays = self._moved(arrays, to_zigzag)
        state = self.ring.forward(arrays)
        a = self.attention
        result = finished(a, state, a.eqn.outvars[0].aval.dtype)  # type: ignore[attr-defined]
        return self._there(result, from_zigzag), state.greatest, state.total, arrays

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
        return self._moved(dataclasses.replace(found, neither=neither), from_zigzag)

    def _moved(self, arrays: Arrays, way: Callable[..., Any]) -> Arrays:
        if self.ring.chunks == 1:
            return arrays
        given = self.given()
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
        result, greatest, _, _ = _forward(method, mesh, arrays)
        return result, greatest

    def forward(arrays: Arrays) -> Any:
        result, greatest, total, kept = _forward(method, mesh, arrays)
        return (result, greatest), (kept, result, greatest, total)

    def backward(residuals: Any, cotangents: Any) -> Any:
        kept, result, greatest, total = residuals
        return (_backward(method, mesh, kept, result, greatest, total, cotangents[0]),)

    run.defvjp(forward, backward)
    result, greatest = run(arrays)
    if not rows_may_be_hidden(method.attention):
        return result
    return _with_hidden_rows(method.attention, result, greatest, arrays.keys[1])


def rows_may_be_hidden(attention: Attention) -> bool:
    """Whether a query may see no key at all, and blocks of keys are left out for it."""
    band = attention.band
    if band.is_everything:
        return False
    same = attention.queries == attention.keys
    return not (band.alone and same and band.least <= 0 <= band.most)


def _with_hidden_rows(attention: Attention, result: Any, greatest: Any, value: Any) -> Any:
    """A row all of whose scores are the same huge negative weighs all values alike."""
    a = attention
    shape = list(a.shape)
    shape[a.steps.query] = 1
    weights = jnp.transpose(jnp.full(shape, 1 / a.keys, a.weights_dtype), a.weights_order)
    both = (weights, value) if a.result.first else (value, weights)
    params = {**a.result.params, "preferred_element_type": result.dtype}
    mean = jax.lax.dot_general_p.bind(*both, **params)
    hidden = to_result(a, jax.lax.stop_gradient(greatest) < HIDDEN / 2)
    return jnp.where(hidden, mean, result)


def _forward(method: Method, mesh: Mesh, arrays: Arrays) -> tuple[Any, Any, Any, Arrays]:
    wide, row = method.rows()
    a = method.attention
    rows = _spec(row, len(a.shape), method)
    outs = (
        _spec(wide, len(a.result_dims), method),
        rows,
        rows,
        _specs(method.kept(), arrays, method),
    )
    found: tuple[Any, Any, Any, Arrays] = _shard_map(
        method.forward, mesh, method, (_specs(method.given(), arrays, method),), outs
    )(arrays)
    return found


def _backward(
    method: Method, mesh: Mesh, kept: Arrays, result: Any, greatest: Any, total: Any, bar: Any
) -> Arrays:
    a = method.attention
    wide, row = method.rows()
    inner = to_rows(a, bar.astype(greatest.dtype) * result.astype(greatest.dtype))
    rows = _spec(row, len(a.shape), method)
    saved = Saved(bar, greatest, total, inner)
    specs = (
        _specs(method.kept(), kept, method),
        Saved(_spec(wide, len(a.result_dims), method), rows, rows, rows),
    )
    given = _specs(method.given(), kept, method)

    def local(kept: Arrays, saved: Saved) -> Arrays:
        found = method.backward(kept, saved)
        return jax.tree.map(
            lambda x, like: x if x is None else x.astype(like.dtype),
            found, kept, is_leaf=lambda x: x is None,
        )  # fmt: skip

    outs = jax.tree.map(lambda x, spec: spec if is_differentiable(x) else None, kept, given)
    found: Arrays = _shard_map(local, mesh, method, specs, outs)(kept, saved)
    return found


def _spec(dim: int | None, rank: int, method: Method) -> PartitionSpec:
    if dim is None:
        return PartitionSpec()
    axes = method.axes
    names = [None] * rank
    names[dim] = axes if len(axes) > 1 else axes[0]  # type: ignore[call-overload]
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
    context = jax.sharding.get_abstract_mesh()
    inside = all(axis in context.axis_names for axis in method.axes)
    # Types of what varies over the axis are left out: no derivative is taken through this.
    return jax.shard_map(
        function,
        mesh=None if inside else mesh,
        in_specs=specs,
        out_specs=outs,
        axis_names=set(method.axes),
        check_vma=False,
    )
