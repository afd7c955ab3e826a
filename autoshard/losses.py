"""Default losses, chosen from the shapes of the model's output and of the batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from autoshard.errors import LossError

Loss = Callable[[Any, Any], Any]  # (outputs, batch) -> scalar, or (scalar, dict of scalars)

_TOKEN_NAMES = ("tokens", "input_ids", "inputs", "ids")
_TARGET_NAMES = ("targets", "labels", "label", "target", "y")
_WEIGHT_NAMES = ("loss_mask", "loss_weights", "weights", "mask")


def _is_integer(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.integer)


def _entry(batch: Any, names: tuple[str, ...]) -> Any:
    if isinstance(batch, Mapping):
        return next((batch[name] for name in names if name in batch), None)
    return None


def next_token_loss(logits: jax.Array, tokens: jax.Array, weights: Any = None) -> jax.Array:
    """Mean next-token cross-entropy in nats.

    Targets are the tokens rolled by one and the last position is masked, rather than cut off: a
    dimension of length S-1 would divide by no mesh axis.

    Args:
      logits: float[B, S, vocab].
      tokens: int[B, S].
      weights: optional [B, S], the weight of each target token.
    """
    targets = jnp.roll(tokens, -1, axis=1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    counted = (jnp.arange(tokens.shape[1]) < tokens.shape[1] - 1).astype(jnp.float32)[None, :]
    if weights is not None:
        counted = counted * jnp.roll(weights, -1, axis=1).astype(jnp.float32)
    counted = jnp.broadcast_to(counted, losses.shape)
    return (losses * counted).sum() / jnp.maximum(counted.sum(), 1.0)


def classification_loss(logits: jax.Array, labels: jax.Array, weights: Any = None) -> jax.Array:
    """Mean cross-entropy in nats of float[..., classes] against int[...]; negative labels are
    ignored.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), jnp.maximum(labels, 0)
    )
    counted = (labels >= 0).astype(jnp.float32)
    if weights is not None:
        counted = counted * weights.astype(jnp.float32)
    return (losses * counted).sum() / jnp.maximum(counted.sum(), 1.0)


def default_loss(outputs: Any, batch: Any) -> jax.Array:
    """The loss used when the user gives none.

    Integer targets of the output's shape less its last dimension: classification. Otherwise integer
    tokens of that shape with rank 2: next-token prediction.

    Raises:
      LossError: neither fits; the message gives the shapes and what to pass.
    """
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        targets: Any = batch[-1]
        tokens: Any = None
    elif isinstance(batch, Mapping):
        targets, tokens = _entry(batch, _TARGET_NAMES), _entry(batch, _TOKEN_NAMES)
    else:
        targets, tokens = None, batch
    weights = _entry(batch, _WEIGHT_NAMES)
    if hasattr(outputs, "shape") and jnp.issubdtype(outputs.dtype, jnp.floating):
        positions = outputs.shape[:-1]
        if targets is not None and _is_integer(targets) and targets.shape == positions:
            _check_convention(batch, positions)
            return classification_loss(outputs, targets, _fitting(weights, positions))
        fits = _is_integer(tokens) and tokens.shape == positions and len(positions) == 2
        if targets is None and fits:
            return next_token_loss(outputs, tokens, _fitting(weights, positions))
    shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", outputs)
    batch_shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", batch)
    raise LossError(
        f"no default loss fits outputs {shapes} and batch {batch_shapes}: next-token loss needs "
        "float logits [B, S, vocab] and int tokens [B, S]; classification needs float logits "
        "[..., classes] and int labels [...] under one of the names "
        f"{', '.join(_TARGET_NAMES)}. Pass loss=lambda outputs, batch: scalar"
    )


def _check_convention(batch: Any, positions: tuple[int, ...]) -> None:
    """Labels beside tokens of one shape are shifted in some code bases and not in others."""
    tokens = _entry(batch, _TOKEN_NAMES)
    labelled = isinstance(batch, Mapping) and "labels" in batch and _is_integer(tokens)
    if labelled and tokens.shape == positions:
        raise LossError(
            f"the batch has tokens and labels of one shape {list(positions)}, and 'labels' may or "
            "may not be shifted by one position: call them 'targets' if position i holds what "
            "should be predicted at position i, or leave them out for next-token loss"
        )


def _fitting(weights: Any, shape: tuple[int, ...]) -> Any:
    return weights if weights is not None and weights.shape == shape else None
