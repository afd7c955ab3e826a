"""A model compiled for a mesh: what `autoshard.compile` returns for a Flax model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from autoshard import lower as lowering
from autoshard import planning
from autoshard.apply_passes import Rewritten, finish, rewrite
from autoshard.compile_process import Progress
from autoshard.compile_report import CompileReport
from autoshard.compiled_program import CompiledProgram
from autoshard.compiling import DEFAULT_TIMEOUT_S
from autoshard.errors import AutoshardError, PlanError
from autoshard.input_checks import (
    as_key,
    check_alive,
    check_batch,
    state_problem,
    with_shardings,
)
from autoshard.model_flops import model_flops
from autoshard.named_dims import analyse
from autoshard.optimizer_offload import (
    Offload,
    make_update,
    on_device,
    plan_offload,
    state_memories,
)
from autoshard.plan import Plan
from autoshard.planned_mapping import PlannedMapping
from autoshard.planning import Candidate
from autoshard.precision_notes import precision_notes
from autoshard.process_rows import global_batch
from autoshard.recipe import Recipe
from autoshard.report import MemoryReport, memory_report
from autoshard.stacked_state import Stacking
from autoshard.state import TrainState
from autoshard.target import check_context
from autoshard.target_report import report_on_target
from autoshard.trace import TracedModel, abstract, trace_model
from autoshard.verified_choice import beside, quicker
from passes.hlo.machine import MachineModel
from passes.program import Role


@dataclasses.dataclass(frozen=True)
class _Planned:
    traced: TracedModel
    plan: Plan
    opt_state: Any
    stacking: Stacking


class CompiledModel:
    """A Flax model with a plan for a mesh.

    Planning needs the batch's shapes. Without `batch` it happens at the first `init` or `step`, as
    tracing does with `jax.jit`. Batches of other sizes are compiled when they first come, under
    the same plan.
    """

    def __init__(self, recipe: Recipe, batch: Any = None, plan: Plan | None = None) -> None:
        self._recipe = recipe
        self._given_plan = plan
        self._planned: _Planned | None = None
        self._last: TracedModel | None = None  # the planned model after all passes
        self._mesh: Mesh | None = None
        self._executables: dict[Any, jax.stages.Compiled] = {}
        self._batch_shardings: dict[Any, Any] = {}
        self._initialise: Callable[[Any], TrainState] | None = None
        self._report: CompileReport | None = None
        self._program: CompiledProgram | None = None
        wishes = recipe.wishes
        self._mapping = PlannedMapping(wishes.memory_mapping, recipe.target, wishes.options.say)
        if batch is not None:
            self._plan_for(batch)

    @property
    def plan(self) -> Plan:
        """The plan.

        Raises:
          PlanError: nothing is planned yet.
        """
        return self._ready().plan

    @property
    def mesh(self) -> Mesh:
        """The mesh of real devices, its axes split where the plan needs it.

        Raises:
          DeviceError: the devices are not here.
        """
        if self._mesh is None:
            self._mesh = self._recipe.target.mesh(self.plan.mesh)
        return self._mesh

    @property
    def state_sharding(self) -> TrainState:
        """A `TrainState` of `NamedSharding`."""
        return self.shardings.state

    @property
    def batch_sharding(self) -> Any:
        """Shardings of the batch that was planned for."""
        return self.shardings.batch

    @property
    def traced(self) -> TracedModel:
        """The traced forward program and its trees."""
        return self._ready().traced

    @property
    def shardings(self) -> lowering.Shardings:
        """Shardings of state, batch, parameters as used, and gradients."""
        return self._shardings(self.traced)

    @property
    def abstract_batch(self) -> Any:
        """The planned batch as `jax.ShapeDtypeStruct` with shardings."""
        return with_shardings(self.traced.batch, self.batch_sharding)

    @property
    def abstract_state(self) -> TrainState:
        """A `TrainState` of `jax.ShapeDtypeStruct` with shardings: what to restore a checkpoint
        into.
        """
        ready = self._ready()
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = TrainState(
            step=jax.ShapeDtypeStruct((), jnp.int32),
            params=ready.traced.params,
            opt_state=ready.opt_state,
            model_state=ready.traced.model_state,
            rng=key,
        )
        return with_shardings(state, self.state_sharding)

    @property
    def abstract_user_state(self) -> TrainState:
        """`abstract_state` in the user's own tree: what a checkpoint holds.

        It is another where a pass has stacked layers.
        """
        ready = self._ready()
        if not ready.stacking.stacks:
            return self.abstract_state
        return ready.stacking.unstacked(self.abstract_state, self._user_structure())

    def to_user_state(self, state: TrainState) -> TrainState:
        """A state in the user's own tree, layers apart; the same object where none are stacked."""
        stacking = self._ready().stacking
        if not stacking.stacks:
            return state
        like = self._user_structure()
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_user_state)
        if self._recipe.offloads:
            return stacking.unstacked(state, like, shardings)
        return jax.jit(lambda s: stacking.unstacked(s, like), out_shardings=shardings)(state)

    def from_user_state(self, state: TrainState) -> TrainState:
        """A state as `step` takes it, of one in the user's own tree."""
        stacking = self._ready().stacking
        if not stacking.stacks:
            return state
        like = self.abstract_state
        if self._recipe.offloads:
            return stacking.stacked(state, like, self.state_sharding)
        make = jax.jit(lambda s: stacking.stacked(s, like), out_shardings=self.state_sharding)
        return make(state)

    def _user_structure(self) -> TrainState:
        ready = self._ready()
        params = ready.stacking.params
        opt_state = lowering.abstract_optimizer(self._recipe.optimizer, params)
        return dataclasses.replace(self.abstract_state, params=params, opt_state=opt_state)

    def init(self, rng: Any, batch: Any = None) -> TrainState:
        """A fresh training state, every array made on its own devices.

        Args:
          rng: a PRNG key or an integer seed.
          batch: arrays or ShapeDtypeStructs, if nothing is planned yet.
        """
        if batch is not None and self._planned is None:
            self._plan_for(batch)
        elif batch is not None:
            check_batch(batch, self.traced.batch, self.plan)
        ready = self._ready()
        self._recipe.target.check_runnable(self.plan.mesh)
        check_context()
        key = as_key(rng)
        sharding = self.state_sharding
        recipe = self._recipe
        if recipe.functions.initial is not None:
            return self._place_initial(key, sharding)
        if self._initialise is None:
            make = lowering.make_init(
                recipe.functions.init, recipe.optimizer, ready.traced.batch,
                recipe.precision.params, ready.stacking.stacked_params,
            )  # fmt: skip
            self._initialise = jax.jit(make, out_shardings=sharding)
        return self._initialise(key)

    def _place_initial(self, key: Any, sharding: TrainState) -> TrainState:
        """The state of a model that the user had built already."""
        assert self._recipe.functions.initial is not None
        params, model_state = self._recipe.functions.initial
        optimizer, dtype = self._recipe.optimizer, self._recipe.precision.params
        stacked = self._ready().stacking.stacked_params
        make = lowering.make_init(
            lambda rng, batch: (params, model_state), None, None, dtype, stacked
        )
        without = dataclasses.replace(sharding, opt_state=None)
        # Copies: a step donates its state, and the user's model must outlive it.
        state = jax.device_put(jax.tree.map(jnp.copy, make(key)), without)
        if optimizer is None:
            return state
        opt_state = jax.jit(optimizer.init, out_shardings=sharding.opt_state)(state.params)
        return dataclasses.replace(state, opt_state=opt_state)

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update. Returns the new state and `{"loss", "grad_norm", ...}`; `state` is consumed.

        Raises:
          PlanError: the task does not train.
          BatchError: the batch does not fit the plan.
          DeviceError: the devices are not here.
        """
        self._check_trains()
        return self._run("step", state, batch)

    def eval(self, state: TrainState, batch: Any) -> dict[str, jax.Array]:
        """The loss of a batch, with dropout off and nothing updated."""
        return self._run("eval", state, batch)

    def lower(self) -> jax.stages.Lowered:
        """The step (or evaluation) lowered for the planned batch."""
        return self._lower(
            "step" if self._recipe.optimizer is not None else "eval", self._finished()
        )

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
        """Compile the step for the target, here or not, and simulate its schedule.

        A program that does not fit is a report, too: its `out_of_memory` says what is needed.

        Args:
          cache: whether results are kept on disk, and taken from there.
          timeout_s: seconds before the compiler is ended.
          progress: called about once a second with the seconds since the start.
          compiler_options: for the compiler, by name.
          command: a shell command that makes the report again, for the report to show.

        Raises:
          CompileError: the compiler refuses the program, crashes, or takes too long.
          DeviceError: the compiler of the target is not installed.
          MeshError: nothing is known of the target's chips.
        """
        lowered, recipe = self.lower(), self._recipe
        options = self._mapped_options(lowered, compiler_options)
        ready = self._ready()
        self._program, report = report_on_target(
            lowered,
            recipe.target,
            ready.plan,
            model_flops=model_flops(analyse(ready.traced.program), recipe.optimizer is not None),
            compute_dtype=recipe.precision.compute or "",
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
        """Compiler options for the planned program, its memory mapping settled in the plan."""
        ready = self._ready()
        plan = self._mapping.settled(ready.plan, lowered, compiler_options)
        self._planned = dataclasses.replace(ready, plan=plan)
        return self._mapping.options(plan, compiler_options)

    @property
    def compiled_program(self) -> CompiledProgram | None:
        """The scheduled program of the last report, as text, with its memory; None before one."""
        return self._program

    def memory_report(self) -> MemoryReport:
        """The compiler's memory figures beside the plan's. Compiles the step if it is not yet."""
        ready = self._ready()
        kind = "step" if self._recipe.optimizer is not None else "eval"
        return memory_report(ready.plan.cost.memory, self._executable(kind, ready.traced.batch))

    def _check_trains(self) -> None:
        if self._recipe.optimizer is None:
            raise PlanError(
                f"this was compiled with task={self._recipe.wishes.task!r}, which has no "
                "optimizer: compile with task='train' to call step"
            )

    def _ready(self) -> _Planned:
        if self._planned is None:
            raise PlanError(
                "nothing is planned yet, because the batch's shapes are not known: pass batch= to "
                "autoshard.compile, or call init(rng, batch) first"
            )
        return self._planned

    def _plan_for(self, batch: Any) -> None:
        check_context()
        recipe = asked = self._recipe
        rewritten = self._trace("step" if recipe.optimizer is not None else "eval", batch)
        traced = rewritten.traced
        opt_state = lowering.abstract_optimizer(recipe.optimizer, traced.params)
        plan = self._given_plan
        if plan is not None:
            planning.check(plan, traced.program, recipe.target, recipe.wishes.task)
        else:
            plan = self._search(traced, opt_state, batch)
        recipe = self._recipe
        self._planned = _Planned(traced, plan, opt_state, rewritten.stacking)
        records = rewritten.records
        if recipe.passes.after:
            done, late = finish(traced, recipe.passes, plan, self.mesh, self._machine(plan))
            self._last = done
            records = (*records, *late)
        searched = plan.search is not None and recipe.wishes.options.choose_passes
        notes = plan.notes if searched else (*plan.notes, *recipe.passes.unplanned)
        notes = (*notes, *precision_notes(traced.program, recipe.precision.compute))
        plan = dataclasses.replace(plan, passes=records, notes=tuple(dict.fromkeys(notes)))
        self._planned = dataclasses.replace(self._planned, plan=plan)
        if recipe.passes.before != asked.passes.before and rewritten.is_shallow:
            self._compare_unrolled(asked, batch)

    def _compare_unrolled(self, asked: Recipe, batch: Any) -> None:
        """Take over the plan of the program without rolled layers where its step is quicker."""
        ready = self._ready()
        try:
            other = CompiledModel(asked.unrolled(ready.plan.mesh.shape), batch)
        except AutoshardError as error:  # without loops it may not fit
            asked.wishes.options.say(f"not without stack_layers: {error}")
            return
        plan = quicker(ready.plan, other.plan)
        if plan is None:
            plan = dataclasses.replace(ready.plan, verified=beside(ready.plan, other.plan))
        else:
            self._recipe, self._last, ready = other._recipe, other._last, other._ready()
        self._planned = dataclasses.replace(ready, plan=plan)

    def _search(self, traced: TracedModel, opt_state: Any, batch: Any) -> Plan:
        """The plan that the search finds; what it chose of passes joins those of the recipe."""
        recipe = self._recipe

        def compile_one(candidate: Candidate) -> CompileReport:
            wishes = recipe.wishes.without_memory_mapping()
            trial = dataclasses.replace(recipe.adding(candidate.passes), wishes=wishes)
            return CompiledModel(trial, batch, candidate.plan).compile_report()

        plan, self._recipe = recipe.searched(traced, opt_state, compile_one)
        return plan

    def _machine(self, plan: Plan) -> MachineModel:
        return self._recipe.target.machine(plan.mesh)

    def _finished(self, traced: TracedModel | None = None) -> TracedModel:
        """A traced model after the passes that know the plan; by default the planned one."""
        ready = self._ready()
        if traced is None and self._last is not None:
            return self._last
        passes, machine = self._recipe.passes, self._machine(ready.plan)
        return finish(traced or ready.traced, passes, ready.plan, self.mesh, machine)[0]

    def _trace(self, kind: str, batch: Any) -> Rewritten:
        recipe = self._recipe
        traced = trace_model(recipe.functions, recipe.loss, batch, kind == "step", recipe.precision)
        if self._planned is None and self._given_plan is None:
            self._recipe = recipe = recipe.with_loops(traced.program)
        return rewrite(traced, recipe.passes, recipe.optimizer)

    def _shardings(self, traced: TracedModel) -> lowering.Shardings:
        """Shardings of what goes in and out, each in the memory where its array lives."""
        made = self._inner_shardings(traced)
        if not self._recipe.offloads:
            return made
        opt_state = state_memories(made.state.opt_state, self._offload(made))
        state = dataclasses.replace(on_device(made.state), opt_state=opt_state)
        return dataclasses.replace(made, state=state, batch=on_device(made.batch))

    def _inner_shardings(self, traced: TracedModel) -> lowering.Shardings:
        """Shardings without memories: compilers refuse those of values inside the step."""
        ready = self._ready()
        return lowering.make_shardings(ready.plan, self.mesh, traced, ready.opt_state)

    def _offload(self, shardings: lowering.Shardings) -> Offload:
        """Which of the optimizer's state lives on the host."""
        ready = self._ready()
        arrays = [a for a in ready.plan.arrays if a.leaf.role is Role.PARAMETER]
        stacked = [a.dims[:1] == ("layers",) for a in arrays]
        opt_state = shardings.state.opt_state
        return plan_offload(ready.traced.params, ready.opt_state, opt_state, stacked)

    def _run(self, kind: str, state: TrainState, batch: Any) -> Any:
        batch = global_batch(batch, self.batch_sharding if self._planned else None)
        if self._planned is None:
            self._plan_for(batch)
        self._recipe.target.check_runnable(self.plan.mesh)
        check_context()
        check_alive(state)
        executable = self._executable(kind, batch)
        placed = self._place(batch)
        try:
            return executable(state, placed)
        except (TypeError, ValueError) as error:
            problem = state_problem(state, self.abstract_state)
            if problem is None:
                raise
            raise PlanError(problem) from error

    def _batch_key(self, batch: Any) -> Any:
        specs = abstract(batch)
        leaves, structure = jax.tree.flatten(specs)
        return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)

    def _place(self, batch: Any) -> Any:
        return jax.device_put(batch, self._batch_shardings[self._batch_key(batch)])

    def _executable(self, kind: str, batch: Any) -> jax.stages.Compiled:
        key = (kind, self._batch_key(batch))
        if key not in self._executables:
            check_batch(batch, self.traced.batch, self.plan)
            ready = self._ready()
            planned_kind = "step" if self._recipe.optimizer is not None else "eval"
            same = kind == planned_kind and key[1] == self._batch_key(ready.traced.batch)
            traced = self._finished(None if same else self._trace(kind, batch).traced)
            self._batch_shardings[key[1]] = self._shardings(traced).batch
            lowered = self._lower(kind, traced)
            options: dict[str, Any] = self._mapping.options_of_chip
            if same:
                options = self._mapped_options(lowered)
            self._executables[key] = lowered.compile(compiler_options=options or None)
        return self._executables[key]

    def _lower(self, kind: str, traced: TracedModel) -> jax.stages.Lowered:
        shardings = self._shardings(traced)
        specs = with_shardings(traced.batch, shardings.batch)
        recipe = self._recipe
        if kind == "eval":
            evaluate = lowering.make_eval(traced, shardings)
            return jax.jit(evaluate).lower(self.abstract_state, specs)
        self._check_trains()
        assert recipe.optimizer is not None
        donated = (0,) if recipe.donate else ()
        if not recipe.offloads:
            update = lowering.plain_update(recipe.optimizer)
            step: Callable[..., Any] = lowering.make_step(traced, shardings, update)
            jitted = jax.jit(step, out_shardings=(shardings.state, None), donate_argnums=donated)
            return jitted.lower(self.abstract_state, specs)
        inside = self._inner_shardings(traced)
        update = make_update(recipe.optimizer, self._offload(inside))
        step = lowering.make_step(traced, inside, update)
        places = shardings.state, shardings.batch
        jitted = jax.jit(
            step,
            in_shardings=places,
            out_shardings=(shardings.state, shardings.state.rng),
            donate_argnums=donated,
        )
        # Devices that are there only to compile for may know memories on the abstract mesh alone.
        with jax.set_mesh(self.mesh):
            return jitted.lower(self.abstract_state, specs)
