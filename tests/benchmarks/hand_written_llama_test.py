"""The hand-written decoder computes what the model of the same sizes does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from autoshard.losses import next_token_loss
from benchmarks.hand_written_llama import HandWritten
from models.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=64, max_seq_len=16, d_model=32, num_layers=2, num_heads=4, num_kv_heads=4,
    d_ff=48, dtype="bfloat16",
)  # fmt: skip
PLACES = {
    "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


@pytest.mark.parametrize(
    ("tensor", "remat", "split_heads"), [(1, True, False), (4, True, True), (4, False, False)]
)
def test_the_loss_is_that_of_the_model(tensor: int, remat: bool, split_heads: bool) -> None:
    model = Llama(CONFIG, nnx.Rngs(0))
    mesh = jax.make_mesh((8 // tensor, tensor), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    written = HandWritten(CONFIG, mesh, remat, split_heads)
    shapes = written.parameters()
    values = {
        "embed": model.embed.embedding, "norm": model.norm.scale, "head": model.lm_head.kernel,
        "layers": [
            {"attn_norm": block.attn_norm.scale, "mlp_norm": block.mlp_norm.scale}
            | {name: _at(block, path).kernel for name, path in PLACES.items()}
            for block in model.layers
        ],
    }  # fmt: skip
    params = jax.tree.map(
        lambda s, x: jax.device_put(x[...].reshape(s.shape), s.sharding), shapes, values
    )
    tokens = jax.random.randint(jax.random.key(1), (8, 16), 0, CONFIG.vocab_size)
    expected = next_token_loss(model(tokens).astype(jnp.float32), tokens)
    found = jax.jit(written.loss)(params, tokens)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    # The weights matter: those of another layer give another loss.
    swapped = {**params, "layers": params["layers"][::-1]}
    assert abs(jax.jit(written.loss)(swapped, tokens) - found) > 1e-5


def _at(block: nnx.Module, path: str) -> nnx.Linear:
    for name in path.split("."):
        block = getattr(block, name)
    assert isinstance(block, nnx.Linear)
    return block
