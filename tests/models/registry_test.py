"""Names, overrides, batches, and that nothing is materialised."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import models

TINY = (
    "gpt2_tiny",
    "llama3_tiny",
    "mixer_tiny",
    "mixtral_tiny",
    "mlp",
    "resnet_tiny",
    "t5_tiny",
    "vit_tiny",
)


def test_names_are_sorted_and_complete():
    assert models.names() == (
        "dense_1t",
        "gpt2_large",
        "gpt2_medium",
        "gpt2_small",
        "gpt2_tiny",
        "gpt2_xl",
        "llama3_70b",
        "llama3_8b",
        "llama3_tiny",
        "maxtext_32b",
        "mixer_b16",
        "mixer_l16",
        "mixer_tiny",
        "mixtral_8x7b",
        "mixtral_tiny",
        "mlp",
        "resnet50",
        "resnet_tiny",
        "t5_tiny",
        "t5_v1_1_large",
        "vit_l16",
        "vit_tiny",
    )


@pytest.mark.parametrize("name", models.names())
def test_spec_is_frozen_hashable_and_cites_its_source(name):
    spec = models.get(name)
    assert spec.name == name
    assert spec.source
    assert spec == models.get(name)
    assert hash(spec) == hash(models.get(name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(spec, "name", "other")  # noqa: B010 (a plain assignment fails the type check)
    field = dataclasses.fields(spec.config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(spec.config, field, 8)


def test_unknown_model_names_the_nearest():
    with pytest.raises(models.UnknownModelError, match="'gpt2-smal'") as error:
        models.get("gpt2-smal")
    assert "nearest: gpt2_small" in str(error.value)
    assert isinstance(error.value, ValueError)


def test_unknown_model_like_no_other_lists_all():
    with pytest.raises(models.UnknownModelError) as error:
        models.get("zzz")
    assert "nearest" not in str(error.value)
    assert all(name in str(error.value) for name in models.names())


def test_unknown_field_names_the_valid_ones():
    with pytest.raises(models.UnknownFieldError, match="no field 'n_layers'") as error:
        models.get("gpt2_tiny", n_layers=2)
    assert "nearest: num_layers" in str(error.value)
    assert "pad_vocab_to" in str(error.value)
    assert isinstance(error.value, ValueError)


def test_class_variables_are_no_fields():
    with pytest.raises(models.UnknownFieldError):
        models.get("mlp", input_key="y")


def test_override_replaces_one_field_and_leaves_the_registry_alone():
    before = models.get("gpt2_tiny")
    spec = models.get("gpt2_tiny", num_layers=2)
    assert spec.name == "gpt2_tiny"
    assert spec.config == dataclasses.replace(before.config, num_layers=2)
    assert models.get("gpt2_tiny") == before
    assert spec.num_params < before.num_params


def test_lists_become_tuples():
    assert models.get("mlp", hidden=[8, 16]) == models.get("mlp", hidden=(8, 16))
    assert hash(models.get("resnet_tiny", stage_sizes=[1]).config)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gpt2_tiny", {"num_heads": 3}, "d_model=128 is not a multiple of num_heads=3"),
        ("gpt2_tiny", {"num_layers": 0}, "num_layers=0 must be a positive integer"),
        ("gpt2_tiny", {"num_layers": "2"}, "num_layers='2' must be a positive integer"),
        ("gpt2_tiny", {"num_layers": True}, "num_layers=True must be a positive integer"),
        ("gpt2_tiny", {"dropout_rate": 1.0}, "dropout_rate=1.0 must be at least 0"),
        ("gpt2_tiny", {"dtype": "flaot32"}, "dtype='flaot32' must be the name"),
        ("gpt2_tiny", {"dtype": "int32"}, "dtype='int32' must be the name"),
        ("llama3_tiny", {"num_kv_heads": 3}, "num_heads=8 is not a multiple of num_kv_heads=3"),
        ("llama3_tiny", {"num_heads": 64}, "is odd"),
        (
            "mixtral_tiny",
            {"experts_per_token": 9},
            "experts_per_token=9 is more than num_experts=8",
        ),
        ("mixtral_tiny", {"capacity_factor": 0.0}, "capacity_factor=0.0 must be positive"),
        ("t5_tiny", {"relative_buckets": 6}, "relative_buckets=6 must be a multiple of 4"),
        ("t5_tiny", {"relative_max_distance": 4}, "relative_max_distance=4 more than half"),
        ("vit_tiny", {"patch_size": 5}, "image_size=32 is not a multiple of patch_size=5"),
        ("mixer_tiny", {"patch_size": 5}, "image_size=32 is not a multiple of patch_size=5"),
        ("mixer_tiny", {"hidden_tokens": 0}, "hidden_tokens=0 must be a positive integer"),
        ("vit_tiny", {"pooling": "max"}, "must be one of 'mean', 'class_token'"),
        ("resnet_tiny", {"block": "wide"}, "must be one of 'basic', 'bottleneck'"),
        ("llama3_tiny", {"scan_layers": "yes"}, "scan_layers='yes' must be True or False"),
        ("gpt2_tiny", {"remat": "some"}, "must be one of 'none', 'full'"),
        ("mlp", {"hidden": (8, 0)}, "must be a tuple of positive integers"),
        ("mlp", {"hidden": 8}, "must be a tuple of positive integers"),
    ],
)
def test_refused_values_are_named(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        models.get(name, **overrides)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2_tiny", {"tokens": ((4, 128), jnp.int32)}),
        ("llama3_8b", {"tokens": ((4, 8192), jnp.int32)}),
        (
            "t5_v1_1_large",
            {
                "tokens": ((4, 512), jnp.int32),
                "decoder_tokens": ((4, 128), jnp.int32),
                "targets": ((4, 128), jnp.int32),
            },
        ),
        ("mlp", {"x": ((4, 64), jnp.float32), "label": ((4,), jnp.int32)}),
        ("vit_tiny", {"image": ((4, 32, 32, 3), jnp.float32), "label": ((4,), jnp.int32)}),
        ("resnet50", {"image": ((4, 224, 224, 3), jnp.float32), "label": ((4,), jnp.int32)}),
    ],
)
def test_example_batch(name, expected):
    batch = models.get(name).example_batch(4)
    assert {key: (leaf.shape, leaf.dtype) for key, leaf in batch.items()} == expected


def test_example_batch_of_a_given_length():
    assert models.get("gpt2_small").example_batch(2, seq_len=16)["tokens"].shape == (2, 16)


@pytest.mark.parametrize("name", ["gpt2_tiny", "llama3_tiny"])
@pytest.mark.parametrize("seq_len", [0, -1, 129])
def test_example_batch_refuses_lengths_out_of_range(name, seq_len):
    with pytest.raises(ValueError, match=f"seq_len={seq_len} is outside"):
        models.get(name).example_batch(2, seq_len=seq_len)


@pytest.mark.parametrize("name", ["mlp", "vit_tiny", "mixer_tiny", "resnet_tiny"])
def test_example_batch_refuses_a_length_where_there_is_no_sequence(name):
    with pytest.raises(ValueError, match="no sequence"):
        models.get(name).example_batch(2, seq_len=16)


@pytest.mark.parametrize("name", TINY)
def test_example_batch_refuses_an_empty_batch(name):
    with pytest.raises(ValueError, match="batch_size=0"):
        models.get(name).example_batch(0)


@pytest.mark.parametrize(
    "name", ["gpt2_small", "llama3_70b", "t5_v1_1_large", "mlp", "vit_tiny", "resnet_tiny"]
)
def test_build_and_count_hold_no_array(name):
    before = len(jax.live_arrays())
    spec = models.get(name, dtype="bfloat16")
    model = spec.build()
    assert spec.num_params == models.get(name).num_params
    assert isinstance(model, nn.Module) or callable(model)
    assert len(jax.live_arrays()) == before


def test_nnx_builder_takes_rngs_by_position_or_name():
    build = models.get("llama3_tiny").build()
    shapes = [
        jax.tree.map(jnp.shape, nnx.state(nnx.eval_shape(make), nnx.Param))
        for make in (lambda: build(nnx.Rngs(0)), lambda: build(rngs=nnx.Rngs(0)))
    ]
    assert shapes[0] == shapes[1]
