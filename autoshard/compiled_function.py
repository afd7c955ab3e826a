"""A plain function compiled for a mesh: its arguments are laid out, the compiler does the rest."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from autoshard import planning
from autoshard.compile_report import CompileReport
from autoshard.errors import ModelError, PlanError
from autoshard.model_flops import model_flops
from autoshard.named_dims import analyse
from autoshard.plan import Plan
from autoshard.planned_mapping import PlannedMapping
from autoshard.report import MemoryReport, memory_report
from autoshard.target import Target
from autoshard.target_report import report_on_target
from autoshard.trace import abstract, trace_function
from passes.program import Role
from passes.spec import partition_spec


def default_roles(count: int) -> tuple[Role, ...]:
    """The last argument is the batch, those before it are parameters, as in `f(params, x)`."""
    return (Role.PARAMETER,) * (count - 1) + (Role.BATCH,)


class CompiledFunction:
    """A function of arrays with a plan for a mesh; call it like the function itself.

    It is planned from `arguments` (arrays or ShapeDtypeStructs), or at the first call.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        target: Target,
        wishes: planning.Wishes,
        arguments: tuple[Any, ...] | None = None,
        roles: tuple[Role, ...] | None = None,
        plan: Plan | None = None,
    ) -> None:
        self._function = function
        self._target = target
        self._wishes = dataclasses.replace(wishes, task="function")
        self._roles = roles
        self._plan = plan
        self._checked = False
        self._arguments: tuple[Any, ...] | None = None
        self._compiled: jax.stages.Compiled | None = None
        self._report: CompileReport | None = None
        self._model_flops = 0.0
        self._mapping = PlannedMapping(wishes.memory_mapping, target, wishes.options.say)
        if arguments is not None:
            self._plan_for(arguments)

    @property
    def plan(self) -> Plan:
        """The plan. Raises PlanError if the arguments are not known yet."""
        if self._plan is None or not self._checked:
            raise PlanError(
                "nothing is planned yet: pass the arguments' specs as batch=(...) to "
                "autoshard.compile, or call the function once"
            )
        return self._plan

    @property
    def mesh(self) -> Mesh:
        """The mesh of real devices. Raises DeviceError if they are not here."""
        return self._target.mesh(self.plan.mesh)

    @property
    def argument_sharding(self) -> tuple[Any, ...]:
        """For each argument a tree of `NamedSharding`."""
        mesh = self.mesh
        leaves = [NamedSharding(mesh, partition_spec(a.param)) for a in self.plan.arrays]
        structure = jax.tree.structure(self._arguments)
        return tuple(jax.tree.unflatten(structure, leaves))

    def __call__(self, *arguments: Any) -> Any:
        """Run the function, planning it first if need be."""
        if not self._checked:
            self._plan_for(arguments)
        if self._compiled is None:
            self._compiled = self._made()
        if jax.tree.map(_signature, abstract(arguments)) != jax.tree.map(
            _signature, self._arguments
        ):
            raise PlanError(
                "the arguments have other shapes, dtypes or structure than those planned for: "
                "compile again for these arguments"
            )
        return self._compiled(*jax.device_put(arguments, self.argument_sharding))

    def lower(self) -> jax.stages.Lowered:
        """The function lowered with its planned layout."""
        plan_ready = self.plan
        assert plan_ready is not None and self._arguments is not None
        specs = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            self._arguments,
            self.argument_sharding,
        )
        return jax.jit(self._function).lower(*specs)

    @property
    def report(self) -> CompileReport:
        """What the target's compiler makes of the function, as `CompiledModel.report`. Made once.

        Raises:
          CompileError, DeviceError, MeshError: as there.
        """
        if self._report is None:
            lowered = self.lower()
            options = self._mapped_options(lowered)
            _, report = report_on_target(
                lowered,
                self._target,
                self.plan,
                model_flops=self._model_flops,
                compiler_options=options,
            )
            self._report = dataclasses.replace(report, memory_pictures=self._mapping.pictures)
        return self._report

    def _mapped_options(self, lowered: jax.stages.Lowered) -> dict[str, Any]:
        """Compiler options for the function, its memory mapping settled in the plan."""
        self._plan = self._mapping.settled(self.plan, lowered)
        return self._mapping.options(self._plan)

    def _made(self) -> jax.stages.Compiled:
        lowered = self.lower()
        return lowered.compile(compiler_options=self._mapped_options(lowered) or None)

    def memory_report(self) -> MemoryReport:
        """The compiler's memory figures beside the plan's."""
        if self._compiled is None:
            self._compiled = self._made()
        return memory_report(self.plan.cost.memory, self._compiled)

    def _plan_for(self, arguments: tuple[Any, ...]) -> None:
        roles = self._roles or default_roles(len(arguments))
        if len(roles) != len(arguments):
            raise ModelError(
                f"{len(roles)} argument roles were given for {len(arguments)} arguments: give one "
                "each"
            )
        self._arguments = tuple(abstract(a) for a in arguments)
        program, _ = trace_function(self._function, self._arguments, roles)
        if self._plan is not None:
            planning.check(self._plan, program, self._target, self._wishes.task)
        else:
            made = planning.make(program, self._target, self._wishes, lambda layout: 0)
            self._plan = next(made).plan
        self._model_flops = model_flops(analyse(program), trains=False)
        self._checked = True


def _signature(x: Any) -> tuple[tuple[int, ...], str]:
    return tuple(x.shape), str(x.dtype)
