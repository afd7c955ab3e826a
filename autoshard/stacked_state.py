"""A training state whose repeated layers are stacked, and the same in the user's own tree.

    user's tree    params/layers/0/kernel [a, b], params/layers/1/kernel [a, b], ...
    stacked tree   params/layers/*/kernel [L, a, b]

The optimizer's state mirrors the parameters in both. Steps run on the stacked tree, checkpoints
hold the user's.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from autoshard.adapters import path_name
from autoshard.optimizer_paths import parameter_of
from autoshard.state import TrainState
from passes.host_stream import DEVICE, HOST
from passes.program import Leaf, Program, Role


@dataclasses.dataclass(frozen=True)
class Stacking:
    """Which parameters are stacked.

    Attributes:
      leaves: the program's parameters; those with `parts` are stacks.
      params: the user's tree of parameters, abstract.
    """

    leaves: tuple[Leaf, ...]
    params: Any

    @property
    def stacks(self) -> bool:
        """Whether anything is stacked."""
        return any(leaf.parts for leaf in self.leaves)

    def stacked_params(self, params: Any) -> Any:
        """The stacked tree, nested dicts by the parts of the paths; the user's if none is."""
        if not self.stacks:
            return params
        own = _by_path(params)
        tree: dict[str, Any] = {}
        for leaf in self.leaves:
            arrays = [own[path] for path in leaf.parts or (leaf.path,)]
            _insert(tree, leaf.path, _stack(arrays) if leaf.parts else arrays[0])
        return tree

    def stacked(
        self, state: TrainState, like: TrainState, places: TrainState | None = None
    ) -> TrainState:
        """A state in the user's tree, as one that is stacked.

        Args:
          state: concrete or abstract arrays.
          like: any stacked state, abstract: its structure.
          places: shardings of the result, where some of the optimizer's state is in host memory:
            each array is then fetched, stacked and placed by itself.
        """
        return dataclasses.replace(
            state,
            params=self.stacked_params(state.params),
            opt_state=self._optimizer(
                state.opt_state, like.opt_state, self._to_stacked(), places and places.opt_state
            ),
        )

    def unstacked(
        self, state: TrainState, like: TrainState, places: TrainState | None = None
    ) -> TrainState:
        """A stacked state in the user's tree; `like` is any such state, `places` as above."""
        arrays = _by_path(state.params)
        found = {}
        for leaf in self.leaves:
            for index, path in enumerate(leaf.parts or (leaf.path,)):
                array = arrays[leaf.path]
                found[path] = _part(array, index) if leaf.parts else array
        params = jax.tree.unflatten(
            jax.tree.structure(like.params), [found[path] for path in _by_path(like.params)]
        )
        opt_state = self._optimizer(
            state.opt_state, like.opt_state, self._to_user(), places and places.opt_state
        )
        return dataclasses.replace(state, params=params, opt_state=opt_state)

    def _to_stacked(self) -> Mapping[str, tuple[tuple[str, int | None], ...]]:
        return {
            leaf.path: tuple((p, None) for p in leaf.parts or (leaf.path,)) for leaf in self.leaves
        }

    def _to_user(self) -> Mapping[str, tuple[tuple[str, int | None], ...]]:
        return {
            path: ((leaf.path, index if leaf.parts else None),)
            for leaf in self.leaves
            for index, path in enumerate(leaf.parts or (leaf.path,))
        }

    def _optimizer(
        self,
        state: Any,
        like: Any,
        sources: Mapping[str, tuple[tuple[str, int | None], ...]],
        places: Any,
    ) -> Any:
        """Another structure's leaves, each from the leaves of `state` that its parameter names."""
        have = _by_path(state)
        there = {} if places is None else _by_path(places)
        stacks = {leaf.path for leaf in self.leaves if leaf.parts}
        leaves = []
        for name in _by_path(like):
            parameter = parameter_of(name, sources)
            if parameter is None:
                leaves.append(have[name])
                continue
            prefix = name.removesuffix(parameter)
            found = [(_fetched(have[prefix + path]), index) for path, index in sources[parameter]]
            parts = [x if index is None else _part(x, index) for x, index in found]
            made = _stack(parts) if parameter in stacks else parts[0]
            leaves.append(jax.device_put(made, there[name]) if name in there else made)
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def stacking_of(program: Program, params: Any) -> Stacking:
    """How a program's parameters are stacked, given the user's abstract tree."""
    leaves = tuple(leaf for leaf in program.inputs if leaf.role is Role.PARAMETER)
    return Stacking(leaves, params)


def _by_path(tree: Any) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _insert(tree: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split("/")
    for name in above:
        tree = tree.setdefault(name, {})
    tree[last] = value


def _fetched(x: Any) -> Any:
    """An array in the device's memory."""
    sharding = getattr(x, "sharding", None)
    if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer):
        return x
    if getattr(sharding, "memory_kind", None) != HOST:
        return x
    return jax.device_put(x, x.sharding.with_memory_kind(DEVICE))


def _stack(arrays: Sequence[Any]) -> Any:
    if not isinstance(arrays[0], jax.ShapeDtypeStruct):
        return jnp.stack(arrays)
    return jax.ShapeDtypeStruct((len(arrays), *arrays[0].shape), arrays[0].dtype)


def _part(stack: Any, index: int) -> Any:
    if not isinstance(stack, jax.ShapeDtypeStruct):
        return stack[index]
    sharding = stack.sharding
    if isinstance(sharding, NamedSharding):
        spec = PartitionSpec(*tuple(sharding.spec)[1:])
        sharding = NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
    return jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype, sharding=sharding)
