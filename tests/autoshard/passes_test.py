"""`autoshard.compile(passes=...)`: the same training, another program.

Gradients of each pair of passes, on each family, are compared in `pass_pairs_test.py`.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
import optax
import pytest

import autoshard
import models
from autoshard.adapters import path_name
from autoshard.apply_passes import Passes
from autoshard.elementwise_optimizers import is_elementwise
from autoshard.errors import PassError, RuleError
from autoshard.pass_registry import from_records, parse_passes, record
from passes.microbatch import Microbatch
from passes.pass_pipeline import Checks
from passes.program import Program
from passes.stack_layers import StackLayers
from tests.autoshard.cases import random_batch

MESH = "data=4,model=2"
STEPS = 3


@functools.cache
def spec_of(name: str) -> models.ModelSpec:
    return models.get(name, num_layers=4)


def batch_of(spec: models.ModelSpec) -> Any:
    return random_batch(spec.example_batch(8, 16))


def compiled(name: str, passes: Any, optimizer: Any = None, rules: str = "zero3+redco") -> Any:
    spec = spec_of(name)
    return autoshard.compile(
        spec.build(), MESH, batch=batch_of(spec), rules=rules, passes=passes,
        optimizer=optimizer or optax.sgd(0.1, momentum=0.9),
    )  # fmt: skip


def trained(name: str, passes: Any, **more: Any) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of a few steps, and the parameters after them by the user's paths."""
    model = compiled(name, passes, **more)
    batch, state, losses = batch_of(spec_of(name)), model.init(0), []
    for _ in range(STEPS):
        state, metrics = model.step(state, batch)
        losses.append(float(metrics["loss"]))
    params = model.to_user_state(state).params
    return losses, {
        path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)
    }


@functools.cache
def plainly(name: str) -> tuple[list[float], dict[str, np.ndarray]]:
    return trained(name, None)


def test_training_is_the_same() -> None:
    losses, params = trained("gpt2_tiny", "simplify, stack_layers, microbatch(count=2)")
    expected, others = plainly("gpt2_tiny")
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    assert params.keys() == others.keys()
    scale = max(float(np.abs(x).max()) for x in others.values())
    for path, x in params.items():
        np.testing.assert_allclose(x, others[path], atol=1e-4 * scale, err_msg=path)


def test_state_is_stacked_and_the_users_tree_comes_back() -> None:
    model = compiled("gpt2_tiny", "stack_layers", optax.adam(1e-2))
    plain = compiled("gpt2_tiny", None, optax.adam(1e-2))
    state = model.init(0)
    assert state.params["h_*"]["attn"]["key"]["kernel"].shape[0] == 4
    user, reference = model.to_user_state(state), plain.init(0)
    assert [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(user)] == [
        path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(reference)
    ]
    for ours, theirs in zip(jax.tree.leaves(user), jax.tree.leaves(reference), strict=True):
        if jax.numpy.issubdtype(ours.dtype, jax.dtypes.prng_key):
            continue
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    again = model.from_user_state(user)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert ours.sharding == theirs.sharding and ours.shape == theirs.shape
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), model.abstract_user_state)
    assert shapes == jax.tree.map(lambda x: (x.shape, str(x.dtype)), plain.abstract_state)


def test_checkpoints_are_the_users_whatever_the_passes(tmp_path: pathlib.Path) -> None:
    stacked = compiled("gpt2_tiny", "stack_layers", optax.adam(1e-2))
    batch = batch_of(spec_of("gpt2_tiny"))
    state, _ = stacked.step(stacked.init(0), batch)
    with autoshard.Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.save(1, stacked.to_user_state(state))
    plain = compiled("gpt2_tiny", None, optax.adam(1e-2), "data")
    with autoshard.Checkpointer(tmp_path / "run") as checkpoints:
        restored = checkpoints.restore(plain.abstract_user_state).state
    _, first = stacked.step(state, batch)
    _, second = plain.step(plain.from_user_state(restored), batch)
    assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-5)


def by_rank(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)


OPTIMIZERS = {
    "adamw": (optax.adamw(1e-3), True),
    "sgd": (optax.sgd(0.1, momentum=0.9), True),
    "lion": (optax.lion(1e-3), True),
    "global norm": (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)), True),
    "schedule": (autoshard.default_optimizer(), True),
    "adafactor": (optax.adafactor(1e-3), False),
    "lamb": (optax.lamb(1e-3), False),
    "mask by rank": (optax.adamw(1e-3, mask=by_rank), False),
    "block clipping": (optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)), False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_which_optimizers_see_stacks(name: str) -> None:
    optimizer, expected = OPTIMIZERS[name]
    model = compiled("gpt2_tiny", "stack_layers", optimizer)
    stacks = any(array.leaf.parts for array in model.plan.arrays)
    assert stacks == expected
    if not expected:
        assert "user's tree" in model.plan.passes[0].notes[-1]


def test_an_optimizer_that_is_not_elementwise_trains_as_without_the_pass() -> None:
    optimizer = optax.chain(optax.clip_by_block_rms(1e-3), optax.sgd(0.5))
    losses, _ = trained("gpt2_tiny", "stack_layers", optimizer=optimizer)
    expected, _ = trained("gpt2_tiny", None, optimizer=optimizer)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_elementwise_needs_the_same_sum_of_all() -> None:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        first = jax.tree.leaves(updates)[0]
        return jax.tree.map(lambda x: x * jax.numpy.sum(first), updates), state

    odd = optax.GradientTransformation(lambda params: (), update)
    model = compiled("gpt2_tiny", "stack_layers")
    assert not is_elementwise(odd, model._ready().stacking)


def test_plans_hold_their_passes(tmp_path: pathlib.Path) -> None:
    passes = "stack_layers(remat='none'), microbatch(count=2)"
    model = compiled("gpt2_tiny", passes)
    path = tmp_path / "plan.json"
    model.plan.save(path)
    plan = autoshard.Plan.load(path)
    assert plan == model.plan
    text = plan.explain()
    assert "pass stack_layers(remat='none')" in text and "4 layers of" in text
    assert "2 microbatches of 4 rows" in text
    spec = spec_of("gpt2_tiny")
    again = autoshard.compile(spec.build(), MESH, batch=batch_of(spec), plan=path)
    assert [one.name for one in again.plan.passes] == ["stack_layers", "microbatch"]
    with pytest.raises(PassError, match="made with other passes"):
        autoshard.compile(spec.build(), MESH, batch=batch_of(spec), plan=path, passes="simplify")


def test_text_to_passes() -> None:
    assert parse_passes("stack_layers, microbatch(count=4)") == (StackLayers(), Microbatch(4))
    assert parse_passes(["stack_layers(least=2)", Microbatch(2)]) == (
        StackLayers(least=2),
        Microbatch(2),
    )
    assert parse_passes(None) == parse_passes("") == ()
    records = tuple(record(one) for one in (StackLayers(least=3), Microbatch(2)))
    assert from_records(records) == (StackLayers(least=3), Microbatch(2))
    assert str(records[0]) == "stack_layers(least=3)"


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("stack_layer", "did you mean stack_layers"),
        ("microbatch(cuont=4)", "no setting 'cuont': it has count"),
        ("microbatch", "needs more settings"),
        ("microbatch(4)", "not a pass with named settings"),
        ("stack_layers +", "cannot be read"),
        ("microbatch(count=x)", "must be numbers"),
        (3, "3 is not a pass"),
        (StackLayers, "is not a pass"),
        ("microbatch(count=2), stack_layers", "'stack_layers'.*stands after 'microbatch': put it"),
        ("microbatch(count=3)", "pass 'microbatch': a batch of 8 does not divide into 3"),
    ],
)
def test_bad_passes(passes: Any, message: str) -> None:
    with pytest.raises(PassError, match=message):
        compiled("gpt2_tiny", passes)


def test_passes_need_a_model() -> None:
    with pytest.raises(PassError, match="plain function"):
        autoshard.compile(lambda x: x, MESH, passes="simplify")


@dataclasses.dataclass(frozen=True)
class Pinned:
    """A user's pass that wants an axis for a dimension."""

    axis: str
    name: str = "pinned"
    after_planning: bool = True

    @property
    def pins(self) -> tuple[tuple[str, str], ...]:
        return (("layers", self.axis),)

    def apply(self, program: Program) -> Program:
        assert program.placement is not None
        specs = program.placement.specs(program)
        return program.noting(f"{len(specs)} values are sharded")


def test_a_users_pass_may_pin_an_axis() -> None:
    spec = spec_of("gpt2_tiny")
    mesh = "stage=2,data=2,model=2"
    model = autoshard.compile(
        spec.build(), mesh, batch=batch_of(spec), passes=["stack_layers", Pinned("stage")]
    )
    for array in model.plan.arrays:
        used = {part for dim in array.compute for part in dim}
        assert ("stage" in used) == bool(array.leaf.parts)
        if array.leaf.parts:
            assert array.compute[0] == ("stage",)
    assert "values are sharded" in model.plan.passes[-1].notes[0]
    with pytest.raises(RuleError, match="names mesh axis 'pipe'"):
        autoshard.compile(spec.build(), mesh, batch=batch_of(spec), passes=[Pinned("pipe")])
    with pytest.raises(PassError, match="does not come with autoshard"):
        from_records(model.plan.passes)


def test_checks_and_dumps(tmp_path: pathlib.Path) -> None:
    spec = spec_of("gpt2_tiny")
    autoshard.compile(
        spec.build(), MESH, batch=batch_of(spec), passes="stack_layers, microbatch(count=2)",
        pass_checks=Checks(compare=True, dump_to=str(tmp_path)),
    )  # fmt: skip
    assert {"01-stack_layers.diff", "02-microbatch.diff"} <= {p.name for p in tmp_path.iterdir()}


def test_order_of_passes() -> None:
    split = Passes.of(
        parse_passes("simplify, stack_layers, constrain, microbatch(count=2)"), Checks()
    )
    assert [p.name for p in split.before] == ["simplify", "stack_layers"]
    assert [p.name for p in split.after] == ["constrain", "microbatch"]


SEVERAL = (
    ("microbatch(count=2), sequence(method='bidirectional'), remat", "data=2,seq=4"),
    (
        "microbatch(count=4), remat(policy='full'), "
        "pipeline(schedule='zero_bubble', microbatches=4)",
        "stage=4,data=2",
    ),
)


@pytest.mark.parametrize(("passes", "mesh"), SEVERAL)
def test_several_train_the_same(passes: str, mesh: str) -> None:
    spec = spec_of("llama3_tiny")
    batch = batch_of(spec)
    model = autoshard.compile(
        spec.build(), mesh, batch=batch, rules="zero3", passes=f"simplify, stack_layers, {passes}",
        optimizer=optax.sgd(0.1, momentum=0.9),
    )  # fmt: skip
    state, losses = model.init(0), []
    for _ in range(STEPS):
        state, metrics = model.step(state, batch)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, plainly("llama3_tiny")[0], rtol=2e-5)


def test_the_optimizers_state_on_the_host_trains_the_same() -> None:
    spec = models.get("gpt2_tiny", num_layers=4, d_model=256)
    batch = random_batch(spec.example_batch(8, 16))
    losses: dict[str, list[float]] = {}
    for offload in ("none", "optimizer"):
        model = autoshard.compile(
            spec.build(), "data=8", batch=batch, rules="zero1", passes="stack_layers",
            optimizer=optax.adam(1e-2), offload=offload,
        )  # fmt: skip
        state, losses[offload] = model.init(0), []
        for _ in range(STEPS):
            state, metrics = model.step(state, batch)
            losses[offload].append(float(metrics["loss"]))
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state)}
        assert ("pinned_host" in kinds) == (offload == "optimizer")
        again = model.from_user_state(model.to_user_state(state))
        _, metrics = model.step(again, batch)
        losses[offload].append(float(metrics["loss"]))
    np.testing.assert_allclose(losses["optimizer"], losses["none"], rtol=2e-5)
