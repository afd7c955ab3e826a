"""Layers of linen models, in a list, or as one block with stacked parameters and a loop over it.

    blocks = make_blocks(make_block, "h", num_layers=12, scan_layers=True)
    x, added = run_blocks(blocks, step, x, num_layers=12, remat="full")

Shapes: B batch, S positions, D width, L layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn

from models.spec import Remat

# One layer: (block, x, what it gets) -> (x, what it gives).
Step = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]


def make_blocks(
    make_block: Callable[..., nn.Module], prefix: str, *, num_layers: int, scan_layers: bool
) -> nn.Module | list[nn.Module]:
    """Returns the layers, for a compact method or for an attribute in `setup`.

    Args:
        make_block: makes a block of a given `name`.
        prefix: blocks are called `<prefix>_0` and so on.
        num_layers: L.
        scan_layers: one block called `prefix`, its parameters to be stacked to [L, ...].
    """
    if scan_layers:
        return make_block(name=prefix)
    return [make_block(name=f"{prefix}_{layer}") for layer in range(num_layers)]


def run_blocks(
    blocks: nn.Module | Sequence[nn.Module],
    step: Step,
    x: jax.Array,
    given: Any = None,
    *,
    num_layers: int,
    remat: Remat = "none",
) -> tuple[jax.Array, Any]:
    """Maps [B, S, D] to [B, S, D] by all layers, and collects what each gives.

    Args:
        blocks: of `make_blocks`.
        step: runs one layer.
        x: [B, S, D].
        given: what each layer gets: arrays of [L, ...] where layers are scanned, else L trees;
            None is None for every layer.
        num_layers: L.
        remat: "full" where the backward pass computes each block again from its input.

    Returns:
        (x, what the layers gave, in the form of `given`).
    """
    scanned = isinstance(blocks, nn.Module)
    # A loop's backward pass is a loop of its own: no common subexpression can undo the remat.
    again = nn.remat(step, prevent_cse=not scanned) if remat == "full" else step
    if scanned:
        loop = nn.scan(
            again,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=num_layers,
        )
        result: tuple[jax.Array, Any] = loop(blocks, x, given)
        return result
    gave = []
    parts = (None,) * num_layers if given is None else given
    for block, part in zip(blocks, parts, strict=True):
        x, new = again(block, x, part)
        gave.append(new)
    return x, tuple(gave)
