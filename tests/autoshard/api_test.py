"""`autoshard.compile`: the two-argument call for each kind of model, and its keywords."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, Mesh

import autoshard
import models
from passes.program import Role
from tests.autoshard import cases

TOKENS = np.arange(8 * 16, dtype=np.int32).reshape(8, 16) % 13


def mesh(shape: tuple[int, ...] = (2, 4), names: tuple[str, ...] = ("x", "y")) -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(shape), names)


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(8, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.second = nnx.Linear(32, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jax.nn.relu(self.norm(self.dropout(self.first(x)))))


def vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(16, 8)).astype(np.float32),
        "label": rng.integers(0, 8, 16).astype(np.int32),
    }


def loss_falls(compiled: Any, batch: Any, steps: int = 8) -> None:
    state = compiled.init(0, batch)
    losses = []
    for _ in range(steps):
        state, metrics = compiled.step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert int(state.step) == steps
    assert np.isfinite(float(compiled.eval(state, batch)["loss"]))


def test_a_linen_module_with_two_arguments() -> None:
    compiled = autoshard.compile(cases.small("gpt2", num_layers=1).build(), mesh())
    with pytest.raises(autoshard.PlanError, match="nothing is planned yet"):
        _ = compiled.plan
    loss_falls(compiled, TOKENS)
    assert compiled.plan.mesh.shape.names == ("x", "y")


def test_an_nnx_builder_with_two_arguments() -> None:
    loss_falls(autoshard.compile(models.get("llama3_tiny").build(), "cpu:8"), {"tokens": TOKENS})


def test_an_nnx_class_with_dropout_and_batch_norm() -> None:
    compiled = autoshard.compile(Classifier, mesh(), optimizer=optax.adam(1e-2), rules="zero3")
    batch = vectors()
    state = compiled.init(0, batch)
    mean = jax.device_get(state.model_state["norm"]["mean"])
    after, _ = compiled.step(state, batch)
    assert not np.allclose(mean, jax.device_get(after.model_state["norm"]["mean"]))
    once, twice = (float(compiled.eval(after, batch)["loss"]) for _ in range(2))
    assert once == twice


def test_an_nnx_module_that_is_built_keeps_its_values() -> None:
    module = Classifier(nnx.Rngs(3))
    compiled = autoshard.compile(module, mesh(), rules="zero3")
    state = compiled.init(0, vectors())
    np.testing.assert_array_equal(
        jax.device_get(state.params["first"]["kernel"]), np.asarray(module.first.kernel[...])
    )
    loss_falls(compiled, vectors())


def test_an_abstract_nnx_module_says_what_to_pass() -> None:
    abstract = nnx.eval_shape(lambda: Classifier(nnx.Rngs(0)))
    with pytest.raises(autoshard.ModelError, match="pass a function that builds it"):
        autoshard.compile(abstract, mesh())


def test_batch_statistics_and_dropout_of_linen() -> None:
    spec = models.get("resnet_tiny")
    batch = cases.random_batch(spec.example_batch(8))
    compiled = autoshard.compile(spec.build(), mesh(), rules="zero1")
    state = compiled.init(0, batch)
    assert all(leaf.role is not Role.OPTIMIZER for leaf in (a.leaf for a in compiled.plan.arrays))
    before = jax.device_get(state.model_state)
    after, _ = compiled.step(state, batch)
    moved = jax.tree.map(
        lambda a, b: not np.allclose(a, b), before, jax.device_get(after.model_state)
    )
    assert all(jax.tree.leaves(moved))


def test_dropout_differs_by_step_and_repeats_by_seed() -> None:
    spec = cases.small("gpt2", num_layers=1, dropout_rate=0.5)
    compiled = autoshard.compile(
        spec.build(), mesh(), batch=spec.example_batch(8), optimizer=optax.sgd(0.0), donate=False
    )
    state = compiled.init(0)
    first, metrics = compiled.step(state, {"tokens": TOKENS})
    _, again = compiled.step(state, {"tokens": TOKENS})
    _, later = compiled.step(first, {"tokens": TOKENS})
    assert float(metrics["loss"]) == float(again["loss"]) != float(later["loss"])


def test_a_plain_function_is_laid_out_and_called() -> None:
    def mlp(params: dict[str, Any], x: Any) -> jax.Array:
        return jax.nn.relu(x @ params["up"]) @ params["down"]

    rng = np.random.default_rng(0)
    params = {
        "up": rng.normal(size=(16, 32)).astype(np.float32),
        "down": rng.normal(size=(32, 16)).astype(np.float32),
    }
    x = rng.normal(size=(8, 16)).astype(np.float32)
    compiled = autoshard.compile(mlp, "data=2,model=4", rules="redco")
    np.testing.assert_allclose(compiled(params, x), mlp(params, x), rtol=1e-4, atol=1e-4)
    specs = {a.leaf.path: a.compute for a in compiled.plan.arrays}
    assert specs == {
        "0/up": ((), ("model",)), "0/down": (("model",), ()), "1": (("data",), ()),
    }  # fmt: skip
    text = compiled.lower().compile().as_text()
    assert text.count(" all-reduce(") == 1
    assert "all-gather" not in text
    assert compiled.memory_report().compiled_bytes > 0
    with pytest.raises(autoshard.PlanError, match="other shapes"):
        compiled(params, x[:4])


def test_roles_of_a_plain_function() -> None:
    spec = jax.ShapeDtypeStruct((8, 8), "float32")
    compiled = autoshard.compile(
        lambda x, w: x @ w, "data=8", batch=(spec, spec), argument_roles=("batch", "parameter")
    )
    assert [a.leaf.role for a in compiled.plan.arrays] == [Role.BATCH, Role.PARAMETER]
    with pytest.raises(autoshard.ModelError, match="1 argument roles were given for 2"):
        autoshard.compile(
            lambda x, w: x @ w, "data=8", batch=(spec, spec), argument_roles=["batch"]
        )


def test_what_is_not_a_model() -> None:
    with pytest.raises(autoshard.ModelError, match="cannot adapt a model of type int"):
        autoshard.compile(3, "cpu:8")
    with pytest.raises(autoshard.ModelError, match="unknown task 'dream'"):
        autoshard.compile(nn.Dense(8), "cpu:8", task="dream")


def test_a_mesh_with_explicit_axes_is_planned_with_auto_ones() -> None:
    explicit = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    compiled = autoshard.compile(cases.small("gpt2", num_layers=1).build(), explicit)
    loss_falls(compiled, TOKENS, steps=6)
    assert set(compiled.mesh.axis_types) == {AxisType.Auto}


def test_eval_needs_no_optimizer() -> None:
    spec = cases.small("gpt2", num_layers=1)
    compiled = autoshard.compile(
        spec.build(), "data=2,model=4", batch=spec.example_batch(8), task="eval", rules="redco"
    )
    state = compiled.init(0)
    assert state.opt_state is None
    assert float(compiled.eval(state, {"tokens": TOKENS})["loss"]) > 0
    assert compiled.memory_report().estimate.gradients_bytes == 0
    with pytest.raises(autoshard.PlanError, match="compile with task='train'"):
        compiled.step(state, {"tokens": TOKENS})


def test_bfloat16_computes_narrow_and_stores_wide() -> None:
    spec = cases.small("gpt2", num_layers=1)
    compiled = autoshard.compile(
        spec.build(), "data=8", batch=spec.example_batch(8), dtype="bfloat16"
    )
    state = compiled.init(0)
    assert {str(x.dtype) for x in jax.tree.leaves(state.params)} == {"float32"}
    text = compiled.lower().as_text()
    assert "bf16" in text
    wide = autoshard.compile(spec.build(), "data=8", batch=spec.example_batch(8))
    _, narrow_metrics = compiled.step(state, {"tokens": TOKENS})
    _, wide_metrics = wide.step(wide.init(0), {"tokens": TOKENS})
    assert narrow_metrics["loss"].dtype == jnp.float32
    np.testing.assert_allclose(
        float(narrow_metrics["loss"]), float(wide_metrics["loss"]), rtol=2e-2
    )
    with pytest.raises(autoshard.ModelError, match="is not a floating dtype"):
        autoshard.compile(spec.build(), "data=8", dtype="int7")


def test_donation_is_the_default_and_can_be_turned_off() -> None:
    spec = cases.small("gpt2", num_layers=1)
    for donate in (True, False):
        compiled = autoshard.compile(
            spec.build(), "data=8", batch=spec.example_batch(8), donate=donate
        )
        state = compiled.init(0)
        compiled.step(state, {"tokens": TOKENS})
        deleted = [x.is_deleted() for x in jax.tree.leaves(state.params)]
        assert all(deleted) if donate else not any(deleted)


def test_user_losses_metrics_and_optimizers() -> None:
    def loss(logits: jax.Array, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=-1)
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        return -picked.mean(), {"accuracy": accuracy}

    spec = models.get("mlp")
    batch = cases.random_batch(spec.example_batch(16))
    for optimizer in (optax.adafactor(1e-3), optax.MultiSteps(optax.adam(1e-3), 2)):
        compiled = autoshard.compile(
            spec.build(), "data=8", batch=batch, loss=loss, rules="zero3", optimizer=optimizer
        )
        _, metrics = compiled.step(compiled.init(0), batch)
        assert 0 <= float(metrics["accuracy"]) <= 1


def test_losses_that_do_not_fit() -> None:
    spec = models.get("mlp")
    batch = cases.random_batch(spec.example_batch(16))
    with pytest.raises(autoshard.LossError, match="Pass loss=lambda outputs, batch"):
        autoshard.compile(spec.build(), "data=8", batch={"x": batch["x"]})
    with pytest.raises(autoshard.LossError, match=r"must be a floating scalar.*\(16,\)"):
        autoshard.compile(
            spec.build(), "data=8", batch=batch, loss=lambda out, batch: out.sum(axis=-1)
        )


def test_batches_of_another_size_run_under_the_same_plan() -> None:
    spec = cases.small("gpt2", num_layers=1)
    compiled = autoshard.compile(spec.build(), "data=8", batch=spec.example_batch(8))
    state, _ = compiled.step(compiled.init(0), {"tokens": TOKENS})
    both = np.concatenate([TOKENS, TOKENS])
    state, metrics = compiled.step(state, {"tokens": both})
    assert np.isfinite(float(metrics["loss"]))
    with pytest.raises(autoshard.BatchError, match="does not divide by the 8 shards"):
        compiled.step(state, {"tokens": both[:12]})
    with pytest.raises(autoshard.BatchError, match="only sizes may change"):
        compiled.step(state, {"tokens": both.astype(np.float32)})
    with pytest.raises(autoshard.BatchError, match="structure"):
        compiled.step(state, {"tokens": both, "mask": both})


def test_a_state_of_another_model_or_layout_is_named() -> None:
    spec = cases.small("gpt2", num_layers=1)
    build = functools.partial(
        autoshard.compile, spec.build(), "data=8", batch=spec.example_batch(8), donate=False
    )
    sharded, whole = build(rules="zero3"), build(rules="data")
    with pytest.raises(autoshard.PlanError, match="move it with"):
        sharded.step(whole.init(0), {"tokens": TOKENS})
    moved = jax.device_put(whole.init(0), sharded.state_sharding)
    sharded.step(moved, {"tokens": TOKENS})
    wide = cases.small("gpt2", num_layers=1, d_model=64)
    other = autoshard.compile(wide.build(), "data=8", batch=wide.example_batch(8))
    with pytest.raises(autoshard.PlanError, match="make the state with init"):
        sharded.step(other.init(0), {"tokens": TOKENS})


def test_legacy_and_integer_seeds_agree() -> None:
    spec = cases.small("gpt2", num_layers=1)
    compiled = autoshard.compile(spec.build(), "data=8", batch=spec.example_batch(8))
    states = [compiled.init(rng) for rng in (5, jax.random.key(5), jax.random.PRNGKey(5))]
    for state in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(states[0].params),
                     jax.device_get(state.params))  # fmt: skip


def test_a_topology_that_is_not_here_is_planned_but_not_run() -> None:
    spec = cases.small("gpt2", num_layers=1)
    compiled = autoshard.compile(spec.build(), "tpu:8", batch=spec.example_batch(8))
    assert "tpu:8" in compiled.plan.explain()
    with pytest.raises(autoshard.DeviceError, match="the plan is for tpu:8"):
        compiled.init(0)


def test_readme_rule_set_of_ones_own() -> None:
    from autoshard.rule_sets import RuleSet
    from autoshard.rule_sets.base import Choices, ClassChoice, RuleContext

    def decide(context: RuleContext) -> Choices:
        ffn = context.subject.names.find("ffn")
        assert ffn is not None
        return Choices(
            classes=tuple(
                ClassChoice(atom, context.tensor_parts, "mine", "I know") for atom in ffn.atoms
            )
        )

    mine = RuleSet("mine", decide, claims=lambda subject, shape, rules: frozenset({"model"}))
    plan = cases.compile_case(cases.small("gpt2"), "data=2,model=4", [mine, "zero1"]).plan
    up = next(a for a in plan.arrays if a.leaf.path == "h_1/mlp/up/kernel")
    assert (up.compute, up.rule) == (((), ("model",)), "mine+zero1")
