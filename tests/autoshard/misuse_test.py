"""What users do wrong, or right in unusual ways: each ends in a clear error, or works."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType

import autoshard
from autoshard import losses, rule_sets
from tests.autoshard import cases

X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
BATCH = {"x": X, "label": np.arange(16, dtype=np.int32) % 8}


class Dense(nn.Module):
    @nn.compact
    def __call__(module, x):  # not called self, on purpose
        return nn.Dense(8)(nn.relu(nn.Dense(16)(x)))


def compiled(model: Any = None, mesh: str = "data=2,model=4", **keywords: Any) -> Any:
    return autoshard.compile(model or Dense(), mesh, **{"batch": BATCH, **keywords})


def test_a_state_that_was_given_away_is_refused_before_the_runtime_sees_it() -> None:
    program = compiled()
    state = program.init(0)
    program.step(state, BATCH)
    for call in (program.step, program.eval):
        with pytest.raises(autoshard.PlanError, match="go on with the state that step returned"):
            call(state, BATCH)


def test_training_leaves_a_built_module_alone() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(8, 8, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.linear(x)

    module = Net(nnx.Rngs(0))
    program = compiled(module, mesh="data=8", rules="data")
    program.step(program.init(0), BATCH)
    program.step(program.init(1), BATCH)
    assert np.isfinite(np.asarray(module.linear.kernel[...])).all()


def test_arguments_are_never_bound_by_the_alphabet() -> None:
    class Two(nn.Module):
        @nn.compact
        def __call__(self, image: jax.Array, caption: jax.Array) -> jax.Array:
            return nn.Dense(8)(image) + 0 * caption.mean()

    with pytest.raises(autoshard.ModelError, match=r"requires \['image', 'caption'\]"):
        compiled(Two(), batch={"pixels": X, "ids": X, "label": BATCH["label"]})
    compiled(Two(), batch={"image": X, "caption": X, "label": BATCH["label"]})

    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, scale: jax.Array) -> jax.Array:
            return nn.Dense(8)(x * scale)

    with pytest.raises(autoshard.ModelError, match=r"requires \['x', 'scale'\]"):
        compiled(Scaled())


def test_negative_labels_do_not_count_and_ambiguous_ones_are_refused() -> None:
    logits = jnp.asarray(X)
    labels = jnp.asarray(BATCH["label"])
    some = losses.classification_loss(logits, labels.at[8:].set(-100))
    np.testing.assert_allclose(some, losses.classification_loss(logits[:8], labels[:8]), rtol=1e-6)
    spec = cases.small("gpt2", num_layers=1)
    tokens = np.zeros((8, 16), np.int32)
    with pytest.raises(autoshard.LossError, match="may or may not be shifted"):
        autoshard.compile(spec.build(), "data=8", batch={"tokens": tokens, "labels": tokens})
    autoshard.compile(spec.build(), "data=8", batch={"tokens": tokens, "targets": tokens})


def test_pairs_apply_to_metadata_names() -> None:
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            init = nn.with_logical_partitioning(nn.initializers.normal(), ("inp", "wide"))
            return nn.Dense(8)(nn.relu(nn.Dense(16, kernel_init=init, name="up")(x)))

    plan = compiled(Named(), rules={"wide": "model", "inp": "data"}).plan
    up = next(a for a in plan.arrays if a.leaf.path == "up/kernel")
    assert (up.compute, up.param) == (((), ("model",)), (("data",), ("model",)))


@pytest.mark.parametrize(("channels", "groups"), [(18, 18), (24, 6), (24, 2)])
def test_grouped_convolutions_that_the_compiler_miscounts_are_refused(
    channels: int, groups: int
) -> None:
    class Grouped(nn.Module):
        @nn.compact
        def __call__(self, image: jax.Array) -> jax.Array:
            x = nn.relu(nn.Conv(channels, (1, 1))(image))
            x = nn.relu(nn.Conv(channels, (3, 3), feature_group_count=groups)(x))
            return nn.Dense(8)(x.mean((1, 2)))

    image = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype(np.float32)
    batch = {"image": image, "label": BATCH["label"]}
    with pytest.raises(autoshard.RuleError, match="would leave mesh axis model idle"):
        compiled(Grouped(), batch=batch, rules="redco")
    ends = []
    for mesh in ("data=1", "data=2,model=4"):
        program = compiled(Grouped(), mesh, batch=batch, optimizer=optax.sgd(0.1))
        state, _ = program.step(program.init(0), batch)
        ends.append(jax.device_get(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *ends)


def test_notes_name_what_makes_a_layout_dear() -> None:
    class Fused(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            a, b = jnp.split(nn.Dense(32)(x), 2, axis=-1)
            return nn.Dense(8)(nn.silu(a) * b)

    notes = compiled(Fused(), rules="redco").plan.notes
    assert any("is cut in pieces" in note for note in notes)

    class Stacked(nn.Module):
        stack_inside: bool

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            normal, shape = nn.initializers.normal(), (8, 8)
            if self.stack_inside:
                weights = jnp.stack([self.param(f"w{i}", normal, shape) for i in range(3)])
            else:
                weights = self.param("w", normal, (3, *shape))
            return jax.lax.scan(lambda x, w: (x + x @ w, None), x, weights.astype(x.dtype))[0]

    made, kept = Stacked(stack_inside=True), Stacked(stack_inside=False)
    assert any("stacks that it makes" in n for n in compiled(made, rules="zero3").plan.notes)
    assert compiled(made, rules="zero2").plan.notes == ()
    assert compiled(kept, rules="zero3").plan.notes == ()


def test_scalars_beside_the_batch_and_among_arguments() -> None:
    batch = {**BATCH, "temperature": np.float32(2.0)}
    loss = lambda out, b: losses.classification_loss(out / b["temperature"], b["label"])  # noqa: E731
    program = compiled(batch=batch, loss=loss)
    program.step(program.init(0), batch)
    function = autoshard.compile(lambda w, scale: w * scale, "data=8")
    np.testing.assert_allclose(function(X, np.float32(2)), 2 * X)


def test_variables_that_grow_are_named() -> None:
    class Sows(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            self.sow("losses", "auxiliary", x.mean())
            return nn.Dense(8)(x)

    with pytest.raises(autoshard.ModelError, match=r"losses/auxiliary.*intermediates"):
        compiled(Sows())


def test_optimizers_that_read_the_loss() -> None:
    optimizer = optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau())
    program = compiled(optimizer=optimizer)
    state, _ = program.step(program.init(0), BATCH)
    assert int(state.step) == 1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out, b: b["targets"].sum(), "reads 'targets', and the batch has"),
        (lambda out, b: (out.mean(), out), "must be a dict of scalars"),
        (lambda out, b: (out.mean(), {"loss": 0.0}), "returns a metric called 'loss'"),
        (lambda out, b: out.argmax(), "must be a floating scalar"),
        (lambda out, b: 0.0, "must be a floating scalar"),
    ],
)
def test_losses_that_are_not(loss: Any, message: str) -> None:
    with pytest.raises(autoshard.LossError, match=message):
        compiled(loss=loss)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"optimizer": 3e-4}, "is not an optax transformation"),
        ({"model": Dense}, "pass an instance"),
        ({"rules": None}, "None is not a rule"),
        ({"rules": [3]}, "3 is not a rule"),
    ],
)
def test_arguments_of_the_wrong_kind(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(autoshard.AutoshardError, match=message):
        compiled(**keywords)


def test_patterns_and_roles_of_the_wrong_kind() -> None:
    with pytest.raises(autoshard.RuleError, match=r"write \('model',\)"):
        rule_sets.patterns(("kernel", "model"))
    with pytest.raises(autoshard.RuleError, match="not a regular expression"):
        rule_sets.patterns(("(", ("model",)))
    spec = jax.ShapeDtypeStruct((8, 8), "float32")
    with pytest.raises(autoshard.ModelError, match="there are parameter"):
        autoshard.compile(lambda x: x, "data=8", batch=(spec,), argument_roles=["param"])


def test_seeds_and_keys_of_every_kind() -> None:
    program = compiled()
    for rng in (np.int64(3), jnp.int32(3), jax.random.key(3, impl="rbg")):
        program.step(program.init(rng), BATCH)
    for rng in (None, {"params": jax.random.key(0)}, "seed"):
        with pytest.raises(autoshard.ModelError, match="cannot make a PRNG key"):
            program.init(rng)


def test_damaged_plans_are_found_out() -> None:
    program = compiled(rules="zero3+redco")
    good = program.plan.to_json()
    damages: list[tuple[str, Any]] = [
        ("data_parts", ["zz"]),
        ("data_parts", []),
        ("mesh", {**good["mesh"], "parts": [["data"]]}),
        ("mesh", {**good["mesh"], "part_sizes": [[2], []]}),
        ("task", "eval"),
        ("arrays", good["arrays"][::-1]),
        ("arrays", [{**row, "dims": ["a"] * 7} for row in good["arrays"]]),
    ]
    for key, value in damages:
        with pytest.raises(autoshard.PlanError):
            compiled(plan=autoshard.Plan.from_json({**good, key: value}))
    assert compiled(plan=autoshard.Plan.from_json(good)).plan == program.plan


def test_initialising_again_does_not_compile_again() -> None:
    program = compiled()
    program.init(0)
    initialise = program._initialise
    traces = [initialise._cache_size()]
    program.init(1)
    traces.append(initialise._cache_size())
    assert traces == [1, 1] and program._initialise is initialise


def test_arrays_that_are_not_per_example_stay_whole() -> None:
    batch = {**BATCH, "class_weights": np.ones(5, np.float32)}
    program = compiled(mesh="data=8", batch=batch, rules="data")
    rows = {a.leaf.path: a.compute for a in program.plan.arrays}
    assert rows["class_weights"] == ((),)
    assert any("class_weights has 5 rows" in note for note in program.plan.notes)
    program.step(program.init(0), batch)


def test_a_context_of_explicit_axes_is_named() -> None:
    program = compiled()
    with jax.set_mesh(jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)):
        with pytest.raises(autoshard.MeshError, match=r"Explicit axes \(a, b\)"):
            program.init(0)
        with pytest.raises(autoshard.MeshError, match="Explicit axes"):
            compiled()
