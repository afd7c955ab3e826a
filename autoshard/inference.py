"""Prefill and decode of a decoder with a cache as programs: what they read and what they return.

A prompt is read by one program and the tokens after it by another, whose best layouts differ:
Zhong et al., "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language
Model Serving", 2024, arXiv:2401.09670, section 3; Patel et al., "Splitwise: Efficient Generative
LLM Inference Using Phase Splitting", 2024, arXiv:2311.18677, section 3.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from autoshard.adapters import ModelFunctions, path_name
from autoshard.errors import ModelError
from autoshard.precision import Precision, cast_floating
from autoshard.trace import abstract, leaves_of
from passes.program import Program, Role

TASKS = ("prefill", "decode")


@dataclasses.dataclass(frozen=True)
class InferenceShape:
    """Sizes of an inference program.

    Attributes:
      batch_size: sequences, over all devices.
      prompt_len: tokens of each prompt; `decode` does not depend on it.
      capacity: positions of the cache.

    Raises:
      ModelError: a size is below 1, or the prompt longer than the cache.
    """

    batch_size: int
    prompt_len: int
    capacity: int

    def __post_init__(self) -> None:
        for name, size in dataclasses.asdict(self).items():
            if not isinstance(size, int) or size < 1:
                raise ModelError(f"InferenceShape: {name}={size!r} must be an integer above 0")
        if self.prompt_len > self.capacity:
            raise ModelError(
                f"InferenceShape: a prompt of prompt_len={self.prompt_len} tokens does not fit in "
                f"a cache of capacity={self.capacity}: make the cache larger, or shorten the prompt"
            )


@dataclasses.dataclass(frozen=True)
class TracedInference:
    """The program of one task.

    Its inputs are the leaves of `params`, of `inputs` and of `cache`, in that order; its outputs
    are the logits, [batch, vocab], and the leaves of the cache.

    Attributes:
      program: the program.
      run: (params, *inputs, cache) -> (logits, cache).
      params: tree of `jax.ShapeDtypeStruct`, as stored; of a model with other variables, the pair
        (parameters, other variables).
      inputs: name and shape of each further argument: `tokens`, or `token` and `position`.
      cache: tree of `jax.ShapeDtypeStruct`.
    """

    program: Program
    run: Callable[..., Any]
    params: Any
    inputs: tuple[tuple[str, jax.ShapeDtypeStruct], ...]
    cache: Any


def as_shape(batch: Any, task: str) -> InferenceShape:
    """What the user gave as `batch`.

    Raises:
      ModelError: it is no `InferenceShape`.
    """
    if not isinstance(batch, InferenceShape):
        raise ModelError(
            f"task={task!r} is planned from sizes, and batch={batch!r} has none: pass "
            "batch=autoshard.InferenceShape(batch_size=..., prompt_len=..., capacity=...)"
        )
    return batch


def stored_dtype(precision: Precision) -> str | None:
    """Dtype of parameters and cache: nothing is updated, so that of the computation."""
    return precision.compute or precision.params


def example_batch(shape: InferenceShape) -> dict[str, jax.ShapeDtypeStruct]:
    """The prompt of one sequence: what parameters are made with."""
    return {"tokens": jax.ShapeDtypeStruct((1, shape.prompt_len), jnp.int32)}


def stored_params(params: Any, model_state: Any, precision: Precision) -> Any:
    """Parameters as `run` takes them, with the model's other variables if it has any."""
    params = cast_floating(params, stored_dtype(precision))
    return (params, model_state) if jax.tree.leaves(model_state) else params


def make_cache(functions: ModelFunctions, shape: InferenceShape, precision: Precision) -> Any:
    """An empty cache.

    Raises:
      ModelError: the model refuses the sizes.
    """
    assert functions.init_cache is not None
    try:
        cache = functions.init_cache(shape.batch_size, shape.capacity)
    except ValueError as error:
        raise ModelError(f"{functions.name}.init_cache refuses {shape}: {error}") from error
    return cast_floating(cache, stored_dtype(precision))


def trace_inference(
    functions: ModelFunctions, task: str, shape: InferenceShape, precision: Precision
) -> TracedInference:
    """Trace `prefill` or `decode`. Nothing is materialised.

    Raises:
      ModelError: the model has no such methods, refuses the sizes, or returns another cache than it
        was given.
    """
    functions.check_decodes()
    key, example = jax.eval_shape(lambda: jax.random.key(0)), example_batch(shape)
    params, model_state = functions.shapes(key, example)
    has_state = bool(jax.tree.leaves(model_state))
    params = jax.eval_shape(lambda p: cast_floating(p, stored_dtype(precision)), params)
    cache = jax.eval_shape(lambda: make_cache(functions, shape, precision))
    token = jax.ShapeDtypeStruct((shape.batch_size,), jnp.int32)
    prompt = jax.ShapeDtypeStruct((shape.batch_size, shape.prompt_len), jnp.int32)
    position = jax.ShapeDtypeStruct((), jnp.int32)
    inputs = (
        (("tokens", prompt),) if task == "prefill" else (("token", token), ("position", position))
    )
    call = functions.call
    assert call is not None

    def run(params: Any, *arguments: Any) -> Any:
        variables = params if has_state else (params, model_state)
        return call(task, *variables, *arguments)

    stored = (params, model_state) if has_state else params
    jaxpr, (_, after) = jax.make_jaxpr(run, return_shape=True)(
        stored, *(spec for _, spec in inputs), cache
    )
    _check_cache(functions.name, task, cache, abstract(after))
    names = functions.axis_names(key, example)
    kept = [dataclasses.replace(x, path=f"cache/{x.path}") for x in leaves_of(cache, Role.CACHE)]
    leaves = [
        *leaves_of(params, Role.PARAMETER, names),
        *leaves_of(model_state, Role.MODEL_STATE),
        *(leaf for name, spec in inputs for leaf in leaves_of({name: spec}, Role.BATCH)),
        *kept,
    ]
    outputs = ("logits", *(leaf.path for leaf in kept))
    program = Program(functions.name, jaxpr, tuple(leaves), outputs)
    return TracedInference(program, run, stored, inputs, cache)


def _check_cache(name: str, task: str, before: Any, after: Any) -> None:
    found = [
        {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (before, after)
    ]
    changed = sorted(p for p in {*found[0], *found[1]} if found[0].get(p) != found[1].get(p))
    if changed:
        given, returned = (tree.get(changed[0], "nothing") for tree in found)
        raise ModelError(
            f"{name}.{task} is given {given} as {changed[0]!r} of the cache and returns "
            f"{returned}: return a cache of the structure, shapes and types that init_cache makes"
        )
