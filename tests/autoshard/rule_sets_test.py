"""Rule sets: known answers, combinations, and errors that name the way out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import autoshard
import models
from autoshard import planning, rule_sets
from autoshard.layouts import Layout, lay_out
from autoshard.mesh_shape import MeshShape
from autoshard.rule_sets.base import Subject
from autoshard.trace import trace_function
from passes.program import Role
from tests.autoshard import cases


def subject_of(function: Any, *arguments: Any) -> Subject:
    roles = (Role.PARAMETER,) * (len(arguments) - 1) + (Role.BATCH,)
    return planning.examine(trace_function(function, arguments, roles)[0])


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, "float32")


def laid_out(subject: Subject, mesh: str, rules: Any) -> dict[str, Any]:
    layout = lay_out(subject, MeshShape.parse(mesh), rule_sets.parse(rules))
    return {a.leaf.path: a for a in layout.arrays}


def computes(subject: Subject, mesh: str, rules: Any = "redco") -> dict[str, Any]:
    return {path: array.compute for path, array in laid_out(subject, mesh, rules).items()}


COLUMN, ROW, WHOLE = ((), ("model",)), (("model",), ()), ((), ())


def test_consecutive_products_alternate_whatever_their_names() -> None:
    def chain(params: Any, x: jax.Array) -> jax.Array:
        for name in ("z", "m", "a", "q"):  # neither alphabetical nor reversed
            x = jax.nn.relu(x @ params[name])
        return x

    params = {name: f32(8, 8) for name in "zmaq"}
    found = computes(subject_of(chain, params, f32(4, 8)), "model=4")
    assert found["0/z"] == found["0/a"] == COLUMN
    assert found["0/m"] == found["0/q"] == ROW


def test_a_residual_stream_without_attention_is_kept_whole() -> None:
    def mixer(params: Any, x: jax.Array) -> jax.Array:
        for up, down in params:
            x = x + jax.nn.relu(x @ up) @ down
        return x

    params = [(f32(8, 32), f32(32, 8))] * 3
    found = computes(subject_of(mixer, params, f32(4, 8)), "model=4")
    assert [found[f"0/{i}/0"] for i in range(3)] == [COLUMN] * 3
    assert [found[f"0/{i}/1"] for i in range(3)] == [ROW] * 3


def test_dense_general_attention_is_split_by_heads_not_within_them() -> None:
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return x + nn.MultiHeadDotProductAttention(num_heads=4)(x)

    # head_dim (16) divides by 8 and heads (4) do not: the faulty choice would be to split head_dim.
    made = autoshard.compile(
        Attention(), "data=1,model=8", rules="redco", batch=f32(8, 6, 64),
        loss=lambda out, batch: (out**2).mean(),
    )  # fmt: skip
    specs = {
        a.leaf.path.split("/", 1)[1]: a.compute for a in made.plan.arrays if "/" in a.leaf.path
    }
    parts = made.plan.mesh.parts[1]
    assert made.plan.mesh.part_sizes[1] == (4, 2)
    for name in ("query", "key", "value"):
        assert specs[f"{name}/kernel"] == ((), (parts[0],), ())
        assert specs[f"{name}/bias"] == ((parts[0],), ())
    assert specs["out/kernel"] == ((parts[0],), (), ())
    assert any(
        "heads dimension 4 does not divide by mesh axis model=8" in n for n in made.plan.notes
    )


def test_grouped_queries_take_what_key_value_heads_leave() -> None:
    spec = cases.small("llama", num_layers=1)  # 8 heads, 4 key-value heads
    plan = cases.compile_case(spec, "data=1,model=8", "redco").plan
    specs = {a.leaf.path: a.compute for a in plan.arrays}
    major, minor = plan.mesh.parts[1]
    assert plan.mesh.part_sizes[1] == (4, 2)
    assert specs["layers/0/attn/q_proj/kernel"] == ((), (major, minor))
    assert specs["layers/0/attn/o_proj/kernel"] == ((major, minor), ())
    assert specs["layers/0/attn/k_proj/kernel"] == ((), (major,))
    assert specs["layers/0/attn/v_proj/kernel"] == ((), (major,))


def mixture(params: Any, x: jax.Array) -> jax.Array:
    """A dense mixture: every expert sees every token, weighted by its gate."""
    gates = jax.nn.softmax(x @ params["router"])
    inner = jax.nn.relu(jnp.einsum("bsd,edf->bsef", x, params["up"]))
    outer = jnp.einsum("bsef,efd->bsed", inner, params["down"])
    return x + jnp.einsum("bsed,bse->bsd", outer, gates)


def test_expert_weights_are_not_left_replicated() -> None:
    params = {"router": f32(8, 4), "up": f32(4, 8, 16), "down": f32(4, 16, 8)}
    found = computes(subject_of(mixture, params, f32(4, 6, 8)), "model=4")
    for name in ("up", "down"):
        assert any("model" in dim for dim in found[f"0/{name}"]), found


def test_what_does_not_divide_is_noted_with_the_remedy_and_strict_raises() -> None:
    spec = cases.small("gpt2", num_layers=1, vocab_size=50)
    plan = cases.compile_case(spec, "data=2,model=4", "redco").plan
    message = "vocab dimension 50 does not divide by mesh axis model=4"
    assert any(message in n and "pad to 52 (pad_vocab)" in n for n in plan.notes)
    with pytest.raises(autoshard.RuleError, match=message):
        autoshard.compile(
            spec.build(), "data=2,model=4", batch=spec.example_batch(8), rules="redco", strict=True
        )
    padded = cases.small("gpt2", num_layers=1, vocab_size=50, pad_vocab_to=4)
    assert not cases.compile_case(padded, "data=2,model=4", "redco").plan.notes


def test_pairs_shard_named_dimensions_or_their_storage() -> None:
    spec = cases.small("gpt2", num_layers=1)
    rules = [("embed", "data"), ("ffn", "model")]
    plan = cases.compile_case(spec, "data=2,model=4", rules).plan
    arrays = {a.leaf.path: a for a in plan.arrays}
    up = arrays["h_0/mlp/up/kernel"]
    assert (up.compute, up.param) == (((), ("model",)), (("data",), ("model",)))
    assert arrays["h_0/attn/query/kernel"].param == (("data",), (), ())
    assert arrays["tokens"].compute == (("data",), ())


def test_patterns_decide_the_parameters_that_they_match() -> None:
    spec = cases.small("gpt2", num_layers=1)
    rules = [
        "zero1",
        rule_sets.patterns((r"mlp/up/kernel$", (None, "model")), (r"wte", ("model",))),
    ]
    plan = cases.compile_case(spec, "data=2,model=4", rules).plan
    arrays = {a.leaf.path: a for a in plan.arrays}
    assert arrays["h_0/mlp/up/kernel"].compute == ((), ("model",))
    assert arrays["wte/embedding"].compute == (("model",), ())
    assert arrays["h_0/mlp/down/kernel"].compute == WHOLE
    assert arrays["h_0/mlp/down/kernel"].opt == (("data",), ())


class Annotated(nn.Module):
    """A perceptron with logical names, as linen users write them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        up = nn.with_logical_partitioning(init, ("embed", "mlp"))
        down = nn.with_partitioning(init, ("model", None))
        x = jax.nn.relu(nn.Dense(32, kernel_init=up, name="up")(x))
        return nn.Dense(16, kernel_init=down, name="down")(x)


class AnnotatedNnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        names = nnx.with_partitioning(init, ("embed", "mlp"))
        self.up = nnx.Linear(16, 32, kernel_init=names, rngs=rngs)
        self.down = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.relu(self.up(x)))


BATCH = {"x": f32(8, 16), "label": jax.ShapeDtypeStruct((8,), "int32")}


def plan_of(model: Any, rules: Any, mesh: str = "data=2,model=4") -> dict[str, Any]:
    compiled = autoshard.compile(model, mesh, batch=BATCH, rules=rules, optimizer=optax.sgd(0.1))
    state = compiled.init(0)
    _, metrics = compiled.step(state, cases.random_batch(compiled.traced.batch))
    assert np.isfinite(float(metrics["loss"]))
    return {a.leaf.path: a for a in compiled.plan.arrays}


def test_linen_metadata_with_usual_names_and_mesh_axes() -> None:
    arrays = plan_of(Annotated(), "logical")
    assert arrays["up/kernel"].compute == COLUMN
    assert arrays["down/kernel"].compute == ROW
    assert arrays["up/kernel"].rule == "logical"
    assert "metadata (embed, mlp)" in arrays["up/kernel"].why


def test_axis_rules_of_the_user_and_of_flax() -> None:
    arrays = plan_of(Annotated(), [rule_sets.logical(("embed", "data"), ("mlp", None))])
    assert arrays["up/kernel"].compute == WHOLE
    assert arrays["up/kernel"].param == (("data",), ())
    with nn.logical_axis_rules((("embed", "model"), ("mlp", None))):
        arrays = plan_of(Annotated(), "logical")
    assert arrays["up/kernel"].compute == ROW
    arrays = plan_of(Annotated(), ["logical", ("mlp", "data")])
    assert arrays["up/kernel"].param == ((), ("data",))


def test_nnx_metadata() -> None:
    arrays = plan_of(AnnotatedNnx, "logical")
    assert arrays["up/kernel"].compute == COLUMN
    assert arrays["down/kernel"].compute == WHOLE


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("redko", "unknown rule set 'redko'; did you mean redco"),
        (["auto", "zero1"], "chooses the ZeRO stage itself"),
        ([], "no rule set given"),
        ([3], "3 is not a rule"),
        ([("embed", "pipe")], "names mesh axis 'pipe', and the mesh has data, model"),
        ([("flux", "model")], "no dimension of GPT2 is called 'flux': its named dimensions are"),
        ("logical", "no parameter of GPT2 has any"),
        (rule_sets.redco("tp"), "names mesh axis 'tp', and the mesh has data, model"),
        (rule_sets.patterns(("kernel", ("pod",))), "names mesh axis 'pod'"),
        (rule_sets.patterns(("no_such", ("model",))), "matches no parameter"),
        (rule_sets.patterns(("query/bias", ("model", None, None))), "gives 3 entries"),
        (rule_sets.patterns(("query/bias", ("model", "model"))), "shards two dimensions"),
        (rule_sets.patterns(("query/bias", ("data", "model"))), None),
    ],
)
def test_rules_that_cannot_be_applied(rules: Any, message: str | None) -> None:
    spec = cases.small("gpt2", num_layers=1)
    compile_it = lambda: autoshard.compile(  # noqa: E731
        spec.build(), "data=2,model=4", batch=spec.example_batch(8), rules=rules
    )
    if message is None:
        compile_it()
        return
    with pytest.raises(autoshard.RuleError, match=message):
        compile_it()


def test_user_rules_that_do_not_divide_raise_with_the_padded_size() -> None:
    spec = cases.small("gpt2", num_layers=1, vocab_size=50)
    for rules in (
        [("vocab", "model")],
        rule_sets.patterns(("wte", ("model",))),
    ):
        with pytest.raises(autoshard.RuleError, match=r"does not divide by mesh axis model=4.*52"):
            cases.compile_case(spec, "data=2,model=4", rules)
    with pytest.raises(autoshard.RuleError, match="every axis of the mesh"):
        cases.compile_case(spec, "data=8", "redco")
    with pytest.raises(autoshard.RuleError, match="there is no ZeRO stage 4"):
        rule_sets.zero(4)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (4, "batch dimension 4 of tokens is smaller than the 8 shards.*data=8.*use a batch of 8"),
        (12, "batch dimension 12 of tokens does not divide by the 8 shards.*use a batch of 16"),
    ],
)
def test_batches_that_do_not_divide(batch: int, message: str) -> None:
    spec = cases.small("gpt2", num_layers=1)
    with pytest.raises(autoshard.BatchError, match=message):
        cases.compile_case(spec, "data=8", "data", batch_size=batch)


def test_axes_are_used_for_what_they_are_called_or_by_position() -> None:
    spec = cases.small("gpt2", num_layers=1)
    for mesh, tensor in (
        ("tp=2,dp=4", "tp"),
        ("a=4,b=2", "b"),
        ("data=4,x=2", "x"),
        ("fsdp=2,replica=2,mp=2", "mp"),
    ):
        plan = cases.compile_case(spec, mesh, "redco").plan
        assert plan.tensor_parts == (tensor,), mesh
        assert set(plan.data_parts) == set(plan.mesh.shape.names) - {tensor}


def test_every_registered_model_is_laid_out_by_every_rule_set() -> None:
    tiny = [n for n in models.names() if n.endswith("tiny") or n == "mlp"]
    for name in tiny:
        spec = models.get(name)
        for rules in ("data", "redco", "zero3+redco"):
            plan = cases.compile_case(spec, "data=2,model=4", rules).plan
            assert not plan.unmodelled, (name, plan.unmodelled)


def test_layouts_are_values() -> None:
    subject = subject_of(lambda w, x: x @ w, f32(8, 8), f32(8, 8))
    first, second = (
        lay_out(subject, MeshShape.parse("data=8"), rule_sets.parse("zero3")) for _ in range(2)
    )
    assert isinstance(first, Layout)
    assert first == second
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.notes = ()  # type: ignore[misc]
