"""Floating-point operations of instructions, counted from shapes.

A multiply-add is two. TPU fusions write batched products as convolutions whose batch is a padded
window, so only window positions that fall on data are counted (as XLA's own cost analysis does).
"""

import functools
import math
import re

from passes.hlo.errors import HloError
from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.shapes import Array, Shape

_MAX_WINDOW = 1 << 16
_MOST_INSIDE = 50_000
_CALLS = frozenset(("fusion", "call", "async-start"))


def product_flops(module: HloModule, computation: Computation, i: Instruction) -> float:
    """FLOPs of the matrix products and convolutions that one execution of `i` does.

    Called computations (fusions, calls) are included; loops and conditionals are not.

    Raises:
      HloError: as `products`.
    """
    return sum(_flops(module, c, product) for c, product in products(module, computation, i))


def _flops(module: HloModule, c: Computation, product: Instruction) -> float:
    if product.opcode == "dot":
        return _dot(module, c, product)
    return _convolution(module, c, product)


def product_dtype(module: HloModule, computation: Computation, i: Instruction) -> str:
    """Element type that the largest product of an instruction multiplies; empty if it has none."""
    best, size = "", -1.0
    for c, product in products(module, computation, i):
        operand = module.shape_of(c, product.operands[0]) if product.operands else None
        flops = _flops(module, c, product)
        if isinstance(operand, Array) and flops > size:
            best, size = operand.dtype, flops
    return best


def products(
    module: HloModule, computation: Computation, i: Instruction
) -> list[tuple[Computation, Instruction]]:
    """(computation, instruction) of every product and convolution that `i` contains.

    Raises:
      HloError: the computations inside call each other in a circle, or too often.
    """
    found: list[tuple[Computation, Instruction]] = []
    queue = [(computation, i)]
    visited = 0
    while queue:
        c, j = queue.pop()
        if j.opcode in ("dot", "convolution"):
            found.append((c, j))
        elif j.opcode in _CALLS and j.called and j.called[0] in module.computations:
            inner = module.computations[j.called[0]]
            visited += len(inner.instructions)
            if visited > _MOST_INSIDE:
                raise HloError(
                    f"{i.opcode} {i.name!r} holds more than {_MOST_INSIDE} instructions: its "
                    "computations call each other in a circle, so the text is damaged"
                )
            queue += [(inner, k) for k in reversed(inner.instructions)]
    return found


def _dot(module: HloModule, c: Computation, i: Instruction) -> float:
    left = module.shape_of(c, i.operands[0]) if i.operands else None
    if not isinstance(left, Array) or not isinstance(i.shape, Array):
        return 0.0
    contracted = {d for d in i.ints("lhs_contracting_dims") if d < len(left.dims)}
    return 2.0 * i.shape.size * math.prod(left.dims[d] for d in contracted)


_WINDOW = re.compile(r"(\w+)=([\d_x-]{1,400})")


def _convolution(module: HloModule, c: Computation, i: Instruction) -> float:
    shapes: list[Shape] = [module.shape_of(c, name) for name in i.operands[:2]]
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", i.attributes.get("dim_labels", ""))
    if labels is None or len(shapes) < 2:
        return 0.0
    left, kernel, out = shapes[0], shapes[1], i.shape
    if not (isinstance(left, Array) and isinstance(kernel, Array) and isinstance(out, Array)):
        return 0.0
    left_label, kernel_label, out_label = labels.groups()
    if any(
        len(a.dims) != len(b) for a, b in zip((left, kernel, out), labels.groups(), strict=True)
    ):
        return 0.0
    if not ({"b", "f"} <= set(out_label) and "i" in kernel_label):
        return 0.0
    window = dict(_WINDOW.findall(i.attributes.get("window", "")))
    flops = 2.0 * out.dims[out_label.index("b")] * out.dims[out_label.index("f")]
    flops *= kernel.dims[kernel_label.index("i")]
    for number, digit in enumerate(sorted(ch for ch in out_label if ch.isdigit())):
        if digit not in left_label or digit not in kernel_label:
            return 0.0
        flops *= _valid_positions(
            left.dims[left_label.index(digit)],
            kernel.dims[kernel_label.index(digit)],
            out.dims[out_label.index(digit)],
            _number(_entry(window, "pad", number, "0_0").split("_")[0]),
            max(1, _number(_entry(window, "stride", number, "1"))),
            max(1, _number(_entry(window, "lhs_dilate", number, "1"))),
            max(1, _number(_entry(window, "rhs_dilate", number, "1"))),
        )
    return flops


def _entry(window: dict[str, str], key: str, number: int, default: str) -> str:
    parts = window.get(key, "").split("x")
    return parts[number] if number < len(parts) and parts[number] else default


def _number(text: str) -> int:
    digits = text.removeprefix("-")
    return int(text) if digits.isdigit() and len(digits) < 12 else 0


@functools.lru_cache(maxsize=1024)
def _valid_positions(
    size: int, kernel: int, out: int, low: int, stride: int, left_dilation: int, right_dilation: int
) -> float:
    """(output, kernel) index pairs of one dimension that meet an element of the input."""
    if kernel > _MAX_WINDOW or not size:
        return float(out) * min(kernel, size)
    last = (size - 1) * left_dilation
    count = 0
    for k in range(kernel):
        offset = k * right_dilation - low  # of the dilated input, at output 0
        first = max(0, -(offset // stride))
        final = min(out - 1, (last - offset) // stride)
        if final < first:
            continue
        hit = _first_on_data(offset + first * stride, stride, left_dilation)
        if hit is not None and first + hit <= final:
            period = left_dilation // math.gcd(left_dilation, stride)
            count += (final - first - hit) // period + 1
    return float(count)


def _first_on_data(position: int, stride: int, dilation: int) -> int | None:
    """The smallest n >= 0 for which `position + n * stride` is a multiple of `dilation`."""
    common = math.gcd(stride, dilation)
    if position % common:
        return None
    rest = dilation // common
    return -(position // common) * pow(stride // common, -1, rest) % rest
