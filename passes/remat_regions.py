"""Checkpoint regions outside loops: those that the user put around unrolled layers."""

from collections.abc import Callable
from typing import Any

from passes import ir
from passes.inline_calls import inline_calls


def count_regions(program: ir.ClosedJaxpr) -> int:
    """How many checkpoint regions a program with inlined calls has, those in loops apart."""
    jaxpr, _ = ir.closed(program)
    return sum(eqn.primitive.name in ir.CHECKPOINTS for eqn in jaxpr.eqns)


def with_policy(program: ir.ClosedJaxpr, policy: Callable[..., Any] | None) -> ir.ClosedJaxpr:
    """The program with its regions outside loops under another policy.

    Args:
      program: with inlined calls.
      policy: one of `jax.checkpoint_policies`; None: the regions are dissolved, so that everything
        is saved and nothing keeps the compiler from fusing across their borders.
    """
    if policy is None:
        return inline_calls(program, ir.PLAIN_CALLS | ir.CHECKPOINTS)
    jaxpr, consts = ir.closed(program)
    eqns = [
        eqn.replace(params={**eqn.params, "policy": policy})
        if eqn.primitive.name in ir.CHECKPOINTS
        else eqn
        for eqn in jaxpr.eqns
    ]
    return ir.ClosedJaxpr(jaxpr.replace(eqns=eqns), consts)
