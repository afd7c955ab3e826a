"""A plan as text for people."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from autoshard.layouts import ArrayLayout
from autoshard.memory_record import BASIS, MemoryMappingRecord
from autoshard.predicted_collectives import PredictedCollective
from passes.program import Role
from passes.spec import Spec

if TYPE_CHECKING:  # the plan module renders itself through this one
    from autoshard.plan import Plan
    from autoshard.search_record import SearchRecord

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(size: float) -> str:
    """`1.5 MiB`: three significant digits in binary units."""
    power = min(int(math.log(size, 1024)), len(_UNITS) - 1) if size >= 1 else 0
    scaled = size / 1024**power
    if power == 0:
        return f"{scaled:.0f} B"
    return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f} {_UNITS[power]}"


def format_spec(spec: Spec) -> str:
    """`(data, -, model)`: one entry a dimension, `-` where it is whole."""
    return "(" + ", ".join("*".join(dim) or "-" for dim in spec) + ")"


def group_path(path: str) -> str:
    """A path without layer numbers: `h_3/attn` becomes `h_*/attn`, `layers/3` `layers/*`."""
    return re.sub(r"(?<![^/_])\d+(?=/|$)", "*", path)


def _table(*columns: str, right: Iterable[int] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    return table


@dataclasses.dataclass(frozen=True)
class ArrayRow:
    """Arrays of a plan that differ in their layer's number alone.

    Attributes:
      path: theirs, layer numbers as `*`; empty for a batch that is one array.
      role: what they are to the training loop.
      count: how many they are.
      shape: of each.
      dims: names of its dimensions.
      used: how the computation sees them.
      stored: how they lie between steps, and their optimizer state if otherwise; `=` as used.
      size_bytes: what a device stores of all of them.
      rule: the rule set that decided.
      why: its reason.
    """

    path: str
    role: Role
    count: int
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    used: str
    stored: str
    size_bytes: float
    rule: str
    why: str


def array_rows(plan: Plan) -> tuple[ArrayRow, ...]:
    """The plan's arrays grouped by layer; PRNG keys and constants are left out."""
    shards = plan.mesh.refined.by_name
    groups: dict[tuple[object, ...], list[ArrayLayout]] = {}
    for array in plan.arrays:
        if array.leaf.role in (Role.RNG, Role.CONSTANT):
            continue
        key = (array.leaf.role, group_path(array.leaf.path), array.leaf.shape, array.dims,
               array.compute, array.param, array.grad, array.opt, array.rule)  # fmt: skip
        groups.setdefault(key, []).append(array)
    rows = []
    for members in groups.values():
        first = members[0]
        degree = math.prod(shards[p] for dim in first.param for p in dim)
        stored = format_spec(first.param) if first.param != first.compute else "="
        if first.opt != first.param:
            stored += f" opt {format_spec(first.opt)}"
        rows.append(
            ArrayRow(
                path=group_path(first.leaf.path) if len(members) > 1 else first.leaf.path,
                role=first.leaf.role,
                count=len(members),
                shape=first.leaf.shape,
                dims=first.dims,
                used=format_spec(first.compute),
                stored=stored,
                size_bytes=len(members) * first.leaf.size_bytes / degree,
                rule=first.rule,
                why=first.why,
            )
        )
    return tuple(rows)


def _arrays(plan: Plan) -> tuple[Table, dict[str, int]]:
    """The table of arrays, and the reasons that its last column refers to by number."""
    columns = ("array", "n", "shape", "dimensions", "used as", "stored as", "per device", "rule")
    table = _table(*columns, right=(1, 6))
    reasons: dict[str, int] = {}
    for row in array_rows(plan):
        table.add_row(
            (row.path or "batch") + ("" if row.role is Role.PARAMETER else f" [{row.role.value}]"),
            str(row.count),
            "x".join(map(str, row.shape)) or "scalar",
            " x ".join(row.dims),
            row.used,
            row.stored,
            format_bytes(row.size_bytes),
            f"{row.rule} [{reasons.setdefault(row.why, len(reasons) + 1)}]",
        )
    return table, reasons


def _costs(plan: Plan) -> Table:
    cost, memory = plan.cost, plan.cost.memory
    table = _table("per device and step", "estimated", right=(1,))
    rows = [
        ("parameters as stored", format_bytes(memory.parameters_bytes)),
        ("optimizer state", format_bytes(memory.optimizer_bytes)),
        ("gradients", format_bytes(memory.gradients_bytes)),
        ("parameters gathered for use", format_bytes(memory.gathered_bytes)),
        ("activations (rough)", format_bytes(memory.activations_bytes)),
        ("sent for partial sums of activations", format_bytes(cost.tensor_bytes)),
        ("sent to sum gradients", format_bytes(cost.gradient_bytes)),
        ("sent to gather parameters", format_bytes(cost.gather_bytes)),
        ("floating-point operations", f"{cost.flops:.3g}"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _collectives(plan: Plan) -> Table:
    """Predicted collectives, those alike in kind, purpose, phase and axes in one row."""
    table = _table("collectives", "of", "in", "over", "n", "payload", "sent", right=(4, 5, 6))
    groups: dict[tuple[str, ...], list[PredictedCollective]] = {}
    for c in plan.cost.collectives:
        groups.setdefault((c.kind, c.purpose, c.phase, "*".join(c.axes)), []).append(c)
    for key, members in groups.items():
        table.add_row(
            *key,
            str(sum(c.count for c in members)),
            format_bytes(sum(c.count * c.payload_bytes for c in members)),
            format_bytes(sum(c.sent_bytes for c in members)),
        )
    return table


def _alternatives(plan: Plan) -> Table:
    columns = ("rules", "mesh", "saved", "memory", "moved", "step", "verdict")
    table = _table(*columns, right=(3, 4, 5))
    for other in plan.alternatives:
        table.add_row(
            "+".join(other.rules),
            other.mesh,
            other.kept,
            format_bytes(other.memory_bytes) if other.memory_bytes is not None else "-",
            format_bytes(other.moved_bytes) if other.moved_bytes is not None else "-",
            format_ms(other.score_s),
            other.verdict,
        )
    return table


def format_ms(seconds: float | None) -> str:
    """`12.3 ms`; `-` for None."""
    return "-" if seconds is None else f"{seconds * 1e3:.4g} ms"


def _times(plan: Plan) -> Table:
    time = plan.cost.time
    table = _table("step", "estimated", right=(1,))
    rows = [
        ("products", time.products_s),
        ("memory traffic beside them", time.traffic_s),
        ("optimizer", time.optimizer_s),
        ("communication that nothing hides", time.exposed_s),
        ("waiting for other stages", time.idle_s),
        ("in all", time.total_s),
    ]
    for name, seconds in rows:
        if seconds or name == "in all":
            table.add_row(name, format_ms(seconds))
    return table


def _runner_ups(record: SearchRecord) -> Table:
    table = _table("choice", "chosen", "runner-up", "slower by", "memory", right=(3, 4))
    for other in record.runner_ups:
        memory = format_bytes(other.memory_bytes) + ("" if other.fits else " (does not fit)")
        table.add_row(other.choice, other.chosen, other.other, format_ms(other.slower_s), memory)
    return table


def _verified(plan: Plan) -> Table:
    table = _table(
        "compiled layout", "mesh", "step: estimated", "simulated", "memory: estimated", "compiled",
        "verdict", right=(2, 3, 4, 5),
    )  # fmt: skip
    for one in plan.verified:
        table.add_row(
            one.rules,
            one.mesh,
            format_ms(one.estimated_s),
            format_ms(one.simulated_s),
            format_bytes(one.estimated_bytes),
            format_bytes(one.compiled_bytes),
            one.verdict,
        )
    return table


def _search(console: Console, plan: Plan) -> None:
    record = plan.search
    if plan.alternatives:
        console.print("Considered (memory, bytes moved and step are per device, all estimated):")
        console.print(_alternatives(plan))
        console.print()
    if record is None or not plan.alternatives:
        return
    limit = "" if record.limit_bytes is None else f", a limit of {format_bytes(record.limit_bytes)}"
    console.print(
        f"{record.evaluated} layouts costed{limit}; the step is {record.gap:.0%} above what none "
        f"can beat by the same estimate ({format_ms(record.bound_s)}: all products shared evenly, "
        "nothing sent)"
    )
    if record.runner_ups:
        console.print("For each choice, the best layout that has another (estimated):")
        console.print(_runner_ups(record))
        console.print()
    if plan.verified:
        console.print(
            f"Compiled for {plan.topology} (step simulated from the compiler's schedule, not run):"
        )
        console.print(_verified(plan))
        console.print()


def mapping_rows(record: MemoryMappingRecord) -> tuple[tuple[str, ...], ...]:
    """Before and after: whose mapping, cycles, stalls, both, copied, share of the time saved."""
    rows = (("default", record.default), (f"best: {record.method}", record.best))
    return tuple(
        (
            name,
            f"{cost.cycles:,.0f}",
            f"{cost.stall_cycles:,.0f}",
            f"{cost.total:,.0f}",
            format_bytes(cost.copied_bytes),
            f"{1.0 - cost.total / record.default.total if record.default.total else 0.0:.2%}",
        )
        for name, cost in rows
    )


MAPPING_COLUMNS = ("memory mapping", "cycles", "stalls", "total", "copied", "gain")


def mapping_table(record: MemoryMappingRecord) -> str:
    """`mapping_rows` as text, with what the figures are and what they took."""
    stream = io.StringIO()
    console = Console(file=stream, width=140, color_system=None, highlight=False, markup=False)
    table = _table(*MAPPING_COLUMNS, right=range(1, len(MAPPING_COLUMNS)))
    for row in mapping_rows(record):
        table.add_row(*row)
    console.print(table)
    console.print(
        f"{BASIS}; of one step on one device, {record.buffers} buffers, {record.assignments} "
        f"assignments and {record.compiles} compilations of libtpu {record.libtpu}"
    )
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def axis_uses(plan: Plan) -> dict[str, str]:
    """For each of the user's axes, in words, what it is used for."""
    uses = {}
    for axis, parts in zip(plan.mesh.shape.names, plan.mesh.parts, strict=True):
        words = []
        if any(p in plan.data_parts for p in parts):
            words.append("batch")
            if plan.zero_stage:
                words.append(f"ZeRO stage {plan.zero_stage}")
        sharded = dict.fromkeys(
            name.split("*")[0]
            for array in plan.arrays
            if array.leaf.role is Role.PARAMETER
            for name, dim in zip(array.dims, array.compute, strict=True)
            if any(p in parts for p in dim)
        )
        if sharded:
            words.append("tensor: " + ", ".join(sharded))
        if len(parts) > 1:
            split = " x ".join(str(plan.mesh.refined.size(p)) for p in parts)
            words.append(f"split in {', '.join(parts)} ({split})")
        uses[axis] = "; ".join(words) or "nothing"
    return uses


def explain(plan: Plan, width: int) -> str:
    """Render a plan; see `Plan.explain`."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, highlight=False, markup=False)
    console.print(
        f"Plan for {plan.program.name} ({plan.task}) on {plan.topology}, mesh {plan.mesh.shape}, "
        f"rules {'+'.join(plan.rules)}"
    )
    for axis, use in axis_uses(plan).items():
        console.print(f"  axis {axis}={plan.mesh.shape.size(axis)}: {use}")
    console.print()
    arrays, reasons = _arrays(plan)
    console.print(arrays)
    for reason, number in reasons.items():
        console.print(f"  [{number}] {reason}")
    console.print("  stored as =: as it is used; n: arrays of this kind, their bytes summed up\n")
    console.print(_costs(plan))
    console.print()
    console.print(_times(plan))
    console.print()
    if plan.cost.collectives:
        console.print(_collectives(plan))
        console.print(
            "  n: arrays a step; payload: on a device, of the larger side; all estimated\n"
        )
    _search(console, plan)
    if plan.memory_mapping is not None:
        console.print(f"{mapping_table(plan.memory_mapping)}\n", soft_wrap=True)
    elif plan.compiler_options:
        options = ", ".join(f"{name}={value}" for name, value in plan.compiler_options)
        console.print(f"Compiled with {options}\n", soft_wrap=True)
    for one in plan.passes:
        console.print(f"pass {one}")
        for note in one.notes:
            console.print(f"  {note}")
    for note in plan.notes:
        console.print(f"note: {note}")
    if plan.unmodelled:
        listed = ", ".join(f"{name} ({count})" for name, count in plan.unmodelled)
        console.print(f"unmodelled primitives, treated as if they needed whole arrays: {listed}")
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
