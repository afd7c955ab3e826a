"""Layers as one stack and a loop, and their rematerialisation: the same functions, other programs.

An unrolled model's parameters, stacked, are those of the scanned model.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from tests.models import helpers

FAMILIES = ("gpt2_tiny", "llama3_tiny", "mixtral_tiny", "vit_tiny", "mixer_tiny")
LAYERS = 2


def spec_of(name: str, **fields: Any) -> models.ModelSpec:
    return helpers.small(name, num_layers=LAYERS, **fields)


def by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def stacked(unrolled: Any, like: Any) -> Any:
    """Parameters of an unrolled model in the structure of the scanned one, `like`."""
    found: dict[str, Any] = {}
    for path, leaf in by_path(unrolled).items():
        match = re.search(r"(.*)(layers|h|block)[_/](\d+)(/.*)", path)
        if match is None:
            found[path] = leaf
        else:
            found.setdefault(f"{match[1]}{match[2]}{match[4]}", []).append(leaf)
    paths = by_path(like)
    assert found.keys() == paths.keys()
    leaves = [jnp.stack(found[p]) if isinstance(found[p], list) else found[p] for p in paths]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


@pytest.mark.parametrize("name", FAMILIES)
def test_scanned_and_rematerialised_layers_compute_the_same(name: str) -> None:
    plain = spec_of(name)
    variables, _ = helpers.compiled(plain)
    batch = helpers.random_batch(plain)
    scanned_like = jax.eval_shape(helpers.pure(spec_of(name, scan_layers=True))[0])

    def loss_and_gradients(spec: models.ModelSpec, variables: Any) -> tuple[Any, Any]:
        _, apply = helpers.pure(spec)

        @helpers.quick_jit
        def run(variables: Any) -> Any:
            def loss(variables: Any) -> Any:
                logits = apply(variables, batch[spec.config.input_key])
                return helpers.cross_entropy(logits, batch)

            return jax.value_and_grad(loss)(variables)

        result: tuple[Any, Any] = run(variables)
        return result

    expected, gradients = loss_and_gradients(plain, variables)
    in_stacks = stacked(variables, scanned_like), stacked(gradients, scanned_like)
    for fields, given, wanted in (
        ({"remat": "full"}, variables, gradients),
        ({"scan_layers": True, "remat": "none"}, *in_stacks),
        ({"scan_layers": True, "remat": "full"}, *in_stacks),
    ):
        loss, found = loss_and_gradients(spec_of(name, **fields), given)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        for path, leaf in by_path(wanted).items():
            largest = max(float(jnp.abs(leaf).max()), 1e-3)
            np.testing.assert_allclose(by_path(found)[path], leaf, rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("name", FAMILIES)
def test_scanned_layers_are_initialised_as_unrolled_ones_and_differ(name: str) -> None:
    plain, _ = helpers.compiled(spec_of(name))
    scanned = helpers.compiled(spec_of(name, scan_layers=True))[0]
    like = stacked(plain, scanned)
    stacks = 0
    for path, leaf in by_path(scanned).items():
        other = by_path(like)[path]
        assert leaf.shape == other.shape
        if not re.search(r"(layers|h|block)/.*kernel", path):
            continue
        stacks += 1
        assert leaf.shape[0] == LAYERS
        assert float(jnp.abs(leaf[0] - leaf[1]).max()) > 0.01
        assert float(jnp.std(leaf)) == pytest.approx(float(jnp.std(other)), rel=0.1)
    assert stacks >= 4


@pytest.mark.parametrize("name", ["gpt2_tiny", "vit_tiny"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_layers_drop_out_by_their_own_keys(name: str, remat: str) -> None:
    spec = spec_of(name, scan_layers=True, remat=remat, dropout_rate=0.5)
    variables = helpers.compiled(spec_of(name, scan_layers=True))[0]
    model, x = helpers.linen(spec), helpers.model_input(spec)

    @helpers.quick_jit
    def run(seed: int) -> Any:
        return model.apply(
            variables, x, deterministic=False, rngs={"dropout": jax.random.key(seed)}
        )

    first, again, other = (np.asarray(run(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_scanned_program_does_not_grow_with_depth(name: str) -> None:
    def size(num_layers: int) -> int:
        spec = helpers.small(name, num_layers=num_layers, scan_layers=True, remat="full")
        init, apply = helpers.pure(spec)
        x = spec.example_batch(1)[spec.config.input_key]
        return str(jax.make_jaxpr(apply)(jax.eval_shape(init), x)).count("\n")

    assert size(2) == size(9)


@pytest.mark.parametrize(
    "name", ["llama3_8b", "llama3_70b", "mixtral_8x7b", "t5_v1_1_large", "gpt2_xl", "vit_l16"]
)
def test_scanning_changes_no_parameter_count(name: str) -> None:
    counts = {models.get(name, scan_layers=scan).num_params for scan in (False, True)}
    assert len(counts) == 1


def test_published_llamas_are_scanned_and_rematerialised() -> None:
    for name, scanned in (("llama3_8b", True), ("llama3_70b", True), ("llama3_tiny", False)):
        config: Any = models.get(name).config
        assert config.scan_layers is scanned
        assert config.remat == ("full" if scanned else "none")
