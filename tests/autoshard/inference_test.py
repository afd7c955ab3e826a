"""Prefill and decode under planned layouts: the tokens of one device, a cache that stays put."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import autoshard
import models
from autoshard import BatchError, InferenceShape, ModelError, PassError, PlanError
from autoshard.adapters import adapt
from passes.program import Role
from tests.autoshard.cases import small
from tests.autoshard.hlo import hlo_of, moved_arrays

PROMPT, CAPACITY, NEW = 5, 16, 3
SMALL_LLAMA = {"num_layers": 2, "vocab_size": 64, "max_seq_len": 16}

# Experts take all tokens: which ones they drop depends on what is read together.
DECODERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "gpt2": ("gpt2_tiny", {**SMALL_LLAMA, "d_model": 32}, 4),
    "llama_scanned": ("llama3_tiny", {**SMALL_LLAMA, "scan_layers": True}, 4),
    "llama_single_sequence": ("llama3_tiny", SMALL_LLAMA, 1),
    "mixtral": ("mixtral_tiny", {**SMALL_LLAMA, "capacity_factor": 4.0}, 4),
}


def compile_for(spec: models.ModelSpec, task: str, batch_size: int = 4, mesh: str = "cpu:8", **kw):
    shape = InferenceShape(batch_size, PROMPT, CAPACITY)
    return autoshard.compile(spec.build(), mesh, batch=shape, task=task, **kw)


def sharpened(params: Any) -> Any:
    """Parameters so large that logits depend on all tokens before their position."""
    return jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, params)


def greedy(prefill: Any, decode: Any, tokens: np.ndarray, cache: Any, move: Any) -> np.ndarray:
    """The tokens that `prefill` and `decode`, (arguments, cache) -> (logits, cache), go on with."""
    logits, cache = prefill(tokens, cache)
    cache, found = move(cache), []
    for at in range(PROMPT, PROMPT + NEW):
        found.append(np.asarray(logits).argmax(axis=-1).astype(np.int32))
        logits, cache = decode(found[-1], at, cache)
    return np.stack([*found, np.asarray(logits).argmax(axis=-1)])


@pytest.mark.parametrize("case", DECODERS)
def test_tokens_under_the_searched_plans_are_those_of_one_device(case):
    name, fields, batch_size = DECODERS[case]
    spec = models.get(name, **fields)
    prefill, decode = (compile_for(spec, task, batch_size) for task in ("prefill", "decode"))
    functions = adapt(spec.build())
    call: Any = functions.call
    params = sharpened(jax.device_get(prefill.init_params(0)))
    tokens = np.random.default_rng(0).integers(0, 64, (batch_size, PROMPT)).astype(np.int32)

    one = [jax.jit(lambda *a, m=m: call(m, params, {}, *a)) for m in ("prefill", "decode")]
    empty = spec.cache_spec(batch_size, CAPACITY)
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)
    expected = greedy(one[0], one[1], tokens, empty, lambda cache: cache)
    placed = {c.task: c.place(params) for c in (prefill, decode)}
    found = greedy(
        lambda *arguments: prefill(placed["prefill"], *arguments),
        lambda *arguments: decode(placed["decode"], *arguments),
        tokens,
        prefill.init_cache(),
        lambda cache: jax.device_put(cache, decode.cache_sharding),
    )
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 1
    for compiled in (prefill, decode):
        assert not compiled.plan.unmodelled
        leaves = zip(
            jax.tree.leaves(placed[compiled.task]), jax.tree.leaves(compiled.params_sharding),
            strict=True,
        )  # fmt: skip
        assert all(leaf.sharding == sharding for leaf, sharding in leaves)
        assert any(a.compute != tuple(() for _ in a.compute) for a in caches(compiled))


def caches(compiled: Any) -> list[Any]:
    return [a for a in compiled.plan.arrays if a.leaf.role is Role.CACHE]


@pytest.mark.parametrize(("rules", "sharded"), [("redco", "kv_heads"), ("auto", "both")])
def test_no_collective_moves_the_cache(rules, sharded):
    # Four key heads for eight devices: what they leave of the axis goes over the positions.
    mesh = "data=2,model=4" if rules == "redco" else "data=1,model=8"
    capacity = 24  # unlike all other sizes, and so is half of it
    spec = small("llama", num_layers=1, max_seq_len=capacity)
    shape = InferenceShape(2, PROMPT, capacity)
    decode = autoshard.compile(spec.build(), mesh, batch=shape, task="decode", rules=rules)
    for array in caches(decode):
        degrees = [decode.plan.mesh.refined.shards(parts) for parts in array.param]
        names = dict(zip(array.dims, degrees, strict=True))
        expected = {"batch": 2, "kv_heads": 4} if sharded == "kv_heads" else (
            {"cache_positions": 2, "kv_heads": 4}
        )  # fmt: skip
        assert {name: n for name, n in names.items() if n > 1} == expected
    moved = moved_arrays(hlo_of(decode.lower()))
    assert moved
    assert {one.kind for one in moved} == {"all-reduce"}
    # Sums of the residual stream are the largest; no array has the positions of a device.
    rows = 2 // decode.plan.mesh.shape.size("data")
    assert max(one.size_bytes for one in moved) == rows * 64 * 4
    assert all({capacity, capacity // 2}.isdisjoint(one.shape) for one in moved)


def test_dimensions_of_the_cache_are_named():
    dims = {}
    for family in ("gpt2", "llama"):
        for task in ("prefill", "decode"):
            plan = compile_for(
                small(family), task, mesh="data=8,model=1", rules="data", batch_size=8
            )
            dims[family, task] = {a.dims for a in caches(plan)}
    expected = ("batch", "cache_positions", "heads", "head_dim")
    grouped = ("batch", "cache_positions", "kv_heads", "head_dim")
    assert dims["gpt2", "prefill"] == dims["gpt2", "decode"] == {expected}
    assert dims["llama", "prefill"] == dims["llama", "decode"] == {grouped}
    scanned = compile_for(small("llama", scan_layers=True), "prefill", mesh="data=1,model=8")
    assert {a.dims for a in caches(scanned)} == {("layers", *grouped)}


def test_only_decode_shards_positions():
    spec = small("llama", num_layers=1)
    rules = {
        task: " ".join(r for a in compile_for(spec, task, 1).plan.alternatives for r in a.rules)
        for task in ("prefill", "decode")
    }
    assert "cache_positions=model" in rules["decode"]
    assert "cache_positions" not in rules["prefill"]


def test_decode_is_estimated_as_reading_weights_and_cache_once():
    spec = models.get("llama3_8b", num_layers=4, dtype="bfloat16")
    decode = autoshard.compile(
        spec.build(),
        "v5e:2x4 data=1,model=8",
        batch=InferenceShape(16, 1024, 4096),
        task="decode",
        rules="redco",
        dtype="bfloat16",
    )
    cost = decode.plan.cost
    table = 128256 * 4096 * 2 / 8  # picked from, not read
    cache = 4 * 16 * 4096 * 8 * 128 * 2 * 2 / 8
    assert 0 <= cost.memory.other_bytes - cache < 4096  # tokens, padded to a tile
    # A second cache would be as large as the first.
    assert cost.memory.activations_bytes < 0.05 * cache
    read = cost.memory.parameters_bytes - table + cache
    seconds = read / 819e9
    assert seconds < cost.time.products_s < 1.05 * seconds
    assert cost.time.traffic_s < 0.1 * seconds


def test_parameters_and_cache_are_stored_in_the_compute_dtype():
    decode = compile_for(small("llama"), "decode", dtype="bfloat16")
    stored = jax.tree.leaves((decode.abstract_params, decode.abstract_cache))
    assert {leaf.dtype for leaf in stored} == {jnp.dtype("bfloat16")}
    assert jax.eval_shape(decode.init_cache) == decode._traced.cache


class Remembering(nnx.Module):
    """A model with a variable that is no parameter, and with dropout, which decoding leaves out."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.table = nnx.Embed(16, 8, rngs=rngs)
        self.scale = nnx.BatchStat(jnp.full((1, 1, 8), 3.0))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.dropout(self.table(tokens) * self.scale[...])

    def init_cache(self, batch_size: int, capacity: int) -> jax.Array:
        return jnp.zeros((batch_size, capacity, 8))

    def prefill(self, tokens: jax.Array, cache: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self(tokens)
        return x[:, -1], jax.lax.dynamic_update_slice_in_dim(cache, x, 0, 1)

    def decode(
        self, token: jax.Array, position: jax.Array, cache: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x = self(token[:, None])
        seen = (jnp.arange(cache.shape[1]) < position)[None, :, None]
        total = jnp.where(seen, cache, 0.0).sum(axis=1) + x[:, 0]
        return total, jax.lax.dynamic_update_slice_in_dim(cache, x, position, 1)


def test_a_users_model_with_other_variables_that_is_built_already():
    model = Remembering(nnx.Rngs(0))
    shape = InferenceShape(8, 2, 4)
    decode = autoshard.compile(model, "data=4,model=2", batch=shape, task="decode")
    params = decode.init_params(0)
    cache = jax.device_put(jnp.ones((8, 4, 8)), decode.cache_sharding)
    token = np.arange(8, dtype=np.int32)
    logits, cache = decode(params, token, 2, cache)
    row = 3 * np.asarray(model.table.embedding[...])[:8]
    np.testing.assert_allclose(logits, 2 + row, rtol=1e-6)
    np.testing.assert_allclose(cache[:, 2], row, rtol=1e-6)
    assert cache.sharding == decode.cache_sharding
    assert model.table.embedding[...].shape == (16, 8)  # the user's own arrays are alive


def test_what_a_plan_was_made_for_is_checked(tmp_path):
    spec, shape = small("llama", num_layers=1), InferenceShape(4, PROMPT, CAPACITY)
    decode = compile_for(spec, "decode")
    decode.plan.save(tmp_path / "plan.json")
    again = compile_for(spec, "decode", plan=tmp_path / "plan.json")
    assert again.plan == decode.plan
    assert again.cache_sharding == decode.cache_sharding
    with pytest.raises(PlanError, match="for task 'decode', not 'prefill'"):
        compile_for(spec, "prefill", plan=tmp_path / "plan.json")
    with pytest.raises(PlanError, match="Plan again"):
        compile_for(spec, "decode", 8, plan=decode.plan)
    assert decode.shape == shape


def test_arguments_are_checked():
    decode = compile_for(small("llama", num_layers=1), "decode")
    params, cache, token = decode.init_params(0), decode.init_cache(), np.zeros(4, np.int32)
    with pytest.raises(BatchError, match=r"token is int32\[5\] and decode was planned for .*\[4\]"):
        decode(params, np.zeros(5, np.int32), 0, cache)
    with pytest.raises(BatchError, match=r"takes \(params, token, position, cache\)"):
        decode(params, token, cache)
    with pytest.raises(PlanError, match=r"'0/key' of the cache is laid out as .*cache_sharding"):
        decode(params, token, 0, jax.device_put(cache, jax.devices()[0]))
    with pytest.raises(ModelError, match=r"'embed/embedding' of the parameters is .* layers apart"):
        decode.place(jax.tree.map(lambda x: x[:1], params))
    with pytest.raises(BatchError, match=r"position=16 is outside the cache's 0\.\.15"):
        decode(params, token, CAPACITY, cache)
    logits, following = decode(params, token, 0, cache)
    with pytest.raises(PlanError, match="this cache was given to decode before"):
        decode(params, token, 1, cache)
    assert logits.shape == (4, 64)
    decode(params, token, 1, following)


@pytest.mark.parametrize(
    ("model", "keywords", "error", "message"),
    [
        (models.get("vit_tiny").build(), {}, ModelError, "no method init_cache, prefill, decode"),
        (lambda x: x, {}, ModelError, "needs a Flax model"),
        (small("llama").build(), {"batch": {"tokens": 1}}, ModelError, "batch=autoshard.Inference"),
        (small("llama").build(), {"passes": "stack_layers"}, PassError, "leave passes out"),
        (small("llama").build(), {"loss": len}, ModelError, "no loss, optimizer"),
        (
            small("llama").build(),
            {"batch": InferenceShape(1, 4, 32)},
            ModelError,
            "init_cache refuses .*max_seq_len",
        ),
    ],
)
def test_what_cannot_be_planned_is_explained(model, keywords, error, message):
    with pytest.raises(error, match=message):
        autoshard.compile(
            model, "cpu:8", **{"batch": InferenceShape(4, 4, 8), "task": "decode", **keywords}
        )


def test_what_does_not_fit_says_what_would_help():
    with pytest.raises(PlanError, match=r"a device: the least is .* Use more devices, a smaller"):
        compile_for(small("llama", num_layers=1), "decode", 1, memory_limit_bytes=4096)


class Growing(Remembering):
    def decode(self, token: jax.Array, position: jax.Array, cache: jax.Array) -> Any:
        return cache[:, 0], jnp.concatenate([cache, cache], axis=1)


def test_a_cache_that_changes_its_shape_is_refused():
    with pytest.raises(ModelError, match=r"Growing.decode is given .*and returns"):
        autoshard.compile(
            lambda rngs: Growing(rngs), "cpu:8", batch=InferenceShape(8, 2, 4), task="decode"
        )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 1, 1), "batch_size=0"), ((1, 2.5, 4), "prompt_len=2.5"), ((1, 9, 8), "does not fit")],
)
def test_sizes_are_checked(sizes, message):
    with pytest.raises(ModelError, match=message):
        InferenceShape(*sizes)
