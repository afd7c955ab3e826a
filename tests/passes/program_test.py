"""Leaves and programs as values."""

import jax
import jax.numpy as jnp
import pytest

from passes.program import Leaf, Program, Role


def leaf(shape: tuple[int, ...] = (), dtype: str = "float32") -> Leaf:
    return Leaf("layer/kernel", Role.PARAMETER, shape, dtype)


@pytest.mark.parametrize(
    ("shape", "dtype", "size_bytes"),
    [
        ((), "float32", 4),
        ((3, 5), "float32", 60),
        ((3, 5), "bfloat16", 30),
        ((0, 5), "float32", 0),
        ((4,), "bool", 4),
        ((4,), "float8_e4m3fn", 4),
        ((2,), "complex64", 16),
        ((3,), "key<fry>", 24),
    ],
)
def test_bytes(shape: tuple[int, ...], dtype: str, size_bytes: int) -> None:
    assert leaf(shape, dtype).size_bytes == size_bytes


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_bytes_of_random_keys(impl: str) -> None:
    key = jax.eval_shape(lambda: jax.random.key(0, impl=impl))
    assert leaf((), str(key.dtype)).size_bytes == key.dtype.itemsize


def test_metadata_does_not_make_leaves_differ() -> None:
    named = Leaf("layer/kernel", Role.PARAMETER, (2,), "float32", ("embed",))
    assert named == leaf((2,))


def test_positions_by_role() -> None:
    roles = (Role.PARAMETER, Role.BATCH, Role.PARAMETER, Role.RNG)
    jaxpr = jax.make_jaxpr(lambda *x: x[0])(*[jnp.float32(0)] * 4)
    inputs = tuple(Leaf(str(i), role, (), "float32") for i, role in enumerate(roles))
    program = Program("p", jaxpr, inputs, ("out",))
    assert program.with_role(Role.PARAMETER) == (0, 2)
    assert program.with_role(Role.RNG, Role.BATCH) == (1, 3)
    assert program.with_role(Role.OPTIMIZER) == ()


def test_counts_must_agree() -> None:
    jaxpr = jax.make_jaxpr(lambda x: x)(jnp.float32(0))
    with pytest.raises(ValueError, match="'p' has 1 inputs but 2 roles"):
        Program("p", jaxpr, (leaf(), leaf()), ("out",))
    with pytest.raises(ValueError, match="'p' has 1 outputs but 0 names"):
        Program("p", jaxpr, (leaf(),), ())
