"""FLOPs against closed forms, against counting by hand, and against XLA's own count."""

import itertools
import math
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

from passes.hlo.errors import HloError
from passes.hlo.flops import product_dtype, product_flops, products
from passes.hlo.parse import parse
from tests.passes.hlo.texts import in_entry, module_of


def flops(entry: str, *computations: str, name: str = "r") -> float:
    return product_flops(*in_entry(module_of(entry, *computations), name))


@hypothesis.given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 99), st.integers(1, 9))
def test_a_product_is_2mkn(m: int, k: int, n: int, batch: int) -> None:
    entry = f"""
    %a = f32[{batch},{m},{k}] parameter(0)
    %b = f32[{batch},{k},{n}] parameter(1)
    ROOT %r = f32[{batch},{m},{n}] dot(%a, %b), lhs_batch_dims={{0}}, rhs_batch_dims={{0}}, \
lhs_contracting_dims={{2}}, rhs_contracting_dims={{1}}
    """
    assert flops(entry) == 2 * batch * m * k * n


def test_products_over_several_dimensions_and_over_none() -> None:
    operands = "%a = f32[3,4,5] parameter(0)\n%b = f32[4,5,6] parameter(1)\n"
    two = "ROOT %r = f32[3,6] dot(%a, %b), lhs_contracting_dims={1,2}, rhs_contracting_dims={0,1}"
    assert flops(operands + two) == 2 * 3 * 4 * 5 * 6
    outer = "ROOT %r = f32[3,4,5,4,5,6] dot(%a, %b), lhs_contracting_dims={}"
    assert flops(operands + outer) == 2 * 60 * 120
    for damaged, expected in (
        ("dot()", 0),
        ("dot(%t, %b), lhs_contracting_dims={0}", 0),
        ("dot(%nobody, %b), lhs_contracting_dims={0}", 36),  # nothing known to be contracted
    ):
        entry = f"{operands}%t = (f32[3]) tuple(%a)\nROOT %r = f32[3,6] {damaged}"
        assert flops(entry) == expected
    repeated = two.replace("{1,2}", "{1,1,1,1}")
    assert flops(operands + repeated) == 2 * 18 * 4


Window = tuple[int, int, int, int, int, int, int]  # size, kernel, low, high, stride, dilations


def output_size(window: Window) -> int:
    size, kernel, low, high, stride, left, right = window
    dilated = (size - 1) * left + 1 if size else 0
    padded = low + dilated + high
    extent = (kernel - 1) * right + 1
    return max(0, (padded - extent) // stride + 1) if padded >= extent else 0


def counted(window: Window) -> int:
    """(output, kernel) pairs that meet an element of the input, one after the other."""
    size, kernel, low, _, stride, left, right = window
    data = {n * left for n in range(size)}
    places = itertools.product(range(output_size(window)), range(kernel))
    return sum(o * stride + k * right - low in data for o, k in places)


def written(windows: list[Window]) -> str:
    columns = list(zip(*windows, strict=True))
    pad = "x".join(f"{low}_{high}" for low, high in zip(columns[2], columns[3], strict=True))
    texts = {
        "size": "x".join(map(str, columns[1])), "pad": pad,
        "stride": "x".join(map(str, columns[4])), "lhs_dilate": "x".join(map(str, columns[5])),
        "rhs_dilate": "x".join(map(str, columns[6])),
    }  # fmt: skip
    return " ".join(f"{name}={text}" for name, text in texts.items())


windows = st.tuples(
    st.integers(1, 9), st.integers(1, 6), st.integers(-2, 6), st.integers(-2, 6),
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 4),
)  # fmt: skip


@hypothesis.given(st.lists(windows, min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 3))
@hypothesis.settings(max_examples=200)
def test_convolutions_against_counting(dimensions: list[Window], batch: int, features: int) -> None:
    digits = "".join(map(str, range(len(dimensions))))
    left = ",".join(str(w[0]) for w in dimensions)
    kernel = ",".join(str(w[1]) for w in dimensions)
    out = ",".join(str(output_size(w)) for w in dimensions)
    entry = f"""
    %a = f32[{batch},{left},4] parameter(0)
    %k = f32[{kernel},4,{features}] parameter(1)
    ROOT %r = f32[{batch},{out},{features}] convolution(%a, %k), \
window={{{written(dimensions)}}}, dim_labels=b{digits}f_{digits}io->b{digits}f
    """
    pairs = math.prod(counted(w) for w in dimensions)
    assert flops(entry) == 2 * batch * features * 4 * pairs


def test_products_that_libtpu_writes_as_convolutions() -> None:
    """Padding and dilation such that every place of a window but one misses the data."""
    heads_of_the_kernel = """
    %a = bf16[24,2048,64,1] parameter(0)
    %b = bf16[64,16,128,1] parameter(1)
    ROOT %r = bf16[24,2048,16,128] convolution(%a, %b), \
window={size=1x16 pad=0_0x15_15 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f
    """
    assert flops(heads_of_the_kernel) == 2 * 24 * 2048 * 64 * (16 * 128)
    batch_of_both = """
    %a = bf16[8,256,2,64] parameter(0)
    %b = bf16[8,2,128,256] parameter(1)
    ROOT %r = bf16[8,2,128,64] convolution(%a, %b), \
window={size=8x2 stride=8x2 pad=7_7x1_1 lhs_dilate=7x1 rhs_reversal=1x1}, dim_labels=0f1b_01oi->01fb
    """
    assert flops(batch_of_both) == 2 * (8 * 2) * 128 * 256 * 64


def test_a_window_without_notes_is_a_plain_product() -> None:
    entry = """
    %a = bf16[7,5] parameter(0)
    %b = bf16[5,3] parameter(1)
    ROOT %r = bf16[7,3] convolution(%a, %b), dim_labels=bf_io->bf
    """
    assert flops(entry) == 2 * 7 * 5 * 3


@pytest.mark.parametrize(
    ("groups", "shapes"),
    [
        ("feature_group_count=4", ("2,6,8", "3,2,12", "2,4,12")),
        ("batch_group_count=4", ("8,6,5", "3,5,12", "2,4,12")),
    ],
)
def test_groups(groups: str, shapes: tuple[str, str, str]) -> None:
    """Every result is a sum over the kernel's inputs and window, whatever the group."""
    left, kernel, out = shapes
    entry = f"""
    %a = f32[{left}] parameter(0)
    %k = f32[{kernel}] parameter(1)
    ROOT %r = f32[{out}] convolution(%a, %k), window={{size=3}}, dim_labels=b0f_0io->b0f, {groups}
    """
    results = math.prod(map(int, out.split(",")))
    window, inputs, _ = map(int, kernel.split(","))
    assert flops(entry) == 2 * results * window * inputs


def test_windows_of_absurd_sizes_end() -> None:
    """In closed form, not by search."""
    entry = """
    %a = f32[2,1000003,4] parameter(0)
    %k = f32[3,4,5] parameter(1)
    ROOT %r = f32[2,999999999,5] convolution(%a, %k), \
window={size=3 pad=7_7 stride=10007 lhs_dilate=99999999977 rhs_dilate=3}, dim_labels=b0f_0io->b0f
    """
    # Of the positions o * 10007 + k * 3 - 7, all below 99999999977 but for the last few thousand,
    # those that are a multiple of it.
    hits = 0
    for k in range(3):
        offset = k * 3 - 7
        first = -offset * pow(10007, -1, 99999999977) % 99999999977
        hits += len(range(first, 999999999, 99999999977))
    assert flops(entry) == 2 * 2 * 5 * 4 * hits
    huge = entry.replace("[3,4,5]", "[70000,4,5]")
    assert flops(huge) == 2 * 2 * 5 * 4 * 999999999 * 70000


@pytest.mark.parametrize(
    "damage",
    [
        ("dim_labels=bf_io->bf", "dim_labels=bf_io"),
        ("dim_labels=bf_io->bf", "dim_labels=bf0_io->bf"),
        ("dim_labels=bf_io->bf", "dim_labels=bf_io->b0"),
        ("dim_labels=bf_io->bf", "dim_labels=bf_oo->bf"),
        ("(%a, %b)", "(%a)"),
        ("(%a, %b)", "(%a, %t)"),
    ],
)
def test_damaged_convolutions_count_nothing(damage: tuple[str, str]) -> None:
    entry = """
    %a = bf16[7,5] parameter(0)
    %b = bf16[5,3] parameter(1)
    %t = (bf16[5,3]) tuple(%b)
    ROOT %r = bf16[7,3] convolution(%a, %b), dim_labels=bf_io->bf
    """
    assert flops(entry) == 210
    assert flops(entry.replace(*damage)) == 0


INNER = """
inner
%a = f32[4,8] parameter(0)
%b = bf16[8,16] parameter(1)
%c = f32[4,16] dot(%a, %b), lhs_contracting_dims={1}
%d = f32[4,4] dot(%c, %c), lhs_contracting_dims={1}
ROOT %e = f32[4,4] negate(%d)
"""
OUTER = """
outer
%a = f32[4,8] parameter(0)
%b = bf16[8,16] parameter(1)
%x = f32[4,4] fusion(%a, %b), kind=kOutput, calls=%inner
%y = f32[4,4] fusion(%a, %b), kind=kOutput, calls=%inner
%f = s8[16,4] parameter(2)
%g = s8[16,4] dot(%f, %x), lhs_contracting_dims={1}
ROOT %z = f32[4,4] add(%x, %y)
"""


def test_products_inside_fusions() -> None:
    entry = """
    %a = f32[4,8] parameter(0)
    %b = bf16[8,16] parameter(1)
    %r = f32[4,4] fusion(%a, %b), kind=kOutput, calls=%outer
    ROOT %n = f32[4,4] negate(%r)
    """
    module = module_of(entry, INNER, OUTER)
    one = 2 * 4 * 8 * 16 + 2 * 4 * 16 * 4
    assert product_flops(*in_entry(module, "r")) == 2 * one + 2 * 16 * 4 * 4
    assert [p.name for _, p in products(*in_entry(module, "r"))] == ["c", "d", "c", "d", "g"]
    assert product_dtype(*in_entry(module, "r")) == "f32"
    assert product_flops(*in_entry(module, "n")) == 0
    assert product_dtype(*in_entry(module, "n")) == ""


def test_fusions_in_a_circle_and_fusions_without_end() -> None:
    entry = "ROOT %r = f32[] fusion(), kind=kLoop, calls=%c0"
    circle = "c0\nROOT %x = f32[] fusion(), kind=kLoop, calls=%c0"
    with pytest.raises(HloError, match="'r' holds more than 50000 instructions"):
        flops(entry, circle)
    twice = [
        f"c{n}\n%x = f32[] fusion(), kind=kLoop, calls=%c{n + 1}\n"
        f"ROOT %y = f32[] fusion(), kind=kLoop, calls=%c{n + 1}"
        for n in range(40)
    ]
    with pytest.raises(HloError, match="'r' holds more than 50000 instructions"):
        flops(entry, *twice, "c40\nROOT %x = f32[] constant(0)")


def cost_analysis(compiled: Any) -> float:
    found = compiled.cost_analysis()
    return float((found[0] if isinstance(found, list) else found)["flops"])


def spec(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def convolution(stride: int, dilation: int, groups: int, padding: str) -> Any:
    def function(x: jax.Array, k: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, k, (stride, stride), padding, rhs_dilation=(dilation, dilation),
            feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    return function


def batch_groups(x: jax.Array, k: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", batch_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda a, b: a @ b, (spec(32, 48), spec(48, 80))),
        (lambda a, b: jnp.einsum("bshd,bthd->bhst", a, b), (spec(2, 16, 4, 8), spec(2, 24, 4, 8))),
        (convolution(1, 1, 1, "SAME"), (spec(2, 14, 14, 8), spec(3, 3, 8, 16))),
        (convolution(2, 1, 1, "SAME"), (spec(2, 15, 14, 8), spec(3, 5, 8, 16))),
        (convolution(2, 2, 1, "VALID"), (spec(2, 15, 14, 8), spec(3, 3, 8, 16))),
        (convolution(1, 1, 4, "SAME"), (spec(2, 14, 14, 8), spec(3, 3, 2, 16))),
        (batch_groups, (spec(4, 6, 6, 8), spec(3, 3, 8, 16))),
        (
            jax.grad(lambda x, k: jnp.sum(convolution(2, 1, 1, "SAME")(x, k)), argnums=(0, 1)),
            (spec(2, 15, 14, 8), spec(3, 5, 8, 16)),
        ),
    ],
)
def test_xla_counts_the_same(function: Any, arguments: Any) -> None:
    """XLA adds a few operations for what stands beside the products."""
    compiled = jax.jit(function).lower(*arguments).compile()
    module = parse(str(compiled.as_text()))
    ours = sum(
        product_flops(module, module.entry_computation, i)
        for i in module.entry_computation.instructions
    )
    assert ours > 0 and cost_analysis(compiled) == pytest.approx(ours, rel=0.02)
