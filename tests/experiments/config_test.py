"""Flags become one frozen value, and it becomes flags again; bad ones are explained."""

import dataclasses
import json
import os
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from autoshard.errors import MeshError
from experiments import devices
from experiments.config import TrainConfig
from experiments.flag_fields import ConfigError, define_flags, from_flags
from experiments.model_settings import parse_overrides
from experiments.optimizer import learning_rate_schedule, make_optimizer


def parse(*arguments: str) -> TrainConfig:
    values = flags.FlagValues()
    define_flags(TrainConfig, values)
    values(["train", *arguments])
    return from_flags(TrainConfig, values)


def test_defaults_are_the_dataclass():
    assert parse() == TrainConfig()
    assert TrainConfig().command() == "python -m experiments.train"


def test_flags_fill_the_config():
    config = parse(
        "--model=llama3_tiny",
        "--model_overrides=num_layers=2,dtype=bfloat16",
        "--mesh=data=2,model=4",
        "--rules=zero3+redco,logical",
        "--seq_len=64",
        "--learning_rate=3e-4",
        "--strict",
        "--checkpoint_dir=here",
        "--resume",
    )
    assert config.mesh == "data=2,model=4"
    assert config.rule_names == ("zero3", "redco", "logical")
    assert config.overrides == {"num_layers": 2, "dtype": "bfloat16"}
    assert (config.seq_len, config.learning_rate) == (64, 3e-4)
    assert config.strict and config.resume
    assert config.output == "runs/llama3_tiny"


names = st.text("abz_ '\"=,*/$", min_size=1, max_size=12)


@given(
    config=st.builds(
        TrainConfig,
        model=names,
        mesh=names,
        data=names,
        checkpoint_dir=names,
        rules=st.lists(st.sampled_from(["auto", "zero3"]), min_size=1).map("+".join),
        steps=st.integers(100, 10**6),
        warmup_steps=st.none() | st.integers(0, 99),
        seq_len=st.none() | st.integers(2, 9999),
        learning_rate=st.floats(1e-9, 10.0),
        resume=st.booleans(),
        strict=st.booleans(),
    )
)
def test_round_trips(config):
    assert parse(*config.arguments()) == config
    assert parse(*shlex.split(config.command())[3:]) == config
    assert TrainConfig.from_json(json.loads(config.dumps())) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "--steps=0 must be at least 1"),
        ({"seq_len": 1}, "--seq_len=1 must be at least 2"),
        ({"weight_decay": float("nan")}, "--weight_decay=nan must be at least 0"),
        ({"learning_rate": 0.0}, "--learning_rate=0.0 must be above 0"),
        ({"steps": 10, "warmup_steps": 10}, "below --steps=10"),
        ({"resume_step": 5}, "needs --resume"),
        ({"resume": True}, "needs --checkpoint_dir"),
        ({"rules": " +,"}, "--rules is empty"),
        ({"model_overrides": "num_layers"}, "cannot be read: write name=value"),
    ],
)
def test_bad_values_are_explained(values, message):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**values)
    assert message in str(caught.value)


def test_overrides_are_literals_or_words():
    text = "a=1, b=0.5, c=(1,2), d='x,y', e=word, f=None, g=-3, h=True"
    assert parse_overrides(text) == {
        "a": 1, "b": 0.5, "c": (1, 2), "d": "x,y", "e": "word", "f": None, "g": -3, "h": True,
    }  # fmt: skip
    assert parse_overrides("") == {}


@pytest.mark.parametrize("text", ["**a", "1", "a=print()", "a=1)+f(b=2", "a=", "a=1,,"])
def test_overrides_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="name=value pairs"):
        parse_overrides(text)


def test_every_flag_has_a_help():
    for field in dataclasses.fields(TrainConfig):
        assert len(field.metadata["help"]) > 20, field.name


@pytest.mark.parametrize(
    ("text", "axes", "count"),
    [
        ("data=2,model=4", (("data", 2), ("model", 4)), 8),
        ("data = 8", (("data", 8),), 8),
        ("cpu:6", None, 6),
        ("cpu:2x3", None, 6),
        ("v5p:4x4x4", None, 1),
        ("", None, 1),
    ],
)
def test_mesh_text(text, axes, count):
    assert devices.parse_axes(text) == axes
    assert devices.host_device_count(text) == count


@pytest.mark.parametrize("text", ["data=", "data=0", "=4", "data=2,model", "data=2;model=4"])
def test_bad_mesh_text(text):
    with pytest.raises(MeshError, match="is not an axis"):
        devices.parse_axes(text)


def test_meshes():
    mesh = devices.make_mesh("data=2,model=4")
    assert not isinstance(mesh, str) and dict(mesh.shape) == {"data": 2, "model": 4}
    everything = devices.make_mesh("")
    assert not isinstance(everything, str) and dict(everything.shape) == {"data": 8}
    assert devices.make_mesh("cpu:8") == "cpu:8"
    with pytest.raises(MeshError, match="needs 16 devices, but this process has 8"):
        devices.make_mesh("data=16")
    with pytest.raises(MeshError, match="an axis twice"):
        devices.make_mesh("data=2,data=2")


def test_host_devices_are_asked_for_unless_the_user_did(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    devices.force_host_devices("data=2,model=3")
    assert os.environ["XLA_FLAGS"] == "--xla_a=1 --xla_force_host_platform_device_count=6"
    devices.force_host_devices("data=4")
    assert os.environ["XLA_FLAGS"].endswith("=6")


def test_schedule_warms_up_and_decays():
    schedule = learning_rate_schedule(TrainConfig(steps=100, warmup_steps=10, learning_rate=1.0))
    rates = np.array([float(schedule(i)) for i in range(101)])
    assert 0 < rates[0] < 0.2 and rates.argmax() == 10 and rates[10] == pytest.approx(1.0)
    assert np.all(np.diff(rates[10:]) <= 0) and rates[100] == pytest.approx(0.1)
    assert float(learning_rate_schedule(TrainConfig(steps=1))(0)) > 0


def test_biases_and_scales_do_not_decay():
    config = TrainConfig(steps=10, warmup_steps=0, learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config)
    # By name: stacked over layers, a bias is a matrix.
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))}
    state = optimizer.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, state, params)
    np.testing.assert_allclose(updates["kernel"], -0.05 * np.ones((2, 2)), rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], np.zeros((2, 2)))
