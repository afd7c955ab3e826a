"""Bytes that an operation reads and writes in HBM, counted from shapes and layouts.

A fusion that takes a slice of a large operand reads the slice only, and one that writes a slice
into an operand in place writes the slice only. What lies in VMEM or with the host costs no HBM.
"""

from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.shapes import HOST_SPACE, Array, Shape, arrays

_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
_VIEWS = frozenset(("bitcast", "reshape", "get-tuple-element", "tuple"))
_MAX_VIEWS = 64


def hbm_bytes(shape: Shape) -> int:
    """Bytes of the arrays of a shape that lie in HBM."""
    return sum(array.padded_bytes for array in arrays(shape) if array.space == 0)


def copied(module: HloModule, c: Computation, i: Instruction) -> tuple[int, bool]:
    """Bytes that an instruction of `opcodes.COPY_STARTS` moves, and whether to or from the host."""
    shapes = [a for a in arrays(i.shape) if a.dims]
    operand = module.shape_of(c, i.operands[0]) if i.operands else i.shape
    size = min((a.padded_bytes for a in shapes), default=0)
    return size, any(a.space == HOST_SPACE for a in (*shapes, *arrays(operand)))


def hbm_traffic(module: HloModule, c: Computation, i: Instruction) -> float:
    """Bytes that one execution of an instruction moves to and from HBM."""
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return float(2 * hbm_bytes(i.shape))
    if i.opcode in ("dynamic-update-slice", "scatter"):
        if len(i.operands) < 2:
            return 0.0
        update = module.shape_of(c, i.operands[-1 if i.opcode == "scatter" else 1])
        return float(2 * hbm_bytes(update))
    if i.opcode == "fusion" and i.called and i.called[0] in module.computations:
        return _fusion_traffic(module, c, i, module.computations[i.called[0]])
    read = sum(hbm_bytes(module.shape_of(c, name)) for name in dict.fromkeys(i.operands))
    return float(read + hbm_bytes(i.shape))


def _fusion_traffic(module: HloModule, c: Computation, i: Instruction, inner: Computation) -> float:
    users: dict[str, list[Instruction]] = {}
    for j in inner.instructions:
        for name in j.operands:
            users.setdefault(name, []).append(j)
    total, seen = 0.0, set[str]()
    for number, name in enumerate(i.operands):
        parameter = inner.parameters.get(number)
        if parameter is None or name in seen:
            continue
        seen.add(name)
        whole = hbm_bytes(module.shape_of(c, name))
        total += min(whole, _read(parameter, users, whole)) if whole else 0
    return total + _written(inner, i)


def _read(value: Instruction, users: dict[str, list[Instruction]], whole: int) -> float:
    """Bytes read of a value inside a fusion: of its slices, if only slices use it."""
    total, queue = 0.0, [value]
    for _ in range(_MAX_VIEWS):
        if not queue:
            return total
        current = queue.pop()
        for user in users.get(current.name, []):
            if user.opcode in _SLICES and user.operands[0] == current.name:
                total += hbm_bytes(user.shape)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == current.name:
                continue  # updated in place
            elif user.opcode in _VIEWS:
                queue.append(user)
            else:
                return float(whole)
    return float(whole)


def _written(inner: Computation, i: Instruction) -> float:
    root = inner.root
    outputs = [inner.by_name.get(n) for n in root.operands] if root.opcode == "tuple" else [root]
    shapes = list(arrays(i.shape))
    total = 0.0
    for number, output in enumerate(outputs):
        shape = shapes[number] if number < len(shapes) else None
        if shape is None or shape.space != 0:
            continue
        output = _unviewed(inner, output)
        if output is not None and output.opcode == "dynamic-update-slice" and output.operands[1:]:
            update = inner.by_name.get(output.operands[1])
            total += hbm_bytes(_in_hbm(update.shape)) if update is not None else 0
        elif output is None or output.opcode != "parameter":
            total += shape.padded_bytes
    return total


def _unviewed(inner: Computation, value: Instruction | None) -> Instruction | None:
    """What a bitcast or reshape is of."""
    for _ in range(_MAX_VIEWS):
        if value is None or value.opcode not in ("bitcast", "reshape") or not value.operands:
            break
        value = inner.by_name.get(value.operands[0])
    return value


def _in_hbm(shape: Shape) -> Shape:
    """A shape as it lies in HBM, wherever it is now."""
    if isinstance(shape, Array) and shape.space:
        return Array(shape.dtype, shape.dims, shape.minor_to_major, shape.tile, 0, shape.bits)
    return shape
