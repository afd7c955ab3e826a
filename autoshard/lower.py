"""From a program and a plan to functions that run on the mesh: autodiff, optimizer, constraints.

Parameters that are stored otherwise than they are used (ZeRO stage 3) are gathered at their use,
slice by slice where the program scans over a stack of them, and again in the backward pass
(`passes.lazy_inputs`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autoshard.adapters import path_name
from autoshard.layouts import ArrayLayout, Layout
from autoshard.optimizer_paths import mirrored_paths
from autoshard.parameter_gather import ParameterGather
from autoshard.plan import Plan
from autoshard.precision import cast_floating
from autoshard.staged_gather import inner_devices_of
from autoshard.state import TrainState
from autoshard.trace import TracedModel
from passes.accumulate import accumulated, whole_function
from passes.program import Role
from passes.spec import Spec, partition_spec, spec_of

# (gradients, optimizer's state, parameters, value=loss) -> (parameters, state)
Update = Callable[..., tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Shardings:
    """Trees of `NamedSharding`, each in the structure of what it lays out.

    Attributes:
      state: a `TrainState` of shardings.
      batch: of the batch.
      compute: of the parameters as used.
      gradient: of the gradients as kept.
    """

    state: TrainState
    batch: Any
    compute: Any
    gradient: Any


def _tree(like: Any, arrays: list[ArrayLayout], mesh: Mesh, kind: str) -> Any:
    leaves = [NamedSharding(mesh, partition_spec(getattr(a, kind))) for a in arrays]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def optimizer_specs(plan: Plan | Layout, opt_state: Any) -> list[Spec]:
    """A spec for each array of the optimizer's state, in the order of its leaves.

    State that mirrors a parameter (its path ends with the parameter's, and the shape is the same)
    is laid out as the plan says; anything else (counts, factored moments) is replicated.
    """
    by_path = {a.leaf.path: a for a in plan.arrays if a.leaf.role is Role.PARAMETER}
    mirrors = mirrored_paths(opt_state, {path: a.leaf.shape for path, a in by_path.items()})
    return [
        tuple(() for _ in leaf.shape) if path is None else by_path[path].opt
        for path, leaf in zip(mirrors, jax.tree.leaves(opt_state), strict=True)
    ]


def optimizer_bytes(plan: Plan | Layout, opt_state: Any) -> int:
    """Bytes of optimizer state on each device."""
    shards = plan.mesh.refined.by_name
    total = 0
    for leaf, spec in zip(
        jax.tree.leaves(opt_state), optimizer_specs(plan, opt_state), strict=True
    ):
        degree = math.prod(shards[p] for dim in spec for p in dim)
        total += math.prod(leaf.shape) * leaf.dtype.itemsize // degree
    return total


def make_shardings(plan: Plan, mesh: Mesh, traced: TracedModel, opt_state: Any) -> Shardings:
    """All shardings of a training state and a batch.

    Args:
      plan: the plan.
      mesh: a mesh with the plan's refined axes.
      traced: the program that the plan is for.
      opt_state: abstract optimizer state, or None when there is none.
    """
    by_role: Mapping[Role, list[ArrayLayout]] = {
        role: [a for a in plan.arrays if a.leaf.role is role] for role in Role
    }
    parameters = by_role[Role.PARAMETER]
    replicated = NamedSharding(mesh, PartitionSpec())
    specs = optimizer_specs(plan, opt_state)
    state = TrainState(
        step=replicated,
        params=_tree(traced.params, parameters, mesh, "param"),
        opt_state=jax.tree.unflatten(
            jax.tree.structure(opt_state),
            [NamedSharding(mesh, partition_spec(spec)) for spec in specs],
        ),
        model_state=_tree(traced.model_state, by_role[Role.MODEL_STATE], mesh, "param"),
        rng=replicated,
    )
    return Shardings(
        state=state,
        batch=_tree(traced.batch, by_role[Role.BATCH], mesh, "compute"),
        compute=_tree(traced.params, parameters, mesh, "compute"),
        gradient=_tree(traced.params, parameters, mesh, "grad"),
    )


def _gathers(traced: TracedModel, shardings: Shardings) -> list[ParameterGather | None]:
    """For each input of the program how it is gathered, or None."""
    stored, used, gradient = (
        jax.tree.leaves(tree)
        for tree in (shardings.state.params, shardings.compute, shardings.gradient)
    )
    named = jax.tree_util.tree_leaves_with_path(traced.params)
    mesh = shardings.state.step.mesh
    inner = inner_devices_of(mesh)
    gathers: list[ParameterGather | None] = [None] * len(traced.program.whole_inputs)
    for position, (path, leaf) in enumerate(named):
        shardings_of = (stored[position], used[position], gradient[position])
        s, u, g = (spec_of(x.spec, leaf.ndim) for x in shardings_of)
        if s != u:
            gathers[position] = ParameterGather(path_name(path), mesh, s, u, g, inner)
    return gathers


def forward_function(
    traced: TracedModel, shardings: Shardings
) -> Callable[..., tuple[Any, Any, Any]]:
    """(params, model_state, batch, rng) -> (loss, model state, metrics), by the traced program."""
    function = whole_function(traced.program, _gathers(traced, shardings))

    def forward(params: Any, model_state: Any, batch: Any, rng: Any) -> tuple[Any, Any, Any]:
        outputs = function(*jax.tree.leaves((params, model_state, batch)), rng)
        return _outputs(traced, outputs)

    return forward


def make_gradient(traced: TracedModel, shardings: Shardings) -> Callable[..., Any]:
    """(params, model_state, batch, rng) -> ((loss, (model state, metrics)), gradients)."""
    if traced.program.gradient is not None or traced.program.split is not None:
        return _gradient_by_rule(traced, shardings)
    forward = forward_function(traced, shardings)

    def loss(params: Any, model_state: Any, batch: Any, rng: Any) -> Any:
        value, new_state, metrics = forward(params, model_state, batch, rng)
        return value, (new_state, metrics)

    def gradient(params: Any, model_state: Any, batch: Any, rng: Any) -> Any:
        result, gradients = jax.value_and_grad(loss, has_aux=True)(params, model_state, batch, rng)
        return result, jax.lax.with_sharding_constraint(gradients, shardings.gradient)

    return gradient


def _gradient_by_rule(traced: TracedModel, shardings: Shardings) -> Callable[..., Any]:
    rule = traced.program.gradient or functools.partial(accumulated, traced.program)
    gathers = _gathers(traced, shardings)
    wrt = range(len(jax.tree.leaves(traced.params)))

    def gradient(params: Any, model_state: Any, batch: Any, rng: Any) -> Any:
        inputs = [*jax.tree.leaves((params, model_state, batch)), rng]
        outputs, gradients = rule(inputs, wrt, gathers)
        loss, new_state, metrics = _outputs(traced, outputs)
        tree = jax.tree.unflatten(jax.tree.structure(params), gradients)
        tree = jax.lax.with_sharding_constraint(tree, shardings.gradient)
        return (loss, (new_state, metrics)), tree

    return gradient


def _outputs(traced: TracedModel, outputs: Sequence[Any]) -> tuple[Any, Any, Any]:
    """(loss, model state, metrics) of the program's flat outputs."""
    count = len(jax.tree.leaves(traced.model_state))
    new_state = jax.tree.unflatten(jax.tree.structure(traced.model_state), outputs[1 : 1 + count])
    metrics = jax.tree.unflatten(jax.tree.structure(traced.metrics), outputs[1 + count :])
    return outputs[0], new_state, metrics


def make_step(
    traced: TracedModel, shardings: Shardings, update: Update
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """One optimizer update: (state, batch) -> (state, metrics)."""
    gradient = make_gradient(traced, shardings)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        rng = jax.random.fold_in(state.rng, state.step)
        (loss, (model_state, extra)), gradients = gradient(
            state.params, state.model_state, batch, rng
        )
        params, opt_state = update(gradients, state.opt_state, state.params, value=loss)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients), **dict(extra)}
        return TrainState(state.step + 1, params, opt_state, model_state, state.rng), metrics

    return step


def plain_update(optimizer: optax.GradientTransformation) -> Update:
    """The optimizer's update, all of its state on the device."""
    update = optax.with_extra_args_support(optimizer).update

    def run(gradients: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        updates, state = update(gradients, state, params, grad=gradients, **extra)
        return optax.apply_updates(params, updates), state

    return run


def make_eval(traced: TracedModel, shardings: Shardings) -> Callable[[TrainState, Any], Any]:
    """(state, batch) -> metrics, nothing updated, dropout off."""
    forward = forward_function(traced, shardings)

    def evaluate(state: TrainState, batch: Any) -> dict[str, Any]:
        rng = jax.random.fold_in(state.rng, state.step)
        loss, _, extra = forward(state.params, state.model_state, batch, rng)
        return {"loss": loss, **dict(extra)}

    return evaluate


def abstract_optimizer(optimizer: optax.GradientTransformation | None, params: Any) -> Any:
    """Shapes of the optimizer's state; None without an optimizer."""
    return None if optimizer is None else jax.eval_shape(optimizer.init, params)


def make_init(
    init: Callable[[Any, Any], tuple[Any, Any]],
    optimizer: optax.GradientTransformation | None,
    batch: Any,
    params_dtype: str | None,
    stacked: Callable[[Any], Any] | None = None,
) -> Callable[[Any], TrainState]:
    """rng -> fresh state. Jitted with the state's shardings, every array is born on its own
    devices.
    """

    def initialise(rng: Any) -> TrainState:
        init_rng, state_rng = jax.random.split(rng)
        dummy = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
        params, model_state = init(init_rng, dummy)
        params = cast_floating(params, params_dtype)
        params = params if stacked is None else stacked(params)
        opt_state = None if optimizer is None else optimizer.init(params)
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, model_state, state_rng)

    return initialise
