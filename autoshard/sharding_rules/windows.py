"""Rules of convolutions and sliding windows."""

from collections.abc import Sequence

from autoshard.factors import DimFactors, FactorRole, OpRule, RuleWriter
from autoshard.graph import Op, OpGraph

BLOCKED = FactorRole.BLOCKED
CONTRACTED = FactorRole.CONTRACTED
HALO = FactorRole.HALO


def convolution(op: Op, graph: OpGraph) -> OpRule:
    """([b, c, space], [o, c, window]) -> [b, o, space], c and the window contracted.

    Grouped: the image's channels are (group, in) and the kernel's outputs (group, out). A
    convolution whose stride equals its window (a patch embedding) is a reshape and a product: image
    space is (patch, window), the window contracted. Other windows exchange a border.
    """
    numbers = op.params["dimension_numbers"]
    image_shape, kernel_shape = graph.shape(op.inputs[0]), graph.shape(op.inputs[1])
    result_shape = graph.shape(op.outputs[0])
    groups, batch_groups = op.params["feature_group_count"], op.params["batch_group_count"]
    writer = RuleWriter()
    image: list[DimFactors] = [() for _ in image_shape]
    kernel: list[DimFactors] = [() for _ in kernel_shape]
    result: list[DimFactors] = [() for _ in result_shape]

    batch = writer.new(result_shape[numbers.out_spec[0]])
    contracted = writer.new(kernel_shape[numbers.rhs_spec[1]], CONTRACTED)
    group = writer.new(max(groups, batch_groups))
    out = writer.new(kernel_shape[numbers.rhs_spec[0]] // max(groups, batch_groups))
    image[numbers.lhs_spec[0]] = (group + batch) if batch_groups > 1 else batch
    image[numbers.lhs_spec[1]] = (group + contracted) if groups > 1 else contracted
    kernel[numbers.rhs_spec[0]] = group + out
    kernel[numbers.rhs_spec[1]] = contracted
    result[numbers.out_spec[0]], result[numbers.out_spec[1]] = batch, group + out
    for axis, (i, k, o) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        sizes = (image_shape[i], kernel_shape[k], result_shape[o])
        image[i], kernel[k], result[o] = _space(writer, op, axis, sizes)
    return writer.rule([tuple(image), tuple(kernel)], [tuple(result)])


def _space(
    writer: RuleWriter, op: Op, axis: int, sizes: tuple[int, int, int]
) -> tuple[DimFactors, DimFactors, DimFactors]:
    image, window, result = sizes
    low, high = op.params["padding"][axis]
    stride = op.params["window_strides"][axis]
    dense = op.params["lhs_dilation"][axis] == 1 and op.params["rhs_dilation"][axis] == 1
    if dense and low == high == 0 and stride == window and image == result * window:
        patch, inside = writer.new(result), writer.new(window, CONTRACTED)
        return patch + inside, inside, patch
    if dense and stride == 1 and image == result and 0 <= low < window <= image:
        space = writer.new(image, HALO)
        return space, writer.new(window, BLOCKED), space
    if dense and image == window and 0 <= 2 * max(low, high) <= image:
        # The kernel covers the image and moves by the padding: the gradient of a kernel.
        inside = writer.new(image, CONTRACTED)
        return inside, inside, writer.new(result, BLOCKED)
    return writer.new(image, BLOCKED), writer.new(window, BLOCKED), writer.new(result, BLOCKED)


def reduce_window(op: Op, graph: OpGraph) -> OpRule:
    """Dimensions with a window of 1 pass; windowed ones are halo (same size) or blocked.

    The general form takes several arrays and then as many initial values.
    """
    return _windowed(op, graph, op.inputs[: len(op.outputs)], op.outputs)


def select_and_scatter_add(op: Op, graph: OpGraph) -> OpRule:
    """The gradient of a max-pool: (source, operand) -> operand's shape."""
    return _windowed(op, graph, op.inputs, op.outputs)


def _windowed(op: Op, graph: OpGraph, operands: Sequence[int], results: Sequence[int]) -> OpRule:
    params = op.params
    window, strides = params["window_dimensions"], params["window_strides"]
    padding = params["padding"]
    shapes = [graph.shape(v) for v in (*operands, *results)]
    writer = RuleWriter()
    arrays: list[list[DimFactors]] = [[] for _ in shapes]
    for d, sizes in enumerate(zip(*shapes, strict=True)):
        low, high = padding[d]
        if len(set(sizes)) == 1 and int(window[d]) == 1 and low == high == 0:
            dims = [writer.new(sizes[0])] * len(sizes)
        elif len(set(sizes)) == 1 and int(strides[d]) == 1 and min(low, high) >= 0:
            dims = [writer.new(sizes[0], HALO)] * len(sizes)
        else:
            dims = [writer.new(size, BLOCKED) for size in sizes]
        for array, dim in zip(arrays, dims, strict=True):
            array.append(dim)
    done = [tuple(a) for a in arrays]
    extra = [() for _ in op.inputs[len(operands) :]]
    return writer.rule([*done[: len(operands)], *extra], done[len(operands) :])
