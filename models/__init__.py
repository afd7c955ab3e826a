"""Models by name, written as people write Flax: plain layers in a loop, no sharding annotations.

    spec = models.get("gpt2_tiny", num_layers=2)
    module = spec.build()                 # linen: a module; nnx: a function of `rngs`
    batch = spec.example_batch(8)         # {"tokens": ShapeDtypeStruct}

This package knows Flax and `jax.numpy`, and nothing of the planner.
"""

from models.registry import UnknownFieldError, UnknownModelError, get, names
from models.spec import ModelSpec

__all__ = ["ModelSpec", "UnknownFieldError", "UnknownModelError", "get", "names"]
