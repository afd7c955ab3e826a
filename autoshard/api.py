"""`autoshard.compile`: the whole toolkit behind one call.

adapt    linen | nnx -> pure functions                      adapters
trace    forward loss program and the roles of its inputs    trace
analyse  factor rules -> named dimensions, structure         named_dims, structure, dim_names
choose   rule sets -> layouts, by estimated cost             rule_sets, layouts, search
check    the plan against program and mesh                   validate
lower    autodiff, optimizer, constraints, jit               lower
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Literal

import optax
from flax import linen

from autoshard import inference, rule_sets
from autoshard.adapters import adapt, is_model
from autoshard.apply_passes import Passes
from autoshard.compiled_function import CompiledFunction
from autoshard.compiled_inference import CompiledInference, InferenceRecipe
from autoshard.compiled_model import CompiledModel
from autoshard.errors import ModelError, PassError
from autoshard.losses import Loss, default_loss
from autoshard.pass_registry import from_records, parse_passes, without_auto
from autoshard.plan import Plan
from autoshard.planned_mapping import as_budget
from autoshard.planning import Wishes
from autoshard.precision import Precision
from autoshard.recipe import Recipe
from autoshard.search import SearchOptions
from autoshard.target import resolve
from memory_planner.mapper import Budget
from passes.pass_pipeline import Checks
from passes.program import Role

TASKS = ("train", "eval", *inference.TASKS)


def default_optimizer(
    learning_rate: float = 3e-4, warmup_steps: int = 100, total_steps: int = 10_000
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019) with linear warm-up and cosine decay to a tenth."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, total_steps, end_value=learning_rate / 10
    )
    return optax.adamw(schedule, weight_decay=0.01)


def _roles(roles: Sequence[Role | str]) -> tuple[Role, ...]:
    try:
        return tuple(Role(role) for role in roles)
    except ValueError as error:
        known = ", ".join(role.value for role in Role)
        raise ModelError(f"argument_roles={list(roles)!r}: {error}; there are {known}") from error


def _passes(passes: Any, checks: Checks | None, plan: Plan | None) -> Passes:
    """The passes asked for; those of a given plan where none are.

    Raises:
      PassError: they are not those that the plan was made with.
    """
    if passes is None and plan is not None:
        return Passes.of(from_records(plan.passes), checks or Checks())
    chosen = Passes.of(parse_passes(passes), checks or Checks())
    if plan is not None and chosen.records != plan.passes:
        asked, made = (", ".join(map(str, r)) or "none" for r in (chosen.records, plan.passes))
        raise PassError(
            f"the plan was made with other passes ({made}) than these ({asked}): leave passes= out "
            "to use the plan's, or plan again"
        )
    return chosen


def _search_options(search: SearchOptions | None, choose_passes: bool) -> SearchOptions:
    options = search or SearchOptions()
    return dataclasses.replace(options, choose_passes=True) if choose_passes else options


def _check_inference(
    model: Any, task: str, loss: Any, optimizer: Any, passes: Passes, offload: str
) -> None:
    """Raises ModelError or PassError for what prefill and decode have no use for."""
    if not is_model(model):
        raise ModelError(
            f"task={task!r} needs a Flax model with the methods of docs/inference.md, not "
            f"{type(model).__name__}"
        )
    if loss is not None or optimizer is not None or offload != "none":
        raise ModelError(f"task={task!r} has no loss, optimizer or offload=: leave them out")
    if passes.records:
        raise PassError(
            f"passes rewrite a model's loss, and task={task!r} has none: leave passes out"
        )


def _check(model: Any, task: str, optimizer: Any, offload: str) -> None:
    """Raises ModelError for arguments that are not what they should be."""
    if task not in TASKS:
        raise ModelError(f"unknown task {task!r}: use one of {', '.join(TASKS)}")
    if offload not in ("none", "optimizer"):
        raise ModelError(
            f"offload={offload!r} is unknown: use 'optimizer' or 'none' (the pass remat offloads "
            "activations)"
        )
    if optimizer is not None and not hasattr(optimizer, "update"):
        raise ModelError(
            f"optimizer={optimizer!r} is not an optax transformation: pass one, such as "
            "optax.adamw(1e-3)"
        )
    if isinstance(model, type) and issubclass(model, linen.Module):
        raise ModelError(f"{model.__name__} is a class: pass an instance, {model.__name__}(...)")


def compile(
    model: Any,
    mesh: Any,
    *,
    batch: Any = None,
    loss: Loss | None = None,
    optimizer: optax.GradientTransformation | None = None,
    rules: Any = "auto",
    task: str = "train",
    dtype: Precision | str | None = None,
    donate: bool = True,
    strict: bool = False,
    plan: Plan | str | os.PathLike[str] | None = None,
    memory_limit_bytes: int | None = None,
    argument_roles: Sequence[Role | str] | None = None,
    passes: Any = None,
    pass_checks: Checks | None = None,
    offload: Literal["none", "optimizer"] = "none",
    search: SearchOptions | None = None,
    memory_mapping: Budget | Literal["off", "auto"] = "off",
) -> Any:
    """Plan and compile a model for a mesh.

    Args:
      model: a `flax.linen.Module`, a `flax.nnx.Module`, a function `rngs -> nnx.Module`, or a plain
        function of arrays (then only its arguments are laid out).
      mesh: a `jax.sharding.Mesh`, a `Topology`, `"cpu:8"` (the planner picks the shape) or
        `"data=2,model=4"`. Axis names are free; the plan says what each is used for.
      batch: arrays or ShapeDtypeStructs of one global batch; for a plain function the tuple of its
        arguments. Without it, planning waits for the first `init` or `step`. For `prefill` and
        `decode` an `InferenceShape`.
      loss: (outputs, batch) -> scalar, or (scalar, dict of scalars). Default: next-token or
        classification cross-entropy, by the shapes (`autoshard.losses.default_loss`).
      optimizer: any optax transformation; default `default_optimizer()`.
      rules: a rule set's name (`data`, `redco`, `zero1` to `zero3`, `logical`, `auto`), several
        joined by `+`, a `RuleSet`, a pair (dimension, axis), or a list of these.
      task: `train`, or `eval` for a model without optimizer; `prefill` or `decode` for one with a
        cache (docs/inference.md).
      dtype: compute dtype (parameters are stored in float32), or a `Precision`. For `prefill` and
        `decode` parameters and cache are stored in it.
      donate: whether `step` reuses the memory of the state that it is given, and `prefill` and
        `decode` that of the cache.
      strict: raise where a primitive has no sharding rule or a rule could be applied only in part.
      plan: a `Plan`, or the path of a saved one, to use instead of planning.
      memory_limit_bytes: bytes that one device may hold; layouts estimated above it are not chosen.
      argument_roles: for a plain function, `parameter` or `batch` for each argument; by default the
        last is the batch and those before it are parameters.
      passes: what rewrites the program: text such as `"stack_layers, microbatch(count=4)"`, a
        `Pass`, or a list of these (`docs/passes.md`). `auto` among them: the planner decides on
        microbatches and on what is saved for the backward pass. None: those that `plan` was made
        with.
      pass_checks: what follows each pass: comparison on random data, dumps.
      offload: `optimizer`: its state lives in host memory and is streamed through the device, layer
        by layer. (Activations are offloaded by the pass `remat`.)
      search: how far the planner goes, what it must not use, and how it shows progress; with
        rules that include `auto` only.
      memory_mapping: `auto` or a `MemoryBudget`: before the program is compiled for a TPU, the
        compiler is searched for options that place its buffers in VMEM better, and the plan keeps
        them (docs/memory_mapping.md). `off`: nothing is searched; options that `plan` has are used.

    Returns:
      A `CompiledModel`; a `CompiledFunction` for a plain function; a `CompiledInference` for the
      tasks `prefill` and `decode`.

    Raises:
      ModelError, MeshError, RuleError, BatchError, LossError, PlanError, PassError,
      UnmodelledError: see
        `autoshard.errors`; each message names the remedy.
    """
    _check(model, task, optimizer, offload)
    target = resolve(mesh)
    given = Plan.load(plan) if isinstance(plan, (str, os.PathLike)) else plan
    passes, choose_passes = without_auto(passes)
    options = _search_options(search, choose_passes)
    chosen = _passes(passes, pass_checks, given)
    wishes = Wishes(
        rule_sets.parse(rules), task, strict, memory_limit_bytes, chosen.pins, options,
        as_budget(memory_mapping),
    )  # fmt: skip
    if task in inference.TASKS:
        _check_inference(model, task, loss, optimizer, chosen, offload)
        shape = inference.as_shape(batch, task)
        precision = Precision.of(dtype)
        wanted = InferenceRecipe(adapt(model), target, wishes, precision, shape, donate)
        return CompiledInference(wanted, given)
    if not is_model(model):
        if not callable(model):
            adapt(model)  # raises, naming what can be passed
        if chosen.records:
            raise PassError(
                f"passes={passes!r} for a plain function: passes rewrite a model's loss, so give a "
                "Flax model"
            )
        arguments = batch if isinstance(batch, tuple) or batch is None else (batch,)
        roles = _roles(argument_roles) if argument_roles else None
        return CompiledFunction(model, target, wishes, arguments, roles, given)
    recipe = Recipe(
        functions=adapt(model),
        loss=loss or default_loss,
        optimizer=(optimizer or default_optimizer()) if task == "train" else None,
        target=target,
        wishes=wishes,
        precision=Precision.of(dtype),
        donate=donate,
        passes=chosen,
        offloads=offload == "optimizer",
    )
    return CompiledModel(recipe, batch, given)
