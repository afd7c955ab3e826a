"""Shapes: what is read, and bytes with padding worked out by hand."""

import math

import hypothesis
import pytest
from hypothesis import strategies as st

from passes.hlo.errors import HloError
from passes.hlo.shapes import BITS, HOST_SPACE, Array, Tuple, arrays, parse_shape, total_bytes


def array_of(text: str) -> Array:
    shape, end = parse_shape(text)
    assert end == len(text) and isinstance(shape, Array)
    return shape


@pytest.mark.parametrize(
    ("text", "size_bytes", "padded_bytes"),
    [
        ("f32[]", 4, 4),
        ("pred[7]", 7, 7),
        ("bf16[3,5]{1,0}", 30, 30),  # no tiles: rows one after the other
        ("f32[3,5]{1,0:T(8,128)}", 60, 8 * 128 * 4),
        ("f32[3,5]{0,1:T(8,128)}", 60, 8 * 128 * 4),  # 5 -> 8 rows, 3 -> 128 lanes
        ("f32[9,130]{1,0:T(8,128)}", 9 * 130 * 4, 16 * 256 * 4),
        ("f32[130,9]{0,1:T(8,128)}", 9 * 130 * 4, 16 * 256 * 4),
        ("f32[130,9]{1,0:T(8,128)}", 9 * 130 * 4, 136 * 128 * 4),
        # Only the two minor-most dimensions are tiled: 2 and 6, dimension 1 stays.
        ("bf16[2,3,6]{1,2,0:T(8,128)(2,1)}", 72, 2 * 128 * 8 * 2),
        ("bf16[2,3,6]{2,0,1:T(8,128)(2,1)}", 72, 3 * 8 * 128 * 2),
        ("bf16[4096]{0:T(1024)(128)(2,1)}", 8192, 8192),
        ("bf16[1000]{0:T(1024)(128)(2,1)}", 2000, 2048),
        ("s32[]{:T(128)S(6)}", 4, 4),
        ("f32[0,128]{1,0:T(8,128)}", 0, 0),
        ("s4[3]{0:E(4)}", 2, 2),
        ("s8[3]{0:E(4)}", 2, 2),  # stored in 4 bits each: 12 bits
        ("pred[16]{0:T(8)E(32)}", 64, 64),
        ("f8e4m3fn[8,128]{1,0:T(8,128)(4,1)}", 1024, 1024),
        ("c64[2]{0}", 16, 16),
        ("token[]", 0, 0),
        ("f32[<=10,4]{1,0}", 160, 160),  # bounded dynamic: its bound
        ("f32[?,4]", 0, 0),
    ],
)
def test_bytes(text: str, size_bytes: int, padded_bytes: int) -> None:
    array = array_of(text)
    assert (array.size_bytes, array.padded_bytes) == (size_bytes, padded_bytes)


def test_everything_of_a_layout_is_read() -> None:
    assert array_of("bf16[4,4096,256]{1,2,0:T(8,128)(2,1)S(1)}") == Array(
        "bf16", (4, 4096, 256), (1, 2, 0), (8, 128), 1, 16
    )
    assert array_of("f32[8]{0:T(256)S(5)}").space == HOST_SPACE
    assert array_of("f32[8]{0:S(12)}").space == 12
    assert array_of("f32[2,8]{1,0:T(*,128)}").tile == (1, 128)
    assert array_of("f32[2,8]{1,0:D(D,C)T(8,128)}").tile == (8, 128)


def test_a_layout_that_is_no_permutation_pads_nothing() -> None:
    array = array_of("f32[3,5]{1,1:T(8,128)}")
    assert array.minor_to_major == () and array.padded_bytes == 60


def test_tuples_with_comments() -> None:
    text = "(f32[2]{0}, (bf16[3], /*index=1*/pred[]), s32[], s32[], s32[], /*index=5*/u8[4]) rest"
    shape, end = parse_shape(text)
    assert text[end:] == " rest" and isinstance(shape, Tuple) and len(shape.elements) == 6
    assert [a.dtype for a in arrays(shape)] == ["f32", "bf16", "pred", "s32", "s32", "s32", "u8"]
    assert total_bytes(shape) == 8 + 6 + 1 + 3 * 4 + 4
    assert parse_shape("()") == (Tuple(()), 2)


def test_nesting_has_a_limit() -> None:
    shape, _ = parse_shape("(" * 60 + "f32[]" + ")" * 60)
    assert total_bytes(shape) == 4
    with pytest.raises(HloError, match="nest more than 64 deep"):
        parse_shape("(" * 70 + "f32[]" + ")" * 70)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a shape"),
        ("(f32[2]", "not closed"),
        ("(f32[2] f32[2])", "not closed"),
        ("f32[2", "not a shape"),
        ("f32[a]", "not a shape"),
        ("[2]", "not a shape"),
        ("f32[2]{x}", "layout cannot be read"),
        ("f32[" + ",".join("1" * 65) + "]", "65 dimensions"),
        ("f32[4294967296,4294967296]", "more than 2\\^62 elements"),
    ],
)
def test_what_is_no_shape(text: str, message: str) -> None:
    with pytest.raises(HloError, match=message):
        parse_shape(text)


def test_tiles_of_no_size_are_harmless() -> None:
    assert array_of("f32[3,5]{1,0:T(0,128)}").padded_bytes == 3 * 128 * 4


def test_unknown_types_hold_nothing() -> None:
    assert array_of("q7[3]").size_bytes == 0


@st.composite
def tiled_arrays(draw: st.DrawFn) -> tuple[str, Array]:
    dtype = draw(st.sampled_from(sorted(BITS)))
    dims = tuple(draw(st.lists(st.integers(0, 300), max_size=4)))
    order = tuple(draw(st.permutations(range(len(dims)))))
    tile = tuple(draw(st.lists(st.sampled_from((1, 2, 8, 128)), max_size=2)))
    space = draw(st.sampled_from((0, 1, 5)))
    layout = ",".join(map(str, order)) + (":" if tile or space else "")
    layout += f"T({','.join(map(str, tile))})" if tile else ""
    layout += f"S({space})" if space else ""
    text = f"{dtype}[{','.join(map(str, dims))}]{{{layout}}}"
    return text, Array(dtype, dims, order, tile, space, BITS[dtype])


@hypothesis.given(tiled_arrays())
def test_written_and_read(case: tuple[str, Array]) -> None:
    text, expected = case
    array = array_of(text)
    assert array == expected
    # Brute force: the tiles that cover the array, counted one dimension at a time.
    sizes = [array.dims[d] for d in reversed(array.minor_to_major)]  # major to minor
    sizes = [1] * (len(array.tile) - len(sizes)) + sizes if array.dims else []
    outer, inner = sizes[: len(sizes) - len(array.tile)], sizes[len(sizes) - len(array.tile) :]
    tiles = [len(range(0, n, side)) for n, side in zip(inner, array.tile, strict=False)]
    elements = math.prod(outer) * math.prod(tiles) * math.prod(array.tile)
    if not array.dims:
        elements = 1
    assert array.padded_bytes == math.ceil(elements * array.bits / 8)
    assert array.padded_bytes >= array.size_bytes
