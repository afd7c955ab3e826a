"""The band read off a mask is a superset of what is visible, and exact for common masks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.attention.band import Band
from passes.attention.pattern import Attention, find
from passes.attention.scopes import scopes

S = 12
LOWEST = float(np.finfo(np.float32).min)


def rows() -> Any:
    return jnp.arange(S)[:, None]


def columns() -> Any:
    return jnp.arange(S)[None, :]


def band(mask: Any) -> Band:
    """The band of attention whose scores are changed by `mask`."""

    def attention(q: Any, k: Any) -> Any:
        scores = mask(jnp.einsum("bsd,btd->bst", q, k)[0])[None]
        return jnp.einsum("bst,btd->bsd", jax.nn.softmax(scores), k)

    shape = jax.ShapeDtypeStruct((1, S, 4), jnp.float32)
    (found,) = find(scopes(jax.make_jaxpr(attention)(shape, shape)))
    assert isinstance(found, Attention), str(found)
    return found.band


def where(visible: Any, hidden: float = LOWEST) -> Any:
    """A mask made in the program."""
    return lambda scores: jnp.where(visible(), scores, hidden)


def exactly(least: float, most: float) -> Band:
    return Band(least, most, True)


def test_known_masks() -> None:
    inf = math.inf
    assert band(lambda x: x) == exactly(-inf, inf)
    assert band(where(lambda: rows() >= columns())) == exactly(0, inf)
    assert band(where(lambda: columns() <= rows())) == exactly(0, inf)
    assert band(where(lambda: rows() > columns())) == exactly(1, inf)
    assert band(where(lambda: rows() < columns() + 3)) == exactly(-inf, 2)
    assert band(where(lambda: (rows() >= columns()) & (rows() - columns() < 4))) == exactly(0, 3)
    assert band(where(lambda: jnp.abs(rows() - columns()) <= 2)) == exactly(-2, 2)
    assert band(where(lambda: ~(columns() > rows()), -math.inf)) == exactly(0, inf)
    assert band(where(lambda: rows() == columns())) == exactly(0, 0)
    assert band(where(lambda: 2 * rows() >= 2 * columns() + 1)) == exactly(1, inf)
    assert band(where(lambda: jnp.tril(jnp.ones((S, S), bool), 1))) == exactly(-1, inf)
    assert band(where(lambda: jnp.triu(jnp.ones((S, S), bool)))) == exactly(-inf, 0)


def test_masks_that_are_added() -> None:
    inf = math.inf
    assert band(lambda x: x + jnp.where(rows() >= columns(), 0, -1e9)) == exactly(0, inf)

    def ones() -> Any:
        return (rows() >= columns()).astype(jnp.float32)

    assert band(lambda x: 0.1 * (x + (1 - ones()) * -1e9)) == exactly(0, inf)
    assert band(lambda x: x - (1 - ones()) * 1e9).is_everything  # not followed: nothing is skipped


def test_masks_made_by_numpy() -> None:
    lower = np.tril(np.ones((S, S), bool), 2)
    assert band(where(lambda: lower)) == exactly(-2, S - 1)
    assert band(where(lambda: lower & lower.T)) == exactly(-2, 2)
    striped = lower & (np.arange(S) % 2 == 0)
    assert band(where(lambda: striped)) == Band(-math.inf, math.inf, False)


def test_what_is_not_a_mask_hides_nothing() -> None:
    assert band(where(lambda: rows() >= columns(), 0.0)).is_everything
    assert band(where(lambda: rows() >= columns(), -3.0)).is_everything
    assert band(where(lambda: rows() + columns() > 3)) == Band(-math.inf, math.inf, False)
    both = where(lambda: (rows() + columns() > 3) & (rows() >= columns()))
    assert band(both) == Band(0, math.inf, False)
    assert band(lambda x: jnp.where(rows() >= columns(), LOWEST, x)) == exactly(-math.inf, -1)


comparisons = st.sampled_from(["ge", "gt", "le", "lt", "eq", "ne"])
leaves = st.tuples(comparisons, st.integers(-5, 5), st.booleans())
trees = st.recursive(
    leaves, lambda t: st.tuples(st.sampled_from(["and", "or"]), t, t) | st.tuples(st.just("not"), t)
)


def evaluated(tree: Any) -> Any:
    """A mask from a tree of comparisons of positions, some of them of their distance."""
    if tree[0] in ("and", "or"):
        one, other = map(evaluated, tree[1:])
        return one & other if tree[0] == "and" else one | other
    if tree[0] == "not":
        return ~evaluated(tree[1])
    name, offset, absolute = tree
    if absolute:
        return getattr(jax.lax, f"{name}_p").bind(
            jnp.abs(rows() - columns()), jnp.full((S, S), offset, jnp.int32)
        )
    left, right = jnp.broadcast_arrays(rows(), columns() + offset)
    return getattr(jax.lax, f"{name}_p").bind(left, right)


@settings(deadline=None, max_examples=60)
@given(trees)
def test_every_visible_pair_is_inside_and_all_if_nothing_else_masks(tree: Any) -> None:
    found = band(lambda scores: jnp.where(evaluated(tree), scores, LOWEST))
    visible = np.asarray(evaluated(tree))
    apart = np.arange(S)[:, None] - np.arange(S)[None, :]
    inside = (found.least <= apart) & (apart <= found.most)
    assert not np.any(visible & ~inside)
    if found.alone:
        assert np.array_equal(visible, inside)


@pytest.mark.parametrize(
    ("first", "last", "meets"), [(-3, -1, False), (-3, 0, True), (4, 9, False), (2, 2, True)]
)
def test_meets(first: int, last: int, meets: bool) -> None:
    assert Band(0, 3).meets(first, last) is meets
