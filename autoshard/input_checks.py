"""Checks of what the user hands to a compiled model, with the remedy in the message."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autoshard.adapters import path_name
from autoshard.errors import BatchError, ModelError, PlanError
from autoshard.plan import Plan
from autoshard.state import TrainState
from autoshard.trace import abstract
from passes.program import Role


def same_structure(first: Any, second: Any) -> bool:
    """Whether two trees have one structure."""
    structures: list[Any] = [jax.tree.structure(first), jax.tree.structure(second)]
    return bool(structures[0] == structures[1])


def with_shardings(tree: Any, shardings: Any) -> Any:
    """An abstract tree with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def check_alive(state: TrainState) -> None:
    """Raises PlanError for a donated state: the runtime would end the process instead."""
    arrays = [x for x in jax.tree.leaves(state) if isinstance(x, jax.Array)]
    if any(x.is_deleted() for x in arrays):
        raise PlanError(
            "this state was given to step before, which reuses its memory: go on with the state "
            "that step returned, or compile with donate=False"
        )


def as_key(rng: Any) -> Any:
    """A key of JAX's default implementation from a key, a legacy uint32 key or a seed.

    Raises:
      ModelError: it is none of these.
    """
    if isinstance(rng, (int, np.integer)):
        return jax.random.key(int(rng))
    dtype = getattr(rng, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and rng.shape == ():
        default = jax.eval_shape(lambda: jax.random.key(0)).dtype
        return rng if dtype == default else jax.random.key(int(jax.random.bits(rng)))
    if dtype == jnp.uint32 and rng.ndim == 1:
        return jax.random.wrap_key_data(rng)
    if dtype is not None and jnp.issubdtype(dtype, jnp.integer) and rng.shape == ():
        return jax.random.key(int(rng))
    raise ModelError(
        f"cannot make a PRNG key of {type(rng).__name__}: pass jax.random.key(seed) or an integer "
        "seed"
    )


def state_problem(state: TrainState, wanted: TrainState) -> str | None:
    """What is wrong with a state that the compiled step refused, in words."""
    if not same_structure(state, wanted):
        return (
            "the state has another structure than this model's and optimizer's: make it with "
            "init, or restore it into `abstract_state`"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(wanted), strict=True)
    for (path, have), want in pairs:
        if have.shape != want.shape or have.dtype != want.dtype:
            return (
                f"{path_name(path)} of the state is {have.dtype}{list(have.shape)} and the "
                f"plan has {want.dtype}{list(want.shape)}: make the state with init"
            )
        if not have.sharding.is_equivalent_to(want.sharding, have.ndim):
            return (
                f"{path_name(path)} of the state is laid out as {have.sharding} and the plan "
                f"has {want.sharding}: move it with jax.device_put(state, "
                "compiled.state_sharding)"
            )
    return None


def check_batch(batch: Any, planned: Any, plan: Plan) -> None:
    """Raises BatchError unless a batch has the structure, ranks and dtypes of the planned one, and
    sizes that divide by the plan's shards.
    """
    if not same_structure(batch, planned):
        raise BatchError(
            f"the batch has structure {jax.tree.structure(batch)} and the plan was made for "
            f"{jax.tree.structure(planned)}: pass batches of one structure"
        )
    rows = [a for a in plan.arrays if a.leaf.role is Role.BATCH]
    leaves = jax.tree_util.tree_leaves_with_path(abstract(batch))
    for (path, have), want, row in zip(leaves, jax.tree.leaves(planned), rows, strict=True):
        name = path_name(path) or "the batch"
        if len(have.shape) != len(want.shape) or have.dtype != want.dtype:
            raise BatchError(
                f"{name} is {have.dtype}{list(have.shape)} and the plan was made for "
                f"{want.dtype}{list(want.shape)}: only sizes may change"
            )
        for d, (size, parts) in enumerate(zip(have.shape, row.compute, strict=True)):
            degree = plan.mesh.refined.shards(parts)
            if size % degree:
                what = "the batch dimension" if d == 0 else f"dimension {d}"
                raise BatchError(
                    f"{what} {size} of {name} does not divide by the {degree} shards of the "
                    f"plan's mesh axes {'*'.join(parts)}: use a multiple of {degree} (drop the "
                    "remainder of the last batch, or pad it)"
                )
