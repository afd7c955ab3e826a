"""The memory mapping of a planned program: searched once, or taken from its plan.

plan has a mapping     -> used; a warning if another libtpu found it
"off"                  -> nothing
target is no TPU       -> nothing, noted
"auto" or a budget     -> searched on the lowered program; options and record go into the plan
the search cannot      -> the compiler's own mapping, with a note, and a warning where that is odd
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

from autoshard.compiler_options import of_chip
from autoshard.compiling import compiler_versions
from autoshard.errors import ModelError
from autoshard.memory_compiler import LoweredCompiler
from autoshard.memory_record import (
    MemoryMappingRecord,
    MemoryPicture,
    pictures_of,
    record_of,
)
from autoshard.plan import Plan
from autoshard.target import Target
from memory_planner.errors import MemoryPlannerError
from memory_planner.mapper import Budget, map_memory
from memory_planner.session import NoContentionError

NOTE_PREFIX = "memory mapping"  # of the notes that say why a plan has none
_UNKNOWN_VERSION = "unknown"


class MemoryMappingWarning(UserWarning):
    """The compiler's own memory mapping is used where a better one was asked for, or one that
    another compiler was asked about.
    """


def as_budget(memory_mapping: Any) -> Budget | None:
    """What `memory_mapping=` asks for; None where it is off.

    Raises:
      ModelError: it is none of what it may be.
    """
    if isinstance(memory_mapping, Budget):
        return memory_mapping
    if memory_mapping == "off":
        return None
    if memory_mapping == "auto":
        return Budget()
    raise ModelError(
        f"memory_mapping={memory_mapping!r} is unknown: use 'off', 'auto' or an "
        "autoshard.MemoryBudget(...)"
    )


def libtpu_version() -> str:
    """Of the installed TPU compiler."""
    return dict(compiler_versions()).get("libtpu", _UNKNOWN_VERSION)


class PlannedMapping:
    """Decides on the mapping of one planned program, once.

    Args:
      budget: what to spend; None to search nothing.
      target: of the program.
      say: called with a line now and then.

    Attributes:
      pictures: of the search, if there was one.
    """

    def __init__(self, budget: Budget | None, target: Target, say: Callable[[str], None]) -> None:
        self._budget, self._target, self._say = budget, target, say
        self._is_settled = False
        self.pictures: tuple[MemoryPicture, ...] = ()

    def settled(
        self,
        plan: Plan,
        lowered: jax.stages.Lowered,
        compiler_options: Mapping[str, Any] | None = None,
    ) -> Plan:
        """The plan with the options to compile it with, and a note where there are none.

        Args:
          plan: as it is.
          lowered: the program.
          compiler_options: of the user, beneath those that are tried.
        """
        if self._is_settled:
            return plan
        self._is_settled = True
        if plan.memory_mapping is not None:
            self._check_version(plan, plan.memory_mapping)
            return plan
        if self._budget is None:
            return plan
        if self._target.topology.platform != "tpu":
            platform = self._target.topology.platform
            return _noted(plan, f"{NOTE_PREFIX} steers the TPU compiler; {platform} has none")
        return self._searched(plan, lowered, self._budget, compiler_options)

    def options(
        self, plan: Plan, compiler_options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Compiler options of a settled plan: of its chip, above them its own, and the user's above
        those; none but the user's where the target is no TPU.
        """
        return {**self.options_of_chip, **self._of_plan(plan), **(compiler_options or {})}

    @property
    def options_of_chip(self) -> dict[str, str]:
        """Compiler options for whatever is compiled for the target."""
        return of_chip(self._target.topology)

    def _of_plan(self, plan: Plan) -> dict[str, str]:
        return dict(plan.compiler_options) if self._target.topology.platform == "tpu" else {}

    def _searched(
        self,
        plan: Plan,
        lowered: jax.stages.Lowered,
        budget: Budget,
        compiler_options: Mapping[str, Any] | None,
    ) -> Plan:
        target, libtpu = self._target, libtpu_version()
        compiler = LoweredCompiler(
            lowered,
            target.topology.compiler_name,
            tuple(target.mesh(plan.mesh).devices.flat),
            tuple(sorted(self.options(plan, compiler_options).items())),
        )
        try:
            mapped = map_memory(compiler, target.machine(plan.mesh), budget, self._say)
        except NoContentionError as error:
            return _noted(plan, f"{NOTE_PREFIX}: {error}")
        except MemoryPlannerError as error:  # no other order can be had, or none at all
            text = f"{NOTE_PREFIX} of libtpu {libtpu} stays as it is: {error}"
            warnings.warn(text, MemoryMappingWarning, stacklevel=2)
            return _noted(plan, text)
        self.pictures = pictures_of(mapped)
        record = record_of(mapped, libtpu)
        self._say(f"memory mapping: {record}")
        options = {**dict(plan.compiler_options), **dict(mapped.options)}
        return dataclasses.replace(
            plan, compiler_options=tuple(options.items()), memory_mapping=record
        )

    def _check_version(self, plan: Plan, record: MemoryMappingRecord) -> None:
        installed = libtpu_version()
        if plan.compiler_options and record.libtpu != installed:
            warnings.warn(
                f"the plan's memory mapping was found with libtpu {record.libtpu}, and this is "
                f"{installed}: its options are used, but name instructions that this compiler may "
                "call otherwise; search again with memory_mapping='auto' and a plan without them "
                "(dataclasses.replace(plan, compiler_options=(), memory_mapping=None))",
                MemoryMappingWarning,
                stacklevel=2,
            )


def _noted(plan: Plan, note: str) -> Plan:
    notes = (*(n for n in plan.notes if n != note), note)
    return dataclasses.replace(plan, notes=notes)
