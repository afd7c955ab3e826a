"""Rules of operations that move, merge, split, cut or join dimensions without arithmetic."""

import math
from collections.abc import Sequence

from autoshard.factors import DimFactors, FactorRole, OpRule, RuleWriter
from autoshard.graph import Op, OpGraph

BLOCKED = FactorRole.BLOCKED


def reshape(op: Op, graph: OpGraph) -> OpRule:
    """Both shapes refined into common factors, major to minor.

    A pair such as 12x8 -> 8x12 has no nested refinement: the greatest common divisor is split off
    the major side and the coprime rest is blocked. `dimensions` permutes the operand beforehand.
    """
    source, target = graph.shape(op.inputs[0]), graph.shape(op.outputs[0])
    writer = RuleWriter()
    if 0 in source:  # empty arrays have no common refinement: (0, 3) to (0, 5)
        return writer.rule([writer.dims(source, BLOCKED)], [writer.dims(target, BLOCKED)])
    operand: list[DimFactors] = [() for _ in source]
    result: list[DimFactors] = [() for _ in target]
    order = op.params.get("dimensions") or range(len(source))
    left = [(int(d), source[d]) for d in order if source[d] != 1][::-1]
    right = [(d, s) for d, s in enumerate(target) if s != 1][::-1]
    while left and right:
        (i, a), (j, b) = left.pop(), right.pop()
        common = math.gcd(a, b)
        if common > 1:
            factor = writer.new(common)
            operand[i] += factor
            result[j] += factor
            if a > common:
                left.append((i, a // common))
            if b > common:
                right.append((j, b // common))
            continue
        # Coprime: block dimensions on both sides until their products meet again.
        product_a, product_b = a, b
        operand[i] += writer.new(a, BLOCKED)
        result[j] += writer.new(b, BLOCKED)
        while product_a != product_b:
            if product_a < product_b:
                i, a = left.pop()
                product_a *= a
                operand[i] += writer.new(a, BLOCKED)
            else:
                j, b = right.pop()
                product_b *= b
                result[j] += writer.new(b, BLOCKED)
    return writer.rule([tuple(operand)], [tuple(result)])


def broadcast_in_dim(op: Op, graph: OpGraph) -> OpRule:
    """Operand dimension i is result dimension `broadcast_dimensions[i]`; the others are new."""
    source, target = graph.shape(op.inputs[0]), graph.shape(op.outputs[0])
    writer = RuleWriter()
    letters = writer.dims(target)
    operand = tuple(
        letters[int(d)] if size == target[int(d)] else ()
        for d, size in zip(op.params["broadcast_dimensions"], source, strict=True)
    )
    return writer.rule([operand, *(() for _ in op.inputs[1:])], [letters])


def transpose(op: Op, graph: OpGraph) -> OpRule:
    """A permutation of dimensions."""
    writer = RuleWriter()
    letters = writer.dims(graph.shape(op.inputs[0]))
    return writer.rule([letters], [tuple(letters[int(d)] for d in op.params["permutation"])])


def squeeze(op: Op, graph: OpGraph) -> OpRule:
    """Drops dimensions of size 1."""
    shape = graph.shape(op.inputs[0])
    dropped = {int(d) % len(shape) for d in op.params["dimensions"]}
    writer = RuleWriter()
    letters = writer.dims(shape)
    return writer.rule([letters], [tuple(x for d, x in enumerate(letters) if d not in dropped)])


def _cut(writer: RuleWriter, shapes: Sequence[tuple[int, ...]]) -> list[tuple[DimFactors, ...]]:
    """Dimensions of equal size in all shapes are shared, others blocked and each array's own."""
    arrays: list[list[DimFactors]] = [[] for _ in shapes]
    for sizes in zip(*shapes, strict=True):
        shared = writer.new(sizes[0]) if len(set(sizes)) == 1 else None
        for array, size in zip(arrays, sizes, strict=True):
            array.append(writer.new(size, BLOCKED) if shared is None else shared)
    return [tuple(array) for array in arrays]


def resized(op: Op, graph: OpGraph) -> OpRule:
    """`slice`, `split`, `concatenate`: dimensions that keep their size are untouched."""
    writer = RuleWriter()
    cut = _cut(writer, [graph.shape(v) for v in (*op.inputs, *op.outputs)])
    return writer.rule(cut[: len(op.inputs)], cut[len(op.inputs) :])


def pad(op: Op, graph: OpGraph) -> OpRule:
    """Padded dimensions are blocked, even if cutting the other end keeps their size (a shift)."""
    source, target = graph.shape(op.inputs[0]), graph.shape(op.outputs[0])
    writer = RuleWriter()
    operand: list[DimFactors] = []
    result: list[DimFactors] = []
    for before, after, config in zip(source, target, op.params["padding_config"], strict=True):
        touched = any(int(amount) for amount in config)
        operand.append(writer.new(before, BLOCKED) if touched else writer.new(before))
        result.append(writer.new(after, BLOCKED) if touched else operand[-1])
    return writer.rule([tuple(operand), ()], [tuple(result)])


def dynamic_slice(op: Op, graph: OpGraph) -> OpRule:
    """Whole dimensions pass; sliced ones are blocked. The start indices are scalars."""
    writer = RuleWriter()
    operand, result = _cut(writer, [graph.shape(op.inputs[0]), graph.shape(op.outputs[0])])
    return writer.rule([operand, *(() for _ in op.inputs[1:])], [result])


def dynamic_update_slice(op: Op, graph: OpGraph) -> OpRule:
    """The update shares the dimensions that it fills wholly.

    An update of one row falls on one device, as a scatter's; one of several may straddle devices.
    """
    shape, update_shape = graph.shape(op.inputs[0]), graph.shape(op.inputs[1])
    writer = RuleWriter()
    letters: list[DimFactors] = []
    update: list[DimFactors] = []
    for size, rows in zip(shape, update_shape, strict=True):
        if rows == size:
            letters.append(writer.new(size))
            update.append(letters[-1])
        else:
            letters.append(writer.new(size, FactorRole.INDEXED if rows == 1 else BLOCKED))
            update.append(writer.new(rows, BLOCKED))
    starts = [() for _ in op.inputs[2:]]
    return writer.rule([tuple(letters), tuple(update), *starts], [tuple(letters)])


def rev(op: Op, graph: OpGraph) -> OpRule:
    """Reversed dimensions keep their layout but must be whole."""
    reversed_dims = {int(d) for d in op.params["dimensions"]}
    writer = RuleWriter()
    letters = tuple(
        writer.new(size, BLOCKED if d in reversed_dims else FactorRole.PARALLEL)
        for d, size in enumerate(graph.shape(op.inputs[0]))
    )
    return writer.rule([letters], [letters])


def stack(op: Op, graph: OpGraph) -> OpRule:
    """Equal operands joined along a new dimension `axis`."""
    writer = RuleWriter()
    letters = writer.dims(graph.shape(op.inputs[0]))
    axis = int(op.params.get("axis", 0)) % (len(letters) + 1)
    new = writer.new(len(op.inputs), BLOCKED)
    return writer.rule([letters] * len(op.inputs), [(*letters[:axis], new, *letters[axis:])])


def unstack(op: Op, graph: OpGraph) -> OpRule:
    """The reverse of `stack`."""
    shape = graph.shape(op.inputs[0])
    axis = int(op.params.get("axis", 0)) % len(shape)
    writer = RuleWriter()
    letters = tuple(
        writer.new(size, BLOCKED if d == axis else FactorRole.PARALLEL)
        for d, size in enumerate(shape)
    )
    rest = (*letters[:axis], *letters[axis + 1 :])
    return writer.rule([letters], [rest] * len(op.outputs))


def tile(op: Op, graph: OpGraph) -> OpRule:
    """Each dimension repeated: result dimension = (repetitions, dimension)."""
    source, target = graph.shape(op.inputs[0]), graph.shape(op.outputs[0])
    writer = RuleWriter()
    letters = writer.dims(source)
    extra = len(target) - len(source)
    result = list(writer.dims(target[:extra]))
    for d, size in enumerate(source):
        result.append(writer.new(target[extra + d] // size) + letters[d])
    return writer.rule([letters], [tuple(result)])


def scan_xs(op: Op, graph: OpGraph) -> OpRule:
    """One iteration's slice: the leading dimension must be whole, the rest pass."""
    writer = RuleWriter()
    length = writer.new(graph.shape(op.inputs[0])[0], BLOCKED)
    letters = writer.dims(graph.shape(op.outputs[0]))
    return writer.rule([(length, *letters)], [letters])


def scan_ys(op: Op, graph: OpGraph) -> OpRule:
    """The stack of emitted values."""
    writer = RuleWriter()
    length = writer.new(graph.shape(op.outputs[0])[0], BLOCKED)
    letters = writer.dims(graph.shape(op.inputs[0]))
    return writer.rule([letters], [(length, *letters)])
