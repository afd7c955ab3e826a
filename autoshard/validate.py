"""Checks any plan against a program and a mesh.

Brute force on purpose, and sharing no code with what makes plans: it trusts nothing but the shapes
in the plan's rows, the program's inputs and the axis sizes.
"""

from typing import Any

from autoshard.errors import PlanError
from autoshard.plan import Plan
from passes.program import Leaf


def problems(plan: Plan, inputs: tuple[Leaf, ...], axis_sizes: dict[str, int]) -> list[str]:
    """Everything that is wrong with a plan, in words; empty for a valid one.

    Args:
      plan: the plan.
      inputs: the inputs of the program that it should be for.
      axis_sizes: the axes of the mesh that it should be for, before any splitting.
    """
    found: list[str] = []
    parts: dict[str, int] = {}
    counts = {len(plan.mesh.shape.names), len(plan.mesh.parts), len(plan.mesh.part_sizes)}
    if len(counts) > 1 or any(
        len(names) != len(sizes)
        for names, sizes in zip(plan.mesh.parts, plan.mesh.part_sizes, strict=True)
    ):
        return ["the mesh's axes, their parts and the parts' sizes differ in number"]
    for axis, names, sizes in zip(
        plan.mesh.shape.names, plan.mesh.parts, plan.mesh.part_sizes, strict=True
    ):
        product = 1
        for name, size in zip(names, sizes, strict=True):
            if name in parts:
                found.append(f"mesh part {name!r} occurs twice")
            parts[name] = size
            product *= size
        if axis not in axis_sizes:
            found.append(f"the plan's axis {axis!r} is not in the mesh")
        elif axis_sizes[axis] != product:
            found.append(f"axis {axis!r} has {axis_sizes[axis]} devices, its parts {product}")
    for axis in axis_sizes:
        if axis not in plan.mesh.shape.names:
            found.append(f"mesh axis {axis!r} is not in the plan")
    rows = {(a.leaf.role.value, a.leaf.path): a for a in plan.arrays}
    if len(rows) != len(plan.arrays):
        found.append("an array occurs twice")
    for leaf in inputs:
        row = rows.pop((leaf.role.value, leaf.path), None)
        if row is None:
            found.append(f"{leaf.path} has no layout")
        elif row.leaf.shape != leaf.shape or row.leaf.dtype != leaf.dtype:
            found.append(f"{leaf.path} is {leaf.dtype}{leaf.shape}, the plan says "
                         f"{row.leaf.dtype}{row.leaf.shape}")  # fmt: skip
        else:
            found += _row_problems(row, parts)
    found += [f"{path} is laid out but not in the program" for _, path in rows]
    order = [(a.leaf.role.value, a.leaf.path) for a in plan.arrays]
    if not found and order != [(leaf.role.value, leaf.path) for leaf in inputs]:
        found.append("its rows are not in the order of the program's inputs")
    used = {
        p for a in plan.arrays if a.leaf.role.value == "batch" for dim in a.compute for p in dim
    }
    for part in (*plan.data_parts, *plan.tensor_parts):
        if part not in parts:
            found.append(f"the plan uses {part!r}, which the mesh lacks")
    if not used <= set(plan.data_parts) | set(plan.tensor_parts):
        found.append("the batch is sharded over axes that the plan does not list")
    return found


def _row_problems(row: Any, parts: dict[str, int]) -> list[str]:
    found = []
    path, shape = row.leaf.path, row.leaf.shape
    if len(row.dims) != len(shape):
        found.append(f"{path}: {len(row.dims)} names for {len(shape)} dimensions")
    for kind in ("compute", "param", "grad", "opt"):
        spec = getattr(row, kind)
        if len(spec) != len(shape):
            found.append(
                f"{path}: the {kind} spec has {len(spec)} entries for {len(shape)} dimensions"
            )
            continue
        seen: set[str] = set()
        for d in range(len(shape)):
            shards = 1
            for part in spec[d]:
                if part not in parts:
                    found.append(f"{path}: the {kind} spec names {part!r}, which the mesh lacks")
                    continue
                if part in seen:
                    found.append(f"{path}: the {kind} spec uses {part!r} twice")
                seen.add(part)
                shards *= parts[part]
            if shape[d] % shards != 0:
                found.append(
                    f"{path}: dimension {d} of size {shape[d]} does not divide by {shards}"
                )
            used = row.compute[d] if d < len(row.compute) else ()
            if tuple(spec[d][: len(used)]) != tuple(used):
                found.append(
                    f"{path}: the {kind} spec does not refine the compute spec in dimension {d}"
                )
    return found


def validate(plan: Plan, inputs: tuple[Leaf, ...], axis_sizes: dict[str, int]) -> None:
    """Raises PlanError naming the first problems of an invalid plan; see `problems`."""
    found = problems(plan, inputs, axis_sizes)
    if found:
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        raise PlanError(
            f"the plan for {plan.program.name} is not valid: {'; '.join(found[:5])}{more}. Plan "
            "again"
        )
