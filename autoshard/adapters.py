"""From a Flax model, linen or nnx, to two pure functions: `init` and `apply`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen, nnx

from autoshard.errors import ModelError

# Entries of a dict batch that the loss reads and the model does not, unless its signature names
# them.
TARGET_NAMES = frozenset(
    "label labels target targets y weight weights mask loss_mask loss_weights".split()
)
_TRAIN_FLAGS: dict[str, Callable[[bool], bool]] = {
    "train": lambda train: train,
    "training": lambda train: train,
    "is_training": lambda train: train,
    "deterministic": lambda train: not train,
}

AxisNames = tuple[str | tuple[str, ...] | None, ...]

# What a model offers that can be planned for inference (docs/inference.md).
CACHE_METHODS = ("init_cache", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class ModelFunctions:
    """A model as pure functions.

    Attributes:
      name: the model's class name, for messages.
      init: (rng, batch) -> (params, model_state).
      shapes: the same, of abstract arrays, nothing computed.
      apply: (params, model_state, rng, batch, train) -> (outputs, new model_state).
      axis_names: (rng, batch) -> for each annotated parameter path, the names of its dimensions.
      initial: (params, model_state) when the user handed over a model that is already built.
      methods: those of `CACHE_METHODS` that the model has.
      init_cache: (batch_size, capacity) -> an empty cache.
      call: (method, params, model_state, *arguments) -> what `prefill` or `decode` returns.
    """

    name: str
    init: Callable[[Any, Any], tuple[Any, Any]]
    shapes: Callable[[Any, Any], tuple[Any, Any]]
    apply: Callable[[Any, Any, Any, Any, bool], tuple[Any, Any]]
    axis_names: Callable[[Any, Any], Mapping[str, AxisNames]]
    initial: tuple[Any, Any] | None = None
    methods: frozenset[str] = frozenset()
    init_cache: Callable[[int, int], Any] | None = None
    call: Callable[..., Any] | None = None

    def check_decodes(self) -> None:
        """Raises ModelError unless the model has the methods of a decoder with a cache."""
        missing = [name for name in CACHE_METHODS if name not in self.methods]
        if missing:
            raise ModelError(
                f"{self.name} has no method {', '.join(missing)}, so it cannot be planned for "
                "prefill or decode: docs/inference.md says what init_cache, prefill and decode "
                "take and return"
            )


def _cache_methods(model: Any) -> frozenset[str]:
    return frozenset(name for name in CACHE_METHODS if callable(getattr(model, name, None)))


def path_name(path: Any) -> str:
    """A tree path as `layers/0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_nnx_builder(model: Any) -> bool:
    """Whether `model` is a function (or class, or partial) that builds an nnx module."""
    target = model
    while isinstance(target, functools.partial):  # nnx classes hide their signature
        target = target.func
    if isinstance(target, type) and issubclass(target, nnx.Module):
        return True
    if isinstance(model, (linen.Module, nnx.Module)) or not callable(model):
        return False
    try:
        parameters = inspect.signature(model).parameters
    except (TypeError, ValueError):
        return False
    return "rngs" in parameters


def is_model(model: Any) -> bool:
    """Whether `model` is a Flax model rather than a plain function of arrays."""
    return isinstance(model, (linen.Module, nnx.Module)) or is_nnx_builder(model)


def adapt(model: Any) -> ModelFunctions:
    """Pure functions of a Flax model.

    Raises:
      ModelError: `model` is not a linen module, an nnx module or a function that builds one.
    """
    if isinstance(model, linen.Module):
        return _adapt_linen(model)
    if isinstance(model, nnx.Module):
        return _adapt_nnx_instance(model)
    if is_nnx_builder(model):
        return _adapt_nnx_builder(model)
    raise ModelError(
        f"cannot adapt a model of type {type(model).__name__}: pass a flax.linen.Module, a "
        "flax.nnx.Module, a function `rngs -> nnx.Module`, or a plain function of arrays"
    )


def call_arguments(
    call: Callable[..., Any], batch: Any, train: bool, name: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which a model is called on `batch`.

    A dict batch is matched to the signature by name. A model that requires one argument may call it
    what it likes if the batch has one entry that is not a target (`TARGET_NAMES`). Of a tuple, as
    many leading entries are passed as the signature requires. Flags such as `train` and
    `deterministic` are set for the task.

    Raises:
      ModelError: the signature asks for something that the batch does not have.
    """
    parameters = [p for p in inspect.signature(call).parameters.values() if p.name != "rngs"]
    names = {p.name for p in parameters}
    flags = {flag: value(train) for flag, value in _TRAIN_FLAGS.items() if flag in names}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind not in variadic]
    needed = [p for p in needed if p.name not in flags]
    required = [p.name for p in needed]
    by_name_only = any(p.kind is p.KEYWORD_ONLY for p in needed)
    if isinstance(batch, Mapping):
        matched = {key: batch[key] for key in batch if key in names and key not in flags}
        if set(required) <= set(matched):
            return (), {**matched, **flags}
        inputs = tuple(value for key, value in batch.items() if key not in TARGET_NAMES)
        if len(inputs) != 1 or len(required) > 1:
            inputs = ()  # which is which cannot be told
    elif isinstance(batch, (tuple, list)):
        inputs = tuple(batch[: max(1, len(required))])
    else:
        inputs = (batch,)
    if len(inputs) < max(1, len(required)) or by_name_only:
        entries = sorted(batch) if isinstance(batch, Mapping) else f"{len(inputs)} arrays"
        raise ModelError(
            f"{name}.__call__ requires {required} but the batch has {entries}: name the batch's "
            "entries after the arguments, or wrap the model in one that takes this batch"
        )
    return inputs[: max(1, len(required))], flags


def _adapt_linen(model: linen.Module) -> ModelFunctions:
    name = type(model).__name__

    def boxed_init(rng: Any, batch: Any) -> Any:
        params_rng, dropout_rng = jax.random.split(rng)
        arguments, keywords = call_arguments(model.__call__, batch, False, name)
        rngs = {"params": params_rng, "dropout": dropout_rng}
        return model.init(rngs, *arguments, **keywords)

    def init(rng: Any, batch: Any) -> tuple[Any, Any]:
        variables = dict(linen.meta.unbox(boxed_init(rng, batch)))
        params = variables.pop("params", {})
        return params, variables

    def apply(params: Any, model_state: Any, rng: Any, batch: Any, train: bool) -> tuple[Any, Any]:
        arguments, keywords = call_arguments(model.__call__, batch, train, name)
        rngs = dict(zip(("params", "dropout"), jax.random.split(rng), strict=True))
        variables = {"params": params, **model_state}
        if not train or not model_state:
            return model.apply(variables, *arguments, rngs=rngs, **keywords), model_state
        outputs, updated = model.apply(
            variables, *arguments, rngs=rngs, mutable=list(model_state), **keywords
        )
        return outputs, {**model_state, **updated}

    def axis_names(rng: Any, batch: Any) -> dict[str, AxisNames]:
        boxed = jax.eval_shape(boxed_init, rng, batch).get("params", {})
        is_box = lambda x: isinstance(x, linen.meta.AxisMetadata)  # noqa: E731
        leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box)
        return {
            path_name(path): tuple(getattr(leaf, "names", ()))
            for path, leaf in leaves
            if is_box(leaf)
        }

    def call(method: str, params: Any, model_state: Any, *arguments: Any) -> Any:
        return model.apply({"params": params, **model_state}, *arguments, method=method)

    shapes = functools.partial(jax.eval_shape, init)
    return ModelFunctions(
        name, init, shapes, apply, axis_names, None,
        _cache_methods(model), getattr(model, "init_cache", None), call,
    )  # fmt: skip


def _nnx_names(state: Any) -> dict[str, AxisNames]:
    """Sharding metadata of an abstract nnx state, by parameter path."""
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_variable)
    found = {}
    for path, variable in leaves:
        metadata = variable.get_metadata()
        names = (
            metadata.get("out_sharding")
            or metadata.get("sharding_names")
            or metadata.get("sharding")
        )
        if names:
            found[path_name(path)] = tuple(names)
    return found


def _split(module: Any) -> tuple[Any, Any, Any]:
    """(graph definition, parameters, other variables) of an nnx module."""
    split: Any = nnx.split  # its stubs do not cover two filters
    return split(module, nnx.Param, ...)


def _nnx_functions(build: Callable[[Any], Any], initial: tuple[Any, Any] | None) -> ModelFunctions:
    # Once only: drawing from nnx.Rngs under a trace takes time quadratic in the model's size.
    # Annotated variables are not placed as they are made: the plan places them.
    def built(key: Any) -> Any:
        with nnx.use_eager_sharding(False):
            return build(key)

    abstract = nnx.eval_shape(lambda: built(jax.random.key(0)))
    name = type(abstract).__name__
    graphdef, params_like, rest_like = _split(abstract)

    def init(rng: Any, batch: Any) -> tuple[Any, Any]:
        del batch
        _, params, rest = _split(built(rng))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def filled(like: Any, values: Any) -> Any:
        state = jax.tree.map(lambda x: x, like)
        nnx.replace_by_pure_dict(state, values)
        return state

    def apply(params: Any, model_state: Any, rng: Any, batch: Any, train: bool) -> tuple[Any, Any]:
        del rng  # nnx modules carry their own streams in model_state
        with nnx.use_eager_sharding(False):
            states = filled(params_like, params), filled(rest_like, model_state)
            module = nnx.merge(graphdef, *states)
            module.train() if train else module.eval()
            arguments, keywords = call_arguments(module.__call__, batch, train, name)
            outputs = module(*arguments, **keywords)
            _, _, rest = _split(module)
        return outputs, nnx.to_pure_dict(rest)

    def shapes(rng: Any, batch: Any) -> tuple[Any, Any]:
        del rng, batch
        return nnx.to_pure_dict(params_like), nnx.to_pure_dict(rest_like)

    def call(method: str, params: Any, model_state: Any, *arguments: Any) -> Any:
        with nnx.use_eager_sharding(False):
            states = filled(params_like, params), filled(rest_like, model_state)
            module = nnx.merge(graphdef, *states)
            module.eval()
            return getattr(module, method)(*arguments)

    return ModelFunctions(
        name, init, shapes, apply, lambda rng, batch: _nnx_names(params_like), initial,
        _cache_methods(abstract), getattr(abstract, "init_cache", None), call,
    )  # fmt: skip


def _adapt_nnx_builder(model: Callable[..., Any]) -> ModelFunctions:
    def build(key: Any) -> Any:
        module = model(rngs=nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise ModelError(
                f"{getattr(model, '__name__', model)!r} takes `rngs` but returned "
                f"{type(module).__name__}, not a flax.nnx.Module"
            )
        return module

    return _nnx_functions(build, None)


def _adapt_nnx_instance(model: nnx.Module) -> ModelFunctions:
    graphdef, params, rest = _split(model)
    leaves = jax.tree.leaves((params, rest))
    name = type(model).__name__
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise ModelError(
            f"the {name} instance is abstract (its arrays are ShapeDtypeStructs): pass a function "
            f"that builds it, such as `lambda rngs: {name}(..., rngs=rngs)`"
        )

    def build(key: Any) -> Any:
        del key
        return nnx.merge(graphdef, params, rest)

    initial = (nnx.to_pure_dict(params), nnx.to_pure_dict(rest))
    return _nnx_functions(build, initial)
