"""Pytrees as checkpoints store them: a flat dict from the leaf's name to a plain array.

    params -> layers -> 0 -> kernel        becomes   "params/layers/0/kernel"

A flat dict survives what nested containers do not: integer keys (nnx lists), NamedTuples of optax
and dataclasses all come back as the caller's own tree, which alone says what they are.
Two kinds of leaves cannot be stored as they are: a typed PRNG key is stored as its key data (the
implementation's name beside it), and an array without elements only as its shape.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SHOWN_DIFFERENCES = 8


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """What is known of a stored leaf: the shape and dtype that its user sees.

    Attributes:
      shape: the logical shape; for a PRNG key without the trailing dimension of its key data.
      dtype: the dtype's name; `key<fry>` and the like for typed keys.
      key_impl: the PRNG implementation's name for a stored typed key, else None.
    """

    shape: tuple[int, ...]
    dtype: str
    key_impl: str | None = None

    @property
    def is_empty(self) -> bool:
        return math.prod(self.shape) == 0

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "dtype": self.dtype, "key_impl": self.key_impl}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LeafSpec":
        return cls(tuple(value["shape"]), value["dtype"], value["key_impl"])


@dataclasses.dataclass(frozen=True)
class StorableLeaves:
    """A tree ready to be written: `arrays` by name; `specs` of all leaves, empty ones too."""

    arrays: dict[str, Any]
    specs: dict[str, LeafSpec]


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by name, in flattening order. Names are unique."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    if len(set(names)) < len(names):
        # A key that itself contains "/": the longer form quotes keys, and so cannot collide.
        names = [jax.tree_util.keystr(path) for path, _ in flat]
    return {name: leaf for name, (_, leaf) in zip(names, flat, strict=True)}


def to_storable(tree: Any) -> StorableLeaves:
    """Turns `tree`, of concrete arrays, into what is written to disk."""
    arrays: dict[str, Any] = {}
    specs: dict[str, LeafSpec] = {}
    for name, leaf in named_leaves(tree).items():
        leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        spec = _spec_of(leaf)
        if _is_key(leaf):
            spec = dataclasses.replace(spec, key_impl=str(jax.random.key_impl(leaf)))
            leaf = jax.random.key_data(leaf)
        specs[name] = spec
        if not spec.is_empty:
            arrays[name] = leaf
    return StorableLeaves(arrays, specs)


def specs_of(abstract_tree: Any) -> dict[str, LeafSpec]:
    """Shape and dtype of every leaf by name; `key_impl` is not known from abstract keys."""
    return {name: _spec_of(leaf) for name, leaf in named_leaves(abstract_tree).items()}


def differences(stored: Mapping[str, LeafSpec], wanted: Mapping[str, LeafSpec]) -> list[str]:
    """Says in words where two trees differ; empty if what is stored fits what is wanted."""
    found = []
    for name in sorted(stored.keys() | wanted.keys()):
        have, want = stored.get(name), wanted.get(name)
        if have is None:
            found.append(f"`{name}` ({want}) is missing in the checkpoint")
        elif want is None:
            found.append(f"`{name}` ({have}) is in the checkpoint only")
        elif (have.shape, have.dtype) != (want.shape, want.dtype):
            found.append(f"`{name}` is {have} in the checkpoint but {want} in the model")
    if len(found) > _SHOWN_DIFFERENCES:
        rest = len(found) - _SHOWN_DIFFERENCES
        found = [*found[:_SHOWN_DIFFERENCES], f"and {rest} more leaves differ"]
    return found


def restore_targets(abstract_tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What to ask of the store: shape, dtype and sharding of every array that it holds."""
    targets = {}
    for name, leaf in named_leaves(abstract_tree).items():
        spec = _spec_of(leaf)
        if spec.is_empty:
            continue
        plain = _key_data_of(leaf) if _is_key(leaf) else leaf
        plain = plain if hasattr(plain, "dtype") else jnp.asarray(plain)
        # A key's sharding fits its key data too: the added dimension is last, and not in the spec.
        targets[name] = jax.ShapeDtypeStruct(plain.shape, plain.dtype, sharding=_sharding_of(leaf))
    return targets


def from_storable(
    arrays: Mapping[str, Any], stored: Mapping[str, LeafSpec], abstract_tree: Any
) -> Any:
    """Rebuilds a tree like `abstract_tree` from the restored `arrays`."""
    leaves = []
    for name, leaf in named_leaves(abstract_tree).items():
        spec, sharding = stored[name], _sharding_of(leaf)
        if spec.is_empty and not _is_key(leaf):
            value = jax.device_put(np.zeros(spec.shape, jnp.dtype(spec.dtype)), sharding)
        elif spec.is_empty:
            data = _key_data_of(leaf)
            value = jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype), impl=spec.key_impl)
        elif spec.key_impl is not None:
            keys = jax.random.wrap_key_data(arrays[name], impl=spec.key_impl)
            value = jax.device_put(keys, sharding)
        else:
            value = arrays[name]
        leaves.append(value)
    return jax.tree.unflatten(jax.tree.structure(abstract_tree), leaves)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data_of(key: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the key data behind a typed key, abstract or not."""
    return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(key.shape, key.dtype))


def _spec_of(leaf: Any) -> LeafSpec:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return LeafSpec(tuple(np.shape(leaf)), str(dtype))


def _sharding_of(leaf: Any) -> jax.sharding.Sharding:
    sharding = getattr(leaf, "sharding", None)
    return sharding if sharding is not None else jax.sharding.SingleDeviceSharding(jax.devices()[0])
