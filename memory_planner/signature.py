"""What an operation is and where its operands and results lie: equal ones can be recognised.

An operation that occurs in each of a model's layers costs the same in each, as long as its operands
and results lie in the same memories. Two are equal here when their shapes, and the operations
inside them, are; they are alike when they do the same kinds of work, in whatever order.
"""

import hashlib
from collections.abc import Callable, Iterator

from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.shapes import Array, Shape, arrays

FAST_SPACE = 1
# Of an instruction inside a fusion, what changes its work besides opcode and shapes.
_ATTRIBUTES = (
    "window", "dim_labels", "lhs_contracting_dims", "rhs_contracting_dims", "lhs_batch_dims",
    "rhs_batch_dims", "dimensions", "slice", "padding", "feature_group_count",
    "dynamic_slice_sizes", "direction", "custom_call_target", "operand_precision", "kind",
)  # fmt: skip
# Of a vector unit's operations, those that take it equally long.
_ARITHMETIC = frozenset(("add", "subtract", "multiply", "maximum", "minimum"))


def placement(module: HloModule, c: Computation, i: Instruction) -> tuple[bool, ...]:
    """For each array of each operand, then of the result: whether it lies in fast memory."""
    return tuple(a.space == FAST_SPACE for _, a in _positions(module, c, i))


def positions(module: HloModule, c: Computation, i: Instruction) -> tuple[tuple[int, Array], ...]:
    """(operand's number, or -1 for the result; its array), in the order of `placement`."""
    return tuple(_positions(module, c, i))


def _positions(module: HloModule, c: Computation, i: Instruction) -> Iterator[tuple[int, Array]]:
    for number, name in enumerate(i.operands):
        yield from ((number, a) for a in arrays(module.shape_of(c, name)))
    yield from ((-1, a) for a in arrays(i.shape))


def signature(module: HloModule, c: Computation, i: Instruction) -> str:
    """A digest that is equal for operations of equal work."""
    return _digest(module, c, i, _line, _body)


def likeness(module: HloModule, c: Computation, i: Instruction) -> str:
    """A digest that is equal for operations of nearly equal work.

    They hold the same operations on the same shapes, but may add where others subtract, slice
    elsewhere, or do it in another order.
    """
    return _digest(module, c, i, _kind, _alike_body)


def _digest(
    module: HloModule,
    c: Computation,
    i: Instruction,
    line: Callable[[Instruction], str],
    body: Callable[[Computation], str],
) -> str:
    """Of an operation's own line, the shapes it works on, and the computations that it calls."""
    digest = hashlib.sha256()
    digest.update(line(i).encode())
    for number, array in _positions(module, c, i):
        digest.update(f"{number} {_shape(array)}".encode())
    for name in i.called:
        inner = module.computations.get(name)
        if inner is not None:
            digest.update(body(inner).encode())
    return digest.hexdigest()


def _alike_body(c: Computation) -> str:
    lines = []
    for j in c.instructions:
        operands = [c.by_name[name] for name in j.operands if name in c.by_name]
        number = "" if j.number is None else str(j.number)
        lines.append(f"{_kind(j)} {_shape(j.shape)} {number} {[_kind(o) for o in operands]}")
    return "\n".join(sorted(lines))


def _kind(i: Instruction) -> str:
    opcode = "arithmetic" if i.opcode in _ARITHMETIC else i.opcode
    return f"{opcode} {[i.attributes.get(name, '') for name in _ATTRIBUTES if name != 'slice']}"


def _body(c: Computation) -> str:
    numbers = {j.name: n for n, j in enumerate(c.instructions)}
    lines = (
        f"{_line(j)} {_shape(j.shape)} {[numbers.get(name, -1) for name in j.operands]} "
        f"{j.literal if j.opcode in ('parameter', 'constant') else ''}"
        for j in c.instructions
    )
    return "\n".join(lines)


def _line(i: Instruction) -> str:
    return f"{i.opcode} {[i.attributes.get(name, '') for name in _ATTRIBUTES]}"


def _shape(shape: Shape) -> str:
    return " ".join(f"{a.dtype}{a.dims}{a.minor_to_major}{a.tile}" for a in arrays(shape))
