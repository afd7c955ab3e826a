"""What the tests of several families share: models small enough to compile in a second, and inputs.

Fresh models and their compiled functions are cached, since compilation is the whole cost: tests use
a batch of `BATCH` where they can, and must not change what they are given.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

import models

BATCH = 2
NUM_TOKENS = 256
NUM_CLASSES = 16

# Every family of one input once, cut down until compilation is the only cost.
SMALL: dict[str, dict[str, object]] = {
    "gpt2_tiny": {"num_layers": 1, "d_model": 32, "max_seq_len": 16, "num_heads": 4},
    "llama3_tiny": {"max_seq_len": 16},
    "mixtral_tiny": {"max_seq_len": 16},
    "mlp": {},
    "mixer_tiny": {"image_size": 16, "num_layers": 1},
    "vit_tiny": {"image_size": 16, "num_layers": 1},
    "resnet_tiny": {"image_size": 8, "width": 8, "stage_sizes": (1, 1)},
}

# Less than half of the time to compile; these programs run for microseconds.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

Apply = Callable[[Any, jax.Array], jax.Array]


def small(name: str, **overrides: object) -> models.ModelSpec:
    """Returns the small variant of a model."""
    return models.get(name, **{**SMALL[name], **overrides})


def random_batch(spec: models.ModelSpec, batch_size: int = BATCH) -> dict[str, jax.Array]:
    """Returns a batch of the spec's shapes: tokens of a byte vocabulary, labels, normal pixels."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, leaf in spec.example_batch(batch_size).items():
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            high = NUM_TOKENS if name == "tokens" else NUM_CLASSES
            batch[name] = jnp.asarray(rng.integers(0, high, leaf.shape, np.int32))
        else:
            batch[name] = jnp.asarray(rng.standard_normal(leaf.shape, np.float32))
    return batch


def model_input(spec: models.ModelSpec) -> jax.Array:
    """Returns the input of the model, out of `random_batch`."""
    return random_batch(spec)[spec.config.input_key]


def linen(spec: models.ModelSpec) -> nn.Module:
    """Returns the module of a model that is written in linen."""
    module = spec.build()
    assert isinstance(module, nn.Module)
    return module


def pure(spec: models.ModelSpec) -> tuple[Callable[[], Any], Apply]:
    """Returns pure functions: `init() -> variables`, and `apply(variables, input) -> logits`."""
    model = spec.build()
    shape = spec.example_batch(1)[spec.config.input_key]
    if isinstance(model, nn.Module):
        module = model  # the closures below need the narrowed type

        def init() -> Any:
            return module.init(jax.random.key(0), jnp.zeros(shape.shape, shape.dtype))

        def apply(variables: Any, x: jax.Array) -> Any:
            return module.apply(variables, x)

        return init, apply

    build = model
    graph, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def merged(state: Any, x: jax.Array) -> Any:
        return nnx.merge(graph, state)(x)

    return lambda: nnx.state(build(nnx.Rngs(0))), merged


@functools.cache
def compiled(spec: models.ModelSpec) -> tuple[Any, Apply]:
    """Returns the variables of a fresh model, and its jitted `apply(variables, input)`."""
    init, apply = pure(spec)
    return quick_jit(init)(), quick_jit(apply)


def cross_entropy(logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the mean loss: of the next token for text, else of the label."""
    if "tokens" in batch:
        logits, labels = logits[:, :-1], batch["tokens"][:, 1:]
    else:
        labels = batch["label"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
