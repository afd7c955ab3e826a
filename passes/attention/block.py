"""One block of queries against one block of keys: what a kernel would do.

The running softmax (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018):
after each block the state holds the greatest score of every row, the sum of exp(score - greatest),
and the values weighted by it. The backward pass makes the weights again from scores, greatest and
sum, which are all that is kept.

`JnpBlock` is plain jax.numpy, and differentiates the steps of the mask by `jax.vjp`. A kernel takes
its place by having the same two methods.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from passes.attention.arrays import Arrays, is_differentiable, leaf_values
from passes.attention.pattern import Attention


@dataclasses.dataclass(frozen=True)
class State:
    """A softmax in progress; a pytree.

    Attributes:
      values: weighted sum of values, in the layout of the result, float32 or wider.
      greatest: of each row, in the layout of the scores with one key.
      total: sum of exp(score - greatest), alike.
    """

    values: Any
    greatest: Any
    total: Any


jax.tree_util.register_dataclass(State, data_fields=["values", "greatest", "total"], meta_fields=[])


@dataclasses.dataclass(frozen=True)
class Saved:
    """What the backward pass knows of a block of queries; a pytree.

    Attributes:
      cotangent: of the result, in its layout.
      greatest, total: of `State`.
      inner: sum of cotangent times result over each row's values, in the layout of `greatest`.
    """

    cotangent: Any
    greatest: Any
    total: Any
    inner: Any


jax.tree_util.register_dataclass(
    Saved, data_fields=["cotangent", "greatest", "total", "inner"], meta_fields=[]
)


class Block(Protocol):
    """The work of one block."""

    def forward(
        self, attention: Attention, arrays: Arrays, starts: Mapping[int, Any], state: State
    ) -> State:
        """The state after these keys, of these queries."""

    def backward(
        self, attention: Attention, arrays: Arrays, starts: Mapping[int, Any], saved: Saved
    ) -> Arrays:
        """Gradients by the arrays; None where they have none."""


def to_result(attention: Attention, rows: Any) -> Any:
    """From the layout of the scores, with one key, to that of the result, with one value."""
    along = [d for d in attention.result_dims if d is not None]
    shape = [1 if d is None else rows.shape[d] for d in attention.result_dims]
    rest = [d for d in range(rows.ndim) if d not in along]
    return jnp.reshape(jnp.transpose(rows, (*along, *rest)), shape)


def to_rows(attention: Attention, result: Any) -> Any:
    """Sums over the values, from the layout of the result to that of the scores with one key."""
    own = [p for p, d in enumerate(attention.result_dims) if d is None]
    summed = jnp.sum(result, axis=tuple(own))
    along = [d for d in attention.result_dims if d is not None]
    by_dim = jnp.transpose(summed, [along.index(d) for d in sorted(along)])
    shape = iter(by_dim.shape)
    whole = [next(shape) if d in along else 1 for d in range(len(attention.shape))]
    return jnp.reshape(by_dim, whole)


def row_shape(attention: Attention, sizes: Mapping[int, int]) -> tuple[int, ...]:
    """Shape of one number for each row of scores."""
    return tuple(
        1 if d == attention.steps.key else sizes.get(d, n) for d, n in enumerate(attention.shape)
    )


def finished(attention: Attention, state: State, dtype: Any) -> Any:
    """The result, once all keys were seen; zero for rows that have seen none."""
    total = to_result(attention, state.total)
    result = state.values / jnp.where(total == 0, 1, total)
    return result.astype(dtype)


def merged(attention: Attention, one: State, other: State) -> State:
    """The state after the keys of both."""
    greatest = jnp.maximum(one.greatest, other.greatest)
    safe = _finite(greatest)
    keep, add = jnp.exp(one.greatest - safe), jnp.exp(other.greatest - safe)
    values = one.values * to_result(attention, keep) + other.values * to_result(attention, add)
    return State(values, greatest, one.total * keep + other.total * add)


def _finite(greatest: Any) -> Any:
    return jnp.where(jnp.isneginf(greatest), 0, greatest)


@dataclasses.dataclass(frozen=True)
class JnpBlock:
    """The block in plain jax.numpy."""

    def forward(
        self, attention: Attention, arrays: Arrays, starts: Mapping[int, Any], state: State
    ) -> State:
        """See `Block`."""
        scores = _scores(attention, arrays, starts).astype(state.total.dtype)
        key = attention.steps.key
        greatest = jnp.maximum(state.greatest, jnp.max(scores, axis=key, keepdims=True))
        safe = _finite(greatest)
        weights = jnp.exp(scores - safe)
        keep = jnp.exp(state.greatest - safe)
        total = state.total * keep + jnp.sum(weights, axis=key, keepdims=True)
        added = _values(attention, weights, arrays.keys[1])
        values = state.values * to_result(attention, keep) + added.astype(state.values.dtype)
        return State(values, greatest, total)

    def backward(
        self, attention: Attention, arrays: Arrays, starts: Mapping[int, Any], saved: Saved
    ) -> Arrays:
        """See `Block`."""
        leaves, structure = jax.tree.flatten(arrays)
        floats = [i for i, x in enumerate(leaves) if is_differentiable(x)]
        value = arrays.keys[1]

        def scores_of(given: list[Any]) -> Any:
            every = list(leaves)
            for i, x in zip(floats, given, strict=True):
                every[i] = x
            return _scores(attention, jax.tree.unflatten(structure, every), starts)

        scores, scores_back = jax.vjp(scores_of, [leaves[i] for i in floats])
        total = jnp.where(saved.total == 0, 1, saved.total)
        weights = jnp.exp(scores.astype(total.dtype) - _finite(saved.greatest)) / total
        result, values_back = jax.vjp(lambda w, v: _values(attention, w, v), weights, value)
        weights_bar, value_bar = values_back(saved.cotangent.astype(result.dtype))
        scores_bar = weights * (weights_bar - saved.inner)
        (found,) = scores_back(scores_bar.astype(scores.dtype))
        gradients: list[Any] = [None] * len(leaves)
        for i, x in zip(floats, found, strict=True):
            gradients[i] = x
        by_array: Arrays = _unflattened(structure, gradients)
        key_bar, _, *rest = by_array.keys
        return dataclasses.replace(by_array, keys=(key_bar, value_bar, *rest))


def _unflattened(structure: Any, leaves: list[Any]) -> Arrays:
    """As the tree was, None in places without a gradient."""
    return Arrays(*(tuple(part) for part in _parts(structure, leaves)))


def _parts(structure: Any, leaves: list[Any]) -> list[list[Any]]:
    rest = iter(leaves)
    return [[next(rest) for _ in range(child.num_leaves)] for child in structure.children()]


def _scores(attention: Attention, arrays: Arrays, starts: Mapping[int, Any]) -> Any:
    """The softmax's operand for a block."""
    query, key = arrays.queries[0], arrays.keys[0]
    product = attention.scores
    both = (query, key) if product.first else (key, query)
    raw = jax.lax.dot_general_p.bind(*both, **product.params)
    steps = attention.steps
    sizes = {d: n for d, n in zip(steps.scores, raw.shape, strict=True) if d is not None}
    return steps.values(raw, leaf_values(attention, arrays), sizes, starts)


def _values(attention: Attention, weights: Any, value: Any) -> Any:
    """Weights times values, summed in float32 or wider."""
    cast = jnp.transpose(weights.astype(attention.weights_dtype), attention.weights_order)
    product = attention.result
    both = (cast, value) if product.first else (value, cast)
    wide = jnp.promote_types(jnp.result_type(cast, value), jnp.float32)
    params = {**product.params, "preferred_element_type": wide}
    return jax.lax.dot_general_p.bind(*both, **params)
