"""The figures that a report leads with, each with where it comes from."""

import dataclasses
import enum
import math

from autoshard.compile_report import CompileReport
from autoshard.html_report.formats import format_by_unit, format_share
from passes.program import Role


class Basis(enum.Enum):
    """Where a figure comes from.

    COMPILED: the target's compiler says so.
    SIMULATED: walking the compiler's schedule on a model of the machine gives it.
    ESTIMATED: the plan's own, before anything was compiled.
    DATASHEET: the maker of the hardware says so.
    """

    COMPILED = "compiled"
    SIMULATED = "simulated"
    ESTIMATED = "estimated"
    DATASHEET = "datasheet"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of the headline.

    Attributes:
      name: what it is.
      value: the number.
      unit: as in `Comparison`, or `share`, or a rate such as `tokens/s`.
      basis: where it comes from.
      remark: more about it, or empty.
      lower_is_better: else higher is.
    """

    name: str
    value: float
    unit: str
    basis: Basis
    remark: str = ""
    lower_is_better: bool = True

    @property
    def text(self) -> str:
        """The number as people read it."""
        return format_by_unit(self.value, self.unit)


def step_items(report: CompileReport) -> tuple[float, str]:
    """What one step works through: (number, `tokens` or `examples`); 0 of them if unknown.

    A batch array of two dimensions of integers is text; else dimension 0 of the batch counts.
    """
    leaves = [a.leaf for a in report.plan.arrays if a.leaf.role is Role.BATCH and a.leaf.shape]
    for leaf in leaves:
        if len(leaf.shape) == 2 and leaf.dtype.startswith(("int", "uint")):
            return float(math.prod(leaf.shape)), "tokens"
    return (float(leaves[0].shape[0]), "examples") if leaves else (0.0, "examples")


def hbm_capacity(report: CompileReport) -> int | None:
    """Bytes of HBM that a program can have on a device; None where nobody says."""
    if report.out_of_memory is not None:
        return report.out_of_memory.available_bytes
    chip = report.topology.chip
    return chip.memory_bytes // chip.devices_per_chip if chip is not None else None


def hbm_needed(report: CompileReport) -> int | None:
    """Bytes of HBM that a device needs at once, by the compiler."""
    if report.out_of_memory is not None:
        return report.out_of_memory.needed_bytes
    return report.memory.needed_bytes if report.memory is not None else None


def hbm_bandwidth(report: CompileReport) -> float | None:
    """Bytes a second between a device and its HBM, by the datasheet; None where nobody says."""
    chip = report.topology.chip
    return chip.hbm_bytes_per_s / chip.devices_per_chip if chip is not None else None


def fits(report: CompileReport) -> bool:
    """Whether the program fits."""
    return report.out_of_memory is None


def headline(report: CompileReport) -> tuple[Figure, ...]:
    """The figures that come first, those that are known."""
    return (*_time(report), *_memory(report))


def _time(report: CompileReport) -> tuple[Figure, ...]:
    timeline = report.timeline
    if timeline is None or not timeline.step_s:
        return ()
    step_s, devices = timeline.step_s, report.topology.device_count
    items, unit = step_items(report)
    figures = [Figure("step time", step_s, "seconds", Basis.SIMULATED)]
    if report.mfu is not None:
        rate = report.model_flops / step_s / devices
        of_peak = f"of {format_by_unit(report.peak_flops, 'FLOP/s')}"
        name = "model FLOP utilisation (MFU)"
        figures += [
            Figure(name, report.mfu, "share", Basis.SIMULATED, lower_is_better=False),
            Figure("model FLOP/s per device", rate, "FLOP/s", Basis.SIMULATED, of_peak, False),
        ]
    for name, seconds in (
        ("exposed communication", timeline.exposed_communication_s),
        ("exposed copies", timeline.exposed_copy_s),
    ):
        remark = f"{format_share(seconds / step_s)} of the step"
        figures.append(Figure(name, seconds, "seconds", Basis.SIMULATED, remark))
    if items:
        remark = f"{format_by_unit(items / step_s / devices, f'{unit}/s')} per device"
        figures.append(
            Figure("throughput", items / step_s, f"{unit}/s", Basis.SIMULATED, remark, False)
        )
    return tuple(figures)


def _memory(report: CompileReport) -> tuple[Figure, ...]:
    needed, capacity = hbm_needed(report), hbm_capacity(report)
    if needed is None:
        return ()
    remark = ""
    if capacity:
        share = format_share(needed / capacity)
        remark = f"{share} of {format_by_unit(capacity, 'bytes')}"
    figures = [Figure("HBM per device", needed, "bytes", Basis.COMPILED, remark)]
    if report.memory is not None:
        host = report.memory.host_arguments_bytes + report.memory.host_temporaries_bytes
        if host:
            figures.append(Figure("host memory per device", host, "bytes", Basis.COMPILED))
    return tuple(figures)
