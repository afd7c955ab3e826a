"""Prefill or decode of a decoder, compiled for a mesh."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from autoshard import planning
from autoshard.adapters import ModelFunctions, path_name
from autoshard.compile_process import Progress
from autoshard.compile_report import CompileReport
from autoshard.compiled_program import CompiledProgram
from autoshard.compiling import DEFAULT_TIMEOUT_S
from autoshard.errors import BatchError, ModelError, PlanError
from autoshard.inference import (
    InferenceShape,
    example_batch,
    make_cache,
    stored_dtype,
    stored_params,
    trace_inference,
)
from autoshard.input_checks import as_key, same_structure, with_shardings
from autoshard.model_flops import model_flops
from autoshard.named_dims import analyse
from autoshard.plan import Plan
from autoshard.planned_mapping import PlannedMapping
from autoshard.precision import Precision, cast_floating
from autoshard.report import MemoryReport, memory_report
from autoshard.target import Target, check_context
from autoshard.target_report import report_on_target
from autoshard.verified_choice import searched
from passes.spec import partition_spec


@dataclasses.dataclass(frozen=True)
class InferenceRecipe:
    """What is planned.

    Attributes:
      functions: the model as pure functions.
      target: where it is to run.
      wishes: what the user asked of the planner; its task is `prefill` or `decode`.
      precision: parameters and cache are stored in its compute dtype.
      shape: sizes.
      donate: whether a call reuses the memory of the cache that it is given.
    """

    functions: ModelFunctions
    target: Target
    wishes: planning.Wishes
    precision: Precision
    shape: InferenceShape
    donate: bool


class CompiledInference:
    """A program of inference with a plan for a mesh.

    Called with arrays, `prefill` is `(params, tokens, cache) -> (logits, cache)` and `decode`
    `(params, token, position, cache) -> (logits, cache)`, the arguments as in docs/inference.md.
    The cache is consumed, and comes out as it went in: in `cache_sharding`.
    """

    def __init__(self, recipe: InferenceRecipe, plan: Plan | None = None) -> None:
        check_context()
        self._recipe = recipe
        self._traced = trace_inference(recipe.functions, self.task, recipe.shape, recipe.precision)
        self._executable: jax.stages.Compiled | None = None
        self._program: CompiledProgram | None = None
        self._report: CompileReport | None = None
        if plan is not None:
            planning.check(plan, self._traced.program, recipe.target, self.task)
        self._plan = plan if plan is not None else self._searched()
        wishes = recipe.wishes
        self._mapping = PlannedMapping(wishes.memory_mapping, recipe.target, wishes.options.say)
        self._mesh: Mesh | None = None

    @property
    def task(self) -> str:
        """`prefill` or `decode`."""
        return self._recipe.wishes.task

    @property
    def shape(self) -> InferenceShape:
        """The sizes that were planned for."""
        return self._recipe.shape

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self._plan

    @property
    def target(self) -> Target:
        """Where it is to run."""
        return self._recipe.target

    @property
    def mesh(self) -> Mesh:
        """The mesh of real devices. Raises DeviceError if they are not here."""
        if self._mesh is None:
            self._mesh = self._recipe.target.mesh(self._plan.mesh)
        return self._mesh

    @property
    def params_sharding(self) -> Any:
        """A tree of `NamedSharding`, as the parameters'."""
        return self._shardings()[0]

    @property
    def input_sharding(self) -> dict[str, NamedSharding]:
        """Of `tokens`, or of `token` and `position`."""
        names = (name for name, _ in self._traced.inputs)
        return dict(zip(names, self._shardings()[1], strict=True))

    @property
    def cache_sharding(self) -> Any:
        """A tree of `NamedSharding`, as the cache's."""
        return self._shardings()[2]

    @property
    def abstract_params(self) -> Any:
        """Parameters as `jax.ShapeDtypeStruct` with shardings: what to restore a checkpoint into.

        Of a model with other variables, the pair (parameters, other variables).
        """
        return with_shardings(self._traced.params, self.params_sharding)

    @property
    def abstract_cache(self) -> Any:
        """The cache as `jax.ShapeDtypeStruct` with shardings."""
        return with_shardings(self._traced.cache, self.cache_sharding)

    def init_params(self, rng: Any) -> Any:
        """Fresh parameters, every array made on its own devices; of a built model its own.

        They are those of `CompiledModel.init` for the same key.

        Args:
          rng: a PRNG key or an integer seed.
        """
        recipe = self._recipe
        recipe.target.check_runnable(self._plan.mesh)
        if recipe.functions.initial is not None:
            return self.place(stored_params(*recipe.functions.initial, recipe.precision))
        example = example_batch(recipe.shape)

        def make(key: Any) -> Any:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
            made = recipe.functions.init(jax.random.split(key)[0], zeros)
            return stored_params(*made, recipe.precision)

        return jax.jit(make, out_shardings=self.params_sharding)(as_key(rng))

    def place(self, params: Any) -> Any:
        """Parameters from elsewhere, cast to how they are stored, on their devices. Copies.

        Raises:
          ModelError: they have another structure or other shapes than the model's.
        """
        self._recipe.target.check_runnable(self._plan.mesh)
        cast = cast_floating(params, stored_dtype(self._recipe.precision))
        problem = _problem("the parameters", cast, self._traced.params)
        if problem:
            raise ModelError(f"{problem}: pass those of this model, layers apart where it has them")
        # Not shared with a training state, which a step would consume.
        return jax.device_put(cast, self.params_sharding, may_alias=False)

    def init_cache(self) -> Any:
        """An empty cache, every array made on its own devices."""
        recipe = self._recipe
        recipe.target.check_runnable(self._plan.mesh)
        make = lambda: make_cache(recipe.functions, recipe.shape, recipe.precision)  # noqa: E731
        return jax.jit(make, out_shardings=self.cache_sharding)()

    def __call__(self, params: Any, *arguments: Any) -> tuple[jax.Array, Any]:
        """Run the program: see the class.

        Raises:
          BatchError: the arguments are not those planned for.
          PlanError: the parameters or the cache are laid out otherwise, or the cache was consumed.
          DeviceError: the devices are not here.
        """
        self._recipe.target.check_runnable(self._plan.mesh)
        check_context()
        names = [name for name, _ in self._traced.inputs]
        if len(arguments) != len(names) + 1:
            raise BatchError(
                f"{self.task} takes (params, {', '.join(names)}, cache), and was given "
                f"{len(arguments) + 1} arguments"
            )
        *given, cache = arguments
        placed = [self._placed(name, x) for name, x in zip(names, given, strict=True)]
        self._check_cache(cache)
        if self._executable is None:
            self._executable = self._compiled()
        try:
            result: tuple[jax.Array, Any] = self._executable(params, *placed, cache)
        except (TypeError, ValueError) as error:
            problem = _problem("the parameters", params, self.abstract_params)
            problem = problem or _problem("the cache", cache, self.abstract_cache)
            if not problem:
                raise
            raise PlanError(
                f"{problem}: make them with init_params and init_cache, or move them by place and "
                "jax.device_put(cache, compiled.cache_sharding)"
            ) from error
        return result

    def lower(self) -> jax.stages.Lowered:
        """The program lowered with its planned layout; the cache is donated."""
        specs = tuple(spec for _, spec in self._traced.inputs)
        inputs = with_shardings(specs, self._shardings()[1])

        def prefill(params: Any, tokens: Any, cache: Any) -> Any:
            return self._traced.run(params, tokens, cache)

        def decode(params: Any, token: Any, position: Any, cache: Any) -> Any:
            return self._traced.run(params, token, position, cache)

        jitted = jax.jit(
            prefill if self.task == "prefill" else decode,
            out_shardings=(None, self.cache_sharding),
            donate_argnums=(1 + len(inputs),) if self._recipe.donate else (),
        )
        return jitted.lower(self.abstract_params, *inputs, self.abstract_cache)

    @property
    def report(self) -> CompileReport:
        """What the target's compiler makes of the plan; see `compile_report`. Made once."""
        if self._report is None:
            self._report = self.compile_report()
        return self._report

    def compile_report(
        self,
        *,
        cache: bool = True,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        progress: Progress | None = None,
        compiler_options: Mapping[str, Any] | None = None,
        command: str = "",
    ) -> CompileReport:
        """Compile for the target, here or not, and simulate; as `CompiledModel.compile_report`.

        Raises:
          CompileError, DeviceError, MeshError: as there.
        """
        lowered = self.lower()
        options = self._mapped_options(lowered, compiler_options)
        self._program, report = report_on_target(
            lowered,
            self._recipe.target,
            self._plan,
            model_flops=model_flops(analyse(self._traced.program), trains=False),
            compute_dtype=stored_dtype(self._recipe.precision) or "",
            cache=cache,
            timeout_s=timeout_s,
            progress=progress,
            compiler_options=options,
            command=command,
        )
        return dataclasses.replace(report, memory_pictures=self._mapping.pictures)

    def _mapped_options(
        self, lowered: jax.stages.Lowered, compiler_options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Compiler options for the program, its memory mapping settled in the plan."""
        self._plan = self._mapping.settled(self._plan, lowered, compiler_options)
        return self._mapping.options(self._plan, compiler_options)

    def _compiled(self) -> jax.stages.Compiled:
        lowered = self.lower()
        return lowered.compile(compiler_options=self._mapped_options(lowered) or None)

    @property
    def compiled_program(self) -> CompiledProgram | None:
        """The scheduled program of the last report, as text, with its memory; None before one."""
        return self._program

    def memory_report(self) -> MemoryReport:
        """The compiler's memory figures beside the plan's."""
        if self._executable is None:
            self._executable = self._compiled()
        return memory_report(self._plan.cost.memory, self._executable)

    def _searched(self) -> Plan:
        recipe = self._recipe
        wishes = recipe.wishes.without_memory_mapping()
        trial = dataclasses.replace(recipe, wishes=wishes)
        _, plan = searched(
            self._traced.program,
            recipe.target,
            recipe.wishes,
            lambda layout: 0,
            lambda one: CompiledInference(trial, one.plan).report,
        )
        return plan

    def _shardings(self) -> Any:
        """Trees of `NamedSharding` for (params, inputs, cache)."""
        specs = tuple(spec for _, spec in self._traced.inputs)
        trees = self._traced.params, specs, self._traced.cache
        leaves = [NamedSharding(self.mesh, partition_spec(a.param)) for a in self._plan.arrays]
        return jax.tree.unflatten(jax.tree.structure(trees), leaves)

    def _placed(self, name: str, value: Any) -> jax.Array:
        spec = dict(self._traced.inputs)[name]
        capacity = self.shape.capacity
        known = name == "position" and isinstance(value, (int, np.integer))
        if known and not 0 <= value < capacity:  # a write past the end would fall on the last one
            raise BatchError(
                f"position={value} is outside the cache's 0..{capacity - 1}: compile for a larger "
                "capacity"
            )
        array = jnp.asarray(value, spec.dtype) if jnp.ndim(value) == 0 else value
        if tuple(array.shape) != spec.shape or array.dtype != spec.dtype:
            raise BatchError(
                f"{name} is {array.dtype}{list(array.shape)} and {self.task} was planned for "
                f"{spec.dtype}{list(spec.shape)}: pad to these sizes, or compile for others"
            )
        placed: jax.Array = jax.device_put(array, self.input_sharding[name])
        return placed

    def _check_cache(self, cache: Any) -> None:
        arrays = [x for x in jax.tree.leaves(cache) if isinstance(x, jax.Array)]
        if any(x.is_deleted() for x in arrays):
            raise PlanError(
                f"this cache was given to {self.task} before, which reuses its memory: go on with "
                "the cache that was returned, or compile with donate=False"
            )


def _problem(what: str, have: Any, want: Any) -> str:
    """What is wrong with a tree, in words; empty where nothing is."""
    if not same_structure(have, want):
        return f"the structure of {what} is another than the plan's"
    pairs = zip(jax.tree_util.tree_leaves_with_path(have), jax.tree.leaves(want), strict=True)
    for (path, one), other in pairs:
        name = f"{path_name(path)!r} of {what}"
        if one.shape != other.shape or one.dtype != other.dtype:
            return (
                f"{name} is {one.dtype}{list(one.shape)} and the plan has "
                f"{other.dtype}{list(other.shape)}"
            )
        sharding = getattr(other, "sharding", None)
        if sharding is not None and not one.sharding.is_equivalent_to(sharding, one.ndim):
            return f"{name} is laid out as {one.sharding} and the plan has {sharding}"
    return ""
