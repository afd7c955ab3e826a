"""Replica groups in every notation, against an enumeration of coordinates."""

import itertools
import math

import hypothesis
import pytest
from hypothesis import strategies as st

from passes.hlo.errors import HloError
from passes.hlo.replica_groups import Groups, groups_of, parse_groups
from tests.passes.hlo.texts import module_of


def numbers(items: tuple[int, ...]) -> str:
    return ",".join(map(str, items))


def transposed(sizes: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """Numbers of a row-major array of `sizes`, read in the order of its transposed dimensions."""
    strides = [math.prod(sizes[d + 1 :]) for d in range(len(sizes))]
    places = itertools.product(*(range(sizes[d]) for d in order))
    return [sum(p * strides[d] for p, d in zip(place, order, strict=True)) for place in places]


def rows(flat: list[int], width: int) -> Groups:
    return tuple(tuple(flat[i : i + width]) for i in range(0, len(flat), width))


def test_lists() -> None:
    assert parse_groups("{{0,1},{2,3}}", 4) == ((0, 1), (2, 3))
    assert parse_groups(" {{3, 1} , {0,2}} ", 4) == ((3, 1), (0, 2))
    assert parse_groups("{{0},{1,2,3}}", 4) == ((0,), (1, 2, 3))
    assert parse_groups("{}", 3) == ((0, 1, 2),)
    assert parse_groups("{{}}", 3) == ((0, 1, 2),)


def test_examples_that_compilers_wrote() -> None:
    assert parse_groups("[2,4]<=[8]", 8) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert parse_groups("[4,2]<=[2,4]T(1,0)", 8) == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert parse_groups("mesh['data'=2,'model'=4] {'model'}", 8) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert parse_groups("mesh['data'=2,'model'=4] {'data'}", 8) == ((0, 4), (1, 5), (2, 6), (3, 7))
    # Half of an axis: of a=8, two major parts, then the 4 that are meant.
    assert parse_groups("mesh['a'=8] {'a':(2)4}", 8) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert parse_groups("mesh['a'=8] {'a':(1)2}", 8) == ((0, 4), (1, 5), (2, 6), (3, 7))
    permuted = "mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}"
    assert parse_groups(permuted, 4) == ((0, 2), (1, 3))
    permuted = "mesh['a'=4], device_ids=([4]<=[2,2]T(1,0)) {'a'}"
    assert parse_groups(permuted, 4) == ((0, 2, 1, 3),)


sizes_lists = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@hypothesis.given(sizes_lists, st.data())
def test_iota_against_enumeration(sizes: tuple[int, ...], data: st.DataObject) -> None:
    order = tuple(data.draw(st.permutations(range(len(sizes)))))
    count = math.prod(sizes)
    width = data.draw(st.sampled_from([w for w in range(1, count + 1) if count % w == 0]))
    text = f"[{count // width},{width}]<=[{numbers(sizes)}]"
    assert parse_groups(text, count) == rows(list(range(count)), width)
    text += f"T({numbers(order)})"
    assert parse_groups(text, count) == rows(transposed(sizes, order), width)


@hypothesis.given(sizes_lists, st.data())
def test_mesh_axes_against_enumeration(sizes: tuple[int, ...], data: st.DataObject) -> None:
    """A group is the devices whose coordinates agree on all axes that are not its own."""
    axes = list(range(len(sizes)))
    own = data.draw(st.lists(st.sampled_from(axes), unique=True, min_size=1))
    shape = ",".join(f"'axis_{a}'={n}" for a, n in enumerate(sizes))
    named = ",".join(f"'axis_{a}'" for a in own)
    others = [a for a in axes if a not in own]
    count = math.prod(sizes)
    ids = list(range(count))
    order_text = ""
    if data.draw(st.booleans()):
        order = tuple(data.draw(st.permutations(axes)))
        source = tuple(data.draw(st.permutations(sizes)))
        order_text = f", device_ids=([{numbers(source)}]T({numbers(order)}))"
        ids = transposed(source, order)
    coordinates = list(itertools.product(*(range(n) for n in sizes)))
    expected: dict[tuple[int, ...], list[tuple[tuple[int, ...], int]]] = {}
    for place, device in zip(coordinates, ids, strict=True):
        inside = tuple(place[a] for a in own)
        expected.setdefault(tuple(place[a] for a in others), []).append((inside, device))
    groups = tuple(
        tuple(device for _, device in sorted(expected[outside])) for outside in sorted(expected)
    )
    assert parse_groups(f"mesh[{shape}]{order_text} {{{named}}}", count) == groups


@hypothesis.given(st.lists(st.integers(1, 3), min_size=3, max_size=5).map(tuple), st.data())
def test_parts_of_an_axis_are_axes_of_a_finer_mesh(
    parts: tuple[int, ...], data: st.DataObject
) -> None:
    chosen = data.draw(
        st.lists(st.sampled_from(range(len(parts))), unique=True, min_size=1, max_size=3)
    )
    fine = ",".join(f"'p{n}'={size}" for n, size in enumerate(parts))
    fine_named = ",".join(f"'p{n}'" for n in chosen)
    finer = parse_groups(f"mesh[{fine}] {{{fine_named}}}", 0)
    named = ",".join(f"'a':({math.prod(parts[:n])}){parts[n]}" for n in chosen)
    whole = math.prod(parts)
    assert parse_groups(f"mesh['a'={whole}] {{{named}}}", 0) == finer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not understood"),
        ("[2,4]", "not understood"),
        ("[2,3]<=[8]", "do not divide 8 devices"),
        ("[8]<=[8]", "do not divide 8 devices"),
        ("[2,4]<=[2,4]T(0,0)", "transposes 2 dimensions by \\(0, 0\\)"),
        ("[1,1]<=[0]", "has 0 devices"),
        ("[1,4294967296]<=[4294967296]", "has 4294967296 devices"),
        ("{{0,x}}", "not understood"),
        ("{x}", "not understood"),
        ("mesh[] {'a'}", "not understood"),
        ("mesh['a'=2]", "not understood"),
        ("mesh['a'=2] {'b'}", "along 'b'"),
        ("mesh['a'=2,'a'=4] {'a'}", "not understood"),
        ("mesh['a'=2] {'a','a'}", "take \\(1\\)2"),
        ("mesh['a'=8] {'a':(3)2}", "take \\(3\\)2 of mesh axis 'a'=8"),
        ("mesh['a'=8] {'a':(0)2}", "take \\(0\\)2|take \\(1\\)2"),
        ("mesh['a'=8] {'a':(1)4,'a':(2)2}", "take \\(2\\)2"),
        ("mesh['a'=8], device_ids=([4]) {'a'}", "have 4 device ids"),
        ("mesh[" + ",".join(f"'a{n}'=1" for n in range(80)) + "] {'a1'}", "not understood"),
    ],
)
def test_groups_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(HloError, match=message):
        parse_groups(text, 8)


def test_all_devices_of_an_impossible_number() -> None:
    for count in (0, 10**12):
        with pytest.raises(HloError, match="not understood"):
            parse_groups("{}", count)


def test_attributes_of_instructions() -> None:
    module = module_of(
        """
        %p = f32[8]{0} parameter(0)
        %a = f32[8]{0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add
        %b = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%add
        %c = f32[8]{0} all-reduce(%p), to_apply=%add
        %d = f32[8]{0} all-reduce(%p), replica_groups=mesh['a'=4,'b'=2], \
device_ids=([2,4]T(1,0)) {'b'}, to_apply=%add
        ROOT %e = f32[8]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0},{2,2}}
        """,
        "add\n%x = f32[] parameter(0)\nROOT %s = f32[] add(%x, %x)",
        partitions=8,
    )
    found = [groups_of(i, 8) for i in module.entry_computation.instructions[1:]]
    everybody = (tuple(range(8)),)
    assert found[:3] == [((0, 1, 2, 3), (4, 5, 6, 7)), everybody, everybody]
    assert found[3] == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert found[4] == ((0, 1), (1, 0), (2, 2))
