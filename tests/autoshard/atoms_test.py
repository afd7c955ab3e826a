"""The splitting union-find: known answers, and laws on random sequences of unifications."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoshard.atoms import Atoms, Dim


def sizes(atoms: Atoms, dim: Dim) -> list[int]:
    return [atoms.size(a) for a in atoms.expand(dim)]


def test_size_one_is_the_empty_product() -> None:
    atoms = Atoms()
    assert atoms.new(1) == ()
    assert atoms.unify((), ())
    assert not atoms.unify((), atoms.new(2))


def test_equal_sizes_merge() -> None:
    atoms = Atoms()
    first, second, other = atoms.new(6), atoms.new(6), atoms.new(6)
    assert atoms.unify(first, second)
    assert atoms.expand(first) == atoms.expand(second) != atoms.expand(other)


def test_a_split_reaches_every_holder() -> None:
    atoms = Atoms()
    whole, alias, heads, width = atoms.new(24), atoms.new(24), atoms.new(4), atoms.new(6)
    pair = (*alias, *width)
    assert atoms.unify(whole, alias)
    assert atoms.unify(whole, heads + atoms.new(6))
    assert sizes(atoms, alias) == [4, 6]
    assert atoms.expand(alias)[0] == atoms.expand(heads)[0]
    assert sizes(atoms, pair) == [4, 6, 6]


def test_the_order_of_factors_counts() -> None:
    atoms = Atoms()
    twelve = atoms.new(12)
    assert atoms.unify(twelve, atoms.new(4) + atoms.new(3))
    three, four = atoms.new(3), atoms.new(4)
    assert not atoms.unify(twelve, three + four)
    assert not set(atoms.expand(three + four)) & set(atoms.expand(twelve))


def test_a_coprime_rest_keeps_the_common_front() -> None:
    """8 and 12 in front of 12 and 8: their 4 is shared, 2 and 3 are not."""
    atoms = Atoms()
    left, right = atoms.new(8) + atoms.new(12), atoms.new(12) + atoms.new(8)
    assert not atoms.unify(left, right)
    assert sizes(atoms, left) == [4, 2, 12]
    assert sizes(atoms, right) == [4, 3, 8]
    assert set(atoms.expand(left)) & set(atoms.expand(right)) == {atoms.expand(left)[0]}


def test_a_dimension_may_carry_one_atom_twice() -> None:
    atoms = Atoms()
    inner = atoms.new(4)
    square = atoms.new(16)
    assert atoms.unify(square, inner + inner)
    assert atoms.expand(square) == atoms.expand(inner) * 2
    assert atoms.unify(inner, atoms.new(2) + atoms.new(2))
    assert sizes(atoms, square) == [2, 2, 2, 2]
    assert len(set(atoms.expand(square))) == 2


SIZES = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24])
SHAPES = st.lists(st.lists(SIZES, min_size=1, max_size=3), min_size=2, max_size=6)
PAIRS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=12)
LAWS = settings(max_examples=150, deadline=None)


def build(shapes: list[list[int]], pairs: list[tuple[int, int]]) -> tuple[Atoms, list[Dim]]:
    """A store with one dimension a shape, after a sequence of unifications."""
    atoms = Atoms()
    dims: list[Dim] = [tuple(a for size in shape for a in atoms.new(size)) for shape in shapes]
    for i, j in pairs:
        atoms.unify(dims[i % len(dims)], dims[j % len(dims)])
    return atoms, dims


def relation(atoms: Atoms, dims: list[Dim]) -> list[tuple[int, ...]]:
    """The expansions with classes numbered in order of appearance."""
    number: dict[int, int] = {}
    return [tuple(number.setdefault(a, len(number)) for a in atoms.expand(d)) for d in dims]


@LAWS
@given(SHAPES, PAIRS)
def test_sizes_multiply_to_the_dimension(
    shapes: list[list[int]], pairs: list[tuple[int, int]]
) -> None:
    atoms, dims = build(shapes, pairs)
    for shape, dim in zip(shapes, dims, strict=True):
        assert math.prod(sizes(atoms, dim)) == math.prod(shape)
        assert all(size > 1 for size in sizes(atoms, dim))


@LAWS
@given(SHAPES, PAIRS)
def test_expansion_is_stable(shapes: list[list[int]], pairs: list[tuple[int, int]]) -> None:
    atoms, dims = build(shapes, pairs)
    once = [atoms.expand(dim) for dim in dims]
    assert [atoms.expand(dim) for dim in once] == once
    assert [atoms.expand(dim) for dim in dims] == once


@LAWS
@given(SHAPES, PAIRS)
def test_unification_is_idempotent_and_makes_equal(
    shapes: list[list[int]], pairs: list[tuple[int, int]]
) -> None:
    atoms, dims = build(shapes, pairs)
    for i, j in itertools.combinations(range(len(dims)), 2):
        same = atoms.unify(dims[i], dims[j])
        if math.prod(shapes[i]) != math.prod(shapes[j]):
            assert not same
        if same:
            assert atoms.expand(dims[i]) == atoms.expand(dims[j])
        before = relation(atoms, dims)
        assert atoms.unify(dims[i], dims[j]) == same
        assert relation(atoms, dims) == before


@LAWS
@given(SHAPES, PAIRS)
def test_unification_is_symmetric(shapes: list[list[int]], pairs: list[tuple[int, int]]) -> None:
    atoms, dims = build(shapes, pairs)
    mirrored, mirrored_dims = build(shapes, [(j, i) for i, j in pairs])
    assert relation(atoms, dims) == relation(mirrored, mirrored_dims)


@LAWS
@given(SHAPES, PAIRS)
def test_a_failed_unification_relates_only_a_common_front(
    shapes: list[list[int]], pairs: list[tuple[int, int]]
) -> None:
    atoms, dims = build(shapes, pairs)
    for first, second in itertools.combinations(dims, 2):
        if atoms.unify(first, second):
            continue
        left, right = atoms.expand(first), atoms.expand(second)
        common = list(
            itertools.takewhile(lambda ab: ab[0] == ab[1], zip(left, right, strict=False))
        )
        a, b = left[len(common) :], right[len(common) :]
        assert not (a and b) or math.gcd(atoms.size(a[0]), atoms.size(b[0])) == 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_unifications_does_not_matter(order: tuple[int, ...]) -> None:
    atoms = Atoms()
    dims = [atoms.new(24), atoms.new(4) + atoms.new(6), atoms.new(2) + atoms.new(12)]
    for i in order:
        assert atoms.unify(dims[i], dims[(i + 1) % 3])
    assert sizes(atoms, dims[0]) == [2, 2, 6]
    assert len({atoms.expand(dim) for dim in dims}) == 1
