"""Tracing: from pure functions and abstract arrays to a `Program`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from autoshard.adapters import AxisNames, ModelFunctions, path_name
from autoshard.errors import LossError, ModelError
from autoshard.losses import Loss
from autoshard.precision import Precision, cast_floating
from passes import ir
from passes.program import Leaf, Program, Role


@dataclasses.dataclass(frozen=True)
class TracedModel:
    """A model's forward loss program and the trees that its flat inputs came from.

    The program's inputs are the leaves of `params`, `model_state`, `batch` and the rng key, in that
    order; its outputs are the loss, the leaves of the new model state and those of `metrics`.

    Attributes:
      program: the forward program.
      params, model_state, batch: trees of `jax.ShapeDtypeStruct`.
      metrics: tree of the extra scalars that the user's loss returns.
    """

    program: Program
    params: Any
    model_state: Any
    batch: Any
    metrics: Any


def abstract(tree: Any) -> Any:
    """The shapes and dtypes of a tree of arrays, ShapeDtypeStructs or numpy arrays."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            return jax.ShapeDtypeStruct(
                tuple(x.shape),
                jax.dtypes.canonicalize_dtype(x.dtype)
                if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
                else x.dtype,
            )
        return jax.eval_shape(lambda: jnp.asarray(x))

    return jax.tree.map(one, tree)


def leaves_of(tree: Any, role: Role, names: Mapping[str, AxisNames] | None = None) -> list[Leaf]:
    """One `Leaf` an array of a tree."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path_text = path_name(path)
        metadata = (names or {}).get(path_text, ())
        found.append(Leaf(path_text, role, tuple(leaf.shape), str(leaf.dtype), tuple(metadata)))
    return found


def _loss_and_metrics(loss: Loss, outputs: Any, batch: Any) -> tuple[Any, Any]:
    try:
        result = loss(outputs, batch)
    except KeyError as error:
        entries = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise LossError(f"the loss reads {error}, and the batch has {entries}") from error
    value, metrics = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    shape = getattr(value, "shape", None)
    if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise LossError(
            "the loss must be a floating scalar, or a pair of one and a dict of scalars, but it "
            f"is {type(value).__name__} of shape {shape}: average it over the batch"
        )
    if not isinstance(metrics, Mapping) or any(jnp.shape(x) for x in jax.tree.leaves(metrics)):
        raise LossError("the second result of the loss must be a dict of scalars")
    reserved = {"loss", "grad_norm"} & set(metrics)
    if reserved:
        raise LossError(
            f"the loss returns a metric called {min(reserved)!r}, which step adds itself"
        )
    return value, metrics


def _check_state(name: str, before: Any, after: Any) -> None:
    """Raises ModelError if running the model changes the structure or shapes of its state."""
    shapes = [
        {path_name(path): (x.shape, x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(t)}
        for t in (before, after)
    ]
    if shapes[0] != shapes[1]:
        grown = sorted(set(shapes[1].items()) ^ set(shapes[0].items()), key=str)[0][0]
        raise ModelError(
            f"running {name} changes the shape of its variable {grown!r}, so it cannot be carried "
            "from step to step: return such values from the model and add them up in the loss, or "
            "sow them into the collection 'intermediates'"
        )


def trace_model(
    functions: ModelFunctions, loss: Loss, batch: Any, train: bool, precision: Precision
) -> TracedModel:
    """Trace a model's loss on an abstract batch. Nothing is materialised.

    Raises:
      LossError: the loss is not a scalar or no default fits.
      ModelError: the batch does not fit the model's signature.
    """
    batch = abstract(batch)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, model_state = functions.shapes(key, batch)
    params = jax.eval_shape(lambda tree: cast_floating(tree, precision.params), params)
    names = functions.axis_names(key, batch)
    out_shape: list[Any] = []

    def forward(params: Any, model_state: Any, batch: Any, rng: Any) -> Any:
        inputs = cast_floating((params, batch), precision.compute)
        outputs, new_state = functions.apply(inputs[0], model_state, rng, inputs[1], train)
        _check_state(functions.name, model_state, new_state)
        if precision.compute is not None:
            outputs = cast_floating(outputs, "float32")
            new_state = jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, model_state)
        value, metrics = _loss_and_metrics(loss, outputs, batch)
        out_shape.append(jax.eval_shape(lambda: metrics))
        return value, new_state, metrics

    jaxpr = jax.make_jaxpr(forward)(params, model_state, batch, key)
    inputs = [
        *leaves_of(params, Role.PARAMETER, names),
        *leaves_of(model_state, Role.MODEL_STATE),
        *leaves_of(batch, Role.BATCH),
        Leaf("rng", Role.RNG, (), str(key.dtype)),
    ]
    outputs = [
        "loss",
        *(leaf.path for leaf in leaves_of(model_state, Role.MODEL_STATE)),
        *(leaf.path for leaf in leaves_of(out_shape[-1], Role.BATCH)),
    ]
    program = Program(functions.name, jaxpr, tuple(inputs), tuple(outputs))
    return TracedModel(program, params, model_state, batch, out_shape[-1])


def trace_function(
    function: Callable[..., Any], arguments: tuple[Any, ...], roles: tuple[Role, ...]
) -> tuple[Program, Any]:
    """Trace a plain function of arrays; returns its program and the tree of its result's shapes."""
    arguments = tuple(abstract(a) for a in arguments)
    name = getattr(function, "__name__", type(function).__name__)
    jaxpr, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
    inputs = []
    for position, (argument, role) in enumerate(zip(arguments, roles, strict=True)):
        for leaf in leaves_of(argument, role):
            path = f"{position}/{leaf.path}" if leaf.path else str(position)
            inputs.append(dataclasses.replace(leaf, path=path))
    outputs = tuple(f"out/{leaf.path}" for leaf in leaves_of(result, Role.BATCH))
    return Program(name, jaxpr, tuple(inputs), outputs), result


def gradient_program(program: Program) -> tuple[Program, tuple[tuple[int, int], ...]]:
    """The program of loss and gradients, and the ties between gradients and their parameters."""
    positions = program.with_role(Role.PARAMETER)
    forward = ir.as_function(program.jaxpr)

    def loss_and_gradients(*inputs: Any) -> Any:
        def loss(parameters: list[Any]) -> Any:
            arguments = list(inputs)
            for position, value in zip(positions, parameters, strict=True):
                arguments[position] = value
            return forward(*arguments)[0]

        return jax.value_and_grad(loss)([inputs[p] for p in positions])

    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.jaxpr.in_avals]
    jaxpr = jax.make_jaxpr(loss_and_gradients)(*specs)
    outputs = ("loss", *(f"gradient/{program.inputs[p].path}" for p in positions))
    traced = Program(program.name, jaxpr, program.inputs, outputs)
    return traced, tuple((1 + i, p) for i, p in enumerate(positions))
