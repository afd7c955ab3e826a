"""The optimizer of a run: AdamW with warm-up, cosine decay and clipping."""

from typing import Any

import jax
import optax

from experiments.model_settings import ModelSettings

CLIP_NORM = 1.0
# What the cosine ends at, of the peak.
FINAL_FRACTION = 0.1


def learning_rate_schedule(config: ModelSettings) -> optax.Schedule:
    """Learning rate by update: linear to the peak, then a cosine to a tenth of it at the last."""
    warmup = config.steps // 10 if config.warmup_steps is None else config.warmup_steps
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(
        # Not from zero, which would waste the first update.
        init_value=peak / (warmup + 1),
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(config.steps, warmup + 1),
        end_value=FINAL_FRACTION * peak,
    )


def make_optimizer(config: ModelSettings) -> optax.GradientTransformation:
    """AdamW; biases and scales do not decay, gradients are clipped by their global norm."""
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adamw(
            learning_rate_schedule(config),
            b2=0.95,
            weight_decay=config.weight_decay,
            mask=_decays,
        ),
    )


def _decays(params: Any) -> Any:
    # By name, not by rank: stacked over layers, a bias has two dimensions.
    def one(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return name not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(one, params)
