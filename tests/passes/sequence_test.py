"""Attention spread over a mesh axis is the attention that was written."""

from typing import Any

import jax
import numpy as np
import pytest

from passes import ir
from passes.program import Program
from passes.sequence import Sequence
from tests.passes.attention import writings


def value_and_gradients(program: Program, arguments: Any) -> Any:
    floats = [i for i, x in enumerate(arguments) if jax.numpy.issubdtype(x.dtype, np.floating)]

    def loss(given: Any) -> Any:
        every = list(arguments)
        for i, x in zip(floats, given, strict=True):
            every[i] = x
        return ir.as_function(program.jaxpr)(*every)[0]

    return jax.jit(jax.value_and_grad(loss))([arguments[i] for i in floats])


def check(function: Any, arguments: Any, **settings: Any) -> Program:
    before = writings.program(function, *arguments, seq=4)
    after = Sequence(block=4, **settings).apply(before)
    (value, gradients), (found, others) = (
        value_and_gradients(p, arguments) for p in (before, after)
    )
    np.testing.assert_allclose(found, value, rtol=1e-5)
    for one, other in zip(gradients, others, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-4 * float(abs(one).max()))
    return after


@pytest.mark.parametrize("method", ["ring", "bidirectional", "ulysses", "heads"])
def test_causal(method: str) -> None:
    after = check(writings.einsum(writings.causal), writings.operands(), method=method)
    assert f"became {method}" in after.notes[0]
