"""Model FLOPs against closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import models
from autoshard import adapters
from autoshard.losses import default_loss
from autoshard.model_flops import model_flops
from autoshard.named_dims import analyse
from autoshard.precision import Precision
from autoshard.trace import trace_function, trace_model
from passes.program import Role


def test_a_product_is_two_m_k_n() -> None:
    specs = (jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((16, 4), jnp.float32))
    program, _ = trace_function(lambda w, x: x @ w, specs, (Role.PARAMETER, Role.BATCH))
    assert model_flops(analyse(program), trains=False) == 2 * 16 * 4 * 8
    assert model_flops(analyse(program), trains=True) == 3 * 2 * 16 * 4 * 8


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_decoder_counts_its_weights_and_its_attention(scan_layers: bool, remat: str) -> None:
    """6 FLOPs a weight and token, and 12 B S^2 H K a layer for attention; nothing recomputed."""
    layers, batch, seq = 2, 4, 16
    spec = models.get(
        "llama3_tiny", num_layers=layers, vocab_size=64, scan_layers=scan_layers, remat=remat
    )
    config: Any = spec.config
    functions = adapters.adapt(spec.build())
    traced = trace_model(functions, default_loss, spec.example_batch(batch, seq), True, Precision())
    width, kv = config.d_model, config.num_kv_heads * config.head_dim
    layer = 2 * width * width + 2 * width * kv + 3 * width * config.d_ff
    weights = layers * layer + config.vocab_size * width  # the lookup is no product
    attention = 12 * layers * batch * seq**2 * width
    expected = 6 * weights * batch * seq + attention
    assert model_flops(analyse(traced.program), trains=True) == expected
