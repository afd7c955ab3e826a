"""Small models, meshes and a single-device reference, shared by the tests of whole programs."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import optax

import models
from autoshard import adapters, planning, rule_sets
from autoshard.adapters import ModelFunctions
from autoshard.compiled_model import CompiledModel
from autoshard.losses import default_loss
from autoshard.precision import Precision
from autoshard.recipe import Recipe
from autoshard.target import resolve

MESHES = {
    "8x1": "data=8,model=1",
    "1x8": "data=1,model=8",
    "2x4": "data=2,model=4",
    "4x2": "data=4,model=2",
    "2x2x2": "data=2,fsdp=2,model=2",
}

# Names for the dimensions of the zoo's parameters, as a user would annotate them.
LOGICAL_AXES = (
    (r"(query|key|value)/kernel", ("embed", "heads", "kv")),
    (r"(query|key|value)/bias", ("heads", "kv")),
    (r"attn/out/kernel", ("heads", "kv", "embed")),
    (r"mlp/up/kernel", ("embed", "mlp")),
    (r"mlp/up/bias", ("mlp",)),
    (r"mlp/down/kernel", ("mlp", "embed")),
    (r"(q|k|v)_proj/kernel", ("embed", None)),
    (r"(gate|up)_proj/kernel", ("embed", "mlp")),
    (r"down_proj/kernel", ("mlp", "embed")),
    (r"(wte|embed)/embedding", ("vocab", "embed")),
)

_SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"num_layers": 2, "d_model": 32, "vocab_size": 64, "max_seq_len": 16},
    "llama": {"num_layers": 2, "vocab_size": 64, "max_seq_len": 16},
    "vit": {"num_layers": 2, "d_model": 32, "d_ff": 64, "image_size": 16},
}


def small(family: str, **overrides: Any) -> models.ModelSpec:
    """A very small member of a family, every dimension of which divides by 8 (but kv heads)."""
    return models.get(f"{family}_tiny" if family != "llama" else "llama3_tiny",
                      **{**_SMALL.get(family, {}), **overrides})  # fmt: skip


def random_batch(batch: Any, seed: int = 0) -> Any:
    """Random arrays of a batch's shapes; integers below 16."""
    rng = np.random.default_rng(seed)

    def one(spec: Any) -> np.ndarray:
        if np.issubdtype(spec.dtype, np.integer):
            return rng.integers(0, 16, spec.shape).astype(spec.dtype)
        return rng.normal(size=spec.shape).astype(spec.dtype)

    return jax.tree.map(one, batch)


def functions_of(spec: models.ModelSpec, annotated: bool) -> ModelFunctions:
    """A model's functions, if wished with `LOGICAL_AXES` as its parameters' metadata."""
    functions = adapters.adapt(spec.build())
    if not annotated:
        return functions

    def axis_names(rng: Any, batch: Any) -> dict[str, Any]:
        params, _ = functions.shapes(rng, batch)
        found = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name = adapters.path_name(path)
            for regex, names in LOGICAL_AXES:
                if re.search(regex, name) and len(names) == leaf.ndim:
                    found[name] = names
                    break
        return found

    return dataclasses.replace(functions, axis_names=axis_names)


def compile_case(
    spec: models.ModelSpec, mesh: str, rules: Any, batch_size: int = 8, **recipe: Any
) -> CompiledModel:
    """A model compiled as `autoshard.compile` does, with annotations when the rules want them."""
    annotated = rules == "logical"
    made = Recipe(
        functions=functions_of(spec, annotated),
        loss=recipe.pop("loss", default_loss),
        optimizer=recipe.pop("optimizer", optax.sgd(0.1)),
        target=resolve(mesh),
        wishes=planning.Wishes(rule_sets.parse(rules)),
        precision=Precision(),
        donate=False,
    )
    return CompiledModel(made, spec.example_batch(batch_size))


def reference(spec: models.ModelSpec, batch: Any, seed: int = 0) -> tuple[Any, float, Any]:
    """(parameters, loss, gradients) on one device, by JAX alone."""
    functions = adapters.adapt(spec.build())
    init_key, _ = jax.random.split(jax.random.key(seed))
    example = jax.tree.map(np.zeros_like, batch)

    def loss(params: Any, model_state: Any) -> Any:
        outputs, _ = functions.apply(params, model_state, jax.random.key(0), batch, True)
        return default_loss(outputs, batch)

    params, model_state = jax.jit(functions.init)(init_key, example)
    value, gradients = jax.jit(jax.value_and_grad(loss))(params, model_state)
    return jax.device_get(params), float(value), jax.device_get(gradients)
