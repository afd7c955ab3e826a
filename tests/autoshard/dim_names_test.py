"""The names that parameters' dimensions get, with no look at the parameters' own names."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from tests.autoshard.analysis_cases import (
    Examined,
    attention,
    examine_flax,
    examine_function,
    examine_model,
    spec,
)

B, S, D, H, N, K, F, E, V = 4, 6, 16, 4, 2, 8, 32, 8, 64


def test_gpt2() -> None:
    one = examine_model("gpt2_tiny")
    layer = {
        "ln_1/scale": ("embed",),
        "ln_1/bias": ("embed",),
        "ln_2/scale": ("embed",),
        "ln_2/bias": ("embed",),
        **{
            f"attn/{name}/{kind}": dims
            for name in ("query", "key", "value")
            for kind, dims in (
                ("kernel", ("embed", "heads", "head_dim")),
                ("bias", ("heads", "head_dim")),
            )
        },
        "attn/out/kernel": ("heads", "head_dim", "embed"),
        "attn/out/bias": ("embed",),
        "mlp/up/kernel": ("embed", "ffn"),
        "mlp/up/bias": ("ffn",),
        "mlp/down/kernel": ("ffn", "embed"),
        "mlp/down/bias": ("embed",),
    }
    expected = {f"h_{i}/{path}": dims for i in range(4) for path, dims in layer.items()}
    expected |= {
        "wte/embedding": ("vocab", "embed"),
        "wpe/embedding": ("embedding.0", "embed"),
        "ln_f/scale": ("embed",),
        "ln_f/bias": ("embed",),
        "tokens": ("batch", "sequence"),
    }
    assert one.labels() == expected
    for name in ("heads", "head_dim", "ffn"):
        dim = one.names.find(name)
        assert dim is not None and len(dim.atoms) == 4 * (2 if name == "head_dim" else 1)
    embed = one.names.find("embed")
    assert embed is not None and (len(embed.atoms), embed.sizes) == (1, (128,))


def test_llama() -> None:
    one = examine_model("llama3_tiny")
    layer = {
        "attn/q_proj/kernel": ("embed", "kv_heads*q_per_kv*head_dim"),
        "attn/k_proj/kernel": ("embed", "kv_heads*head_dim"),
        "attn/v_proj/kernel": ("embed", "kv_heads*head_dim"),
        "attn/o_proj/kernel": ("kv_heads*q_per_kv*head_dim", "embed"),
        "attn_norm/scale": ("embed",),
        "mlp/gate_proj/kernel": ("embed", "ffn"),
        "mlp/up_proj/kernel": ("embed", "ffn"),
        "mlp/down_proj/kernel": ("ffn", "embed"),
        "mlp_norm/scale": ("embed",),
    }
    expected = {f"layers/{i}/{path}": dims for i in range(2) for path, dims in layer.items()}
    expected |= {
        "embed/embedding": ("vocab", "embed"),
        "norm/scale": ("embed",),
        "lm_head/kernel": ("embed", "vocab"),
        "tokens": ("batch", "sequence"),
    }
    assert one.labels() == expected
    # The group is shared by queries and output, the heads by all four projections.
    (kv, group, _), (kv_of_k, _) = (
        one.dims(f"layers/0/attn/{name}_proj/kernel")[1] for name in "qk"
    )
    kv_of_o, group_of_o, _ = one.dims("layers/0/attn/o_proj/kernel")[0]
    assert (kv, group) == (kv_of_o, group_of_o)
    assert kv == kv_of_k


def test_vit() -> None:
    one = examine_model("vit_tiny")
    labels = one.labels()
    assert labels["image"] == ("batch", "height*height.1", "width*width.1", "channels")
    assert labels["patches/kernel"] == ("height.1", "width.1", "channels", "embed")
    assert labels["positions"] == ("1", "height*width", "embed")
    assert labels["block_0/attn/query/kernel"] == ("embed", "heads", "head_dim")
    assert labels["block_1/mlp/down/kernel"] == ("ffn", "embed")
    assert labels["head/kernel"] == ("embed", "classes")
    assert labels["label"] == ("batch",)


def test_resnet() -> None:
    one = examine_model("resnet_tiny")
    labels = one.labels()
    assert labels["image"] == ("batch", "height", "width", "channels")
    assert labels["stem/conv/kernel"][2:] == ("channels", "embed")
    assert labels["stage_0_block_0/conv_0/conv/kernel"][2:] == ("embed", "ffn")
    assert labels["stage_0_block_0/conv_1/conv/kernel"][2:] == ("ffn", "embed")
    assert labels["stage_1_block_0/shortcut/conv/kernel"] == ("1", "1", "embed", "embed")
    assert labels["head/kernel"][1] == "classes"
    # Running statistics belong to the channels that they are of.
    for path in ("stage_0_block_0/conv_0/norm", "stem/norm"):
        assert labels[f"batch_stats/{path}/mean"] == labels[f"{path}/scale"]


def test_mlp_has_no_stream() -> None:
    labels = examine_model("mlp").labels()
    assert labels["x"] == ("batch", "features")
    assert labels["hidden_0/kernel"] == ("features", "hidden")
    assert labels["hidden_1/kernel"] == ("hidden", "hidden")
    assert labels["head/kernel"] == ("hidden", "classes")
    one = examine_model("mlp")
    assert len(set(one.dims("hidden_1/kernel"))) == 2


def test_names_do_not_depend_on_parameter_names() -> None:
    def net(p: Any, x: jax.Array) -> jax.Array:
        return (x @ p["xyzzy"] @ p["heads"]).sum()

    one = examine_function(net, {"xyzzy": spec(D, F), "heads": spec(F, 3)}, spec(B, D))
    assert one.label("p/heads") == ("hidden", "classes")


@pytest.mark.parametrize("how", ["repeat", "group", "jax.nn"])
def test_grouped_queries(how: str) -> None:
    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if how == "jax.nn":
            return jax.nn.dot_product_attention(q, k, v, is_causal=True)
        if how == "repeat":
            return attention(q, *(jnp.repeat(y, H // N, axis=2) for y in (k, v)))
        q = q.reshape(B, S, N, H // N, K)
        weights = jax.nn.softmax(jnp.einsum("bsngk,btnk->bngst", q, k))
        return jnp.einsum("bngst,btnk->bsngk", weights, v).reshape(B, S, H, K)

    def net(p: Any, tokens: jax.Array) -> jax.Array:
        x = p["embed"][tokens]
        q, k, v = (jnp.einsum("bsd,dhk->bshk", x, p[n]) for n in "qkv")
        x = x + jnp.einsum("bshk,hkd->bsd", attend(q, k, v), p["o"])
        return (x @ p["embed"].T).sum()

    params = {
        "embed": spec(V, D),
        "q": spec(D, H, K),
        "k": spec(D, N, K),
        "v": spec(D, N, K),
        "o": spec(H, K, D),
    }
    one = examine_function(net, params, spec(B, S, dtype=jnp.int32))
    assert one.label("p/q") == ("embed", "kv_heads*q_per_kv", "head_dim")
    assert one.label("p/k") == one.label("p/v") == ("embed", "kv_heads", "head_dim")
    assert one.label("p/o") == ("kv_heads*q_per_kv", "head_dim", "embed")
    assert one.gradient.unmodelled == {}


class LinenAttention(nn.Module):
    """Two layers of Flax's own attention, with dropout and a causal mask."""

    @nn.compact
    def __call__(self, tokens: jax.Array, *, deterministic: bool = True) -> jax.Array:
        x = nn.Embed(V, D)(tokens)
        mask = nn.make_causal_mask(tokens)
        for i in range(2):
            attend = nn.MultiHeadDotProductAttention(
                num_heads=H, dropout_rate=0.1, deterministic=deterministic, name=f"attn_{i}"
            )
            x = x + attend(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(D)(nn.gelu(nn.Dense(F, name=f"up_{i}")(x)))
        return nn.Dense(V, name="head")(x)


def test_linen_attention() -> None:
    one = examine_flax(LinenAttention(), {"tokens": spec(D, D, dtype=jnp.int32)})
    for i in (0, 1):
        for name in ("query", "key", "value"):
            assert one.label(f"attn_{i}/{name}/kernel") == ("embed", "heads", "head_dim")
        assert one.label(f"attn_{i}/out/kernel") == ("heads", "head_dim", "embed")
    assert one.dims("attn_0/query/kernel")[1] != one.dims("attn_1/query/kernel")[1]
    assert one.label("head/kernel") == ("embed", "vocab")
    assert one.label("tokens") == ("batch", "sequence")
    assert one.gradient.unmodelled == {}


EXPERTS = {"router": spec(D, E), "up": spec(E, D, F), "down": spec(E, F, D)}


def soft_experts(p: Any, x: jax.Array) -> jax.Array:
    """Every expert sees every token; the router weighs them."""
    gates = jax.nn.softmax(x @ p["router"])
    hidden = jax.nn.relu(jnp.einsum("bsd,edf->besf", x, p["up"]))
    out = jnp.einsum("besf,efd->besd", hidden, p["down"])
    return (x + jnp.einsum("besd,bse->bsd", out, gates)).sum()


def grouped_dispatch(p: Any, x: jax.Array) -> jax.Array:
    """Top-1 with a capacity of 3 tokens for each expert and each example."""
    gates = jax.nn.softmax(jnp.einsum("bsd,de->bse", x, p["router"]))
    gate, index = jax.lax.top_k(gates, 1)
    chosen = jax.nn.one_hot(index[..., 0], E)
    place = (jnp.cumsum(chosen, 1) * chosen).astype(jnp.int32)
    dispatch = jax.nn.one_hot(place, 3) * chosen[..., None]
    tokens = jnp.einsum("bsd,bsec->ebcd", x, dispatch)
    hidden = jax.nn.relu(jnp.einsum("ebcd,edf->ebcf", tokens, p["up"]))
    out = jnp.einsum("ebcf,efd->ebcd", hidden, p["down"])
    return (x + jnp.einsum("ebcd,bsec->bsd", out, dispatch * gate[..., None])).sum()


@pytest.mark.parametrize("layer", [soft_experts, grouped_dispatch])
def test_experts(layer: Any) -> None:
    one = examine_function(layer, EXPERTS, spec(B, S, D))
    assert one.label("p/up") == ("experts", "features", "hidden")
    assert one.label("p/down") == ("experts", "hidden", "features")
    (experts,) = one.dims("p/up")[0]
    up, down = one.structure.products[-2:]
    assert down.shared == (experts,)
    assert down.contracted == one.dims("p/up")[2]
    # Soft routing gives every expert the same tokens: there the first weight brings the experts.
    brought = (experts,) if layer is soft_experts else ()
    assert up.shared == (() if brought else (experts,))
    assert up.produced == (*brought, *down.contracted)
    assert one.dims("b")[0] != one.dims("p/up")[0]
    assert one.gradient.unmodelled == {}
    # A one-hot of iota cuts the router's experts from the experts' weights.
    assert (one.dims("p/router")[1] == (experts,)) == (layer is soft_experts)


def test_grouped_dispatch_keeps_the_batch_in_the_experts() -> None:
    one = examine_function(grouped_dispatch, EXPERTS, spec(B, S, D))
    (batch,) = one.dims("b")[0]
    up = next(p for p in one.structure.products if p.shared)
    inputs = one.analysis.graph.ops[up.op].inputs
    assert any((batch,) in one.analysis.dims[value] for value in inputs)


def test_fused_projection_of_heads() -> None:
    def net(p: Any, x: jax.Array) -> jax.Array:
        qkv = jnp.einsum("bsd,dhck->bshck", x, p["qkv"])
        q, k, v = (qkv[..., i, :] for i in range(3))
        return (x + jnp.einsum("bshk,hkd->bsd", attention(q, k, v), p["o"])).sum()

    one = examine_function(net, {"qkv": spec(D, H, 3, K), "o": spec(H, K, D)}, spec(B, S, D))
    assert one.label("p/qkv") == ("features", "heads", "qkv.2", "head_dim")
    assert one.label("p/o") == ("heads", "head_dim", "features")


def test_what_is_split_is_not_called_classes() -> None:
    def net(p: Any, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(x @ p["both"], 2, -1)
        return ((jax.nn.silu(gate) * value) @ p["down"]).sum()

    one = examine_function(net, {"both": spec(D, 2 * F), "down": spec(F, D)}, spec(B, D))
    assert one.label("p/both") == ("features", "both.1")


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((B,), jnp.int32, ("batch",)),
        ((B, S), jnp.int32, ("batch", "sequence")),
        ((B, D), jnp.float32, ("batch", "features")),
        ((B, S, D), jnp.float32, ("batch", "sequence", "features")),
        ((B, 8, 8, 3), jnp.float32, ("batch", "height", "width", "channels")),
        ((B, 2, 8, 8, 3), jnp.float32, ("batch", "b.1", "b.2", "b.3", "b.4")),
    ],
)
def test_names_of_data(shape: tuple[int, ...], dtype: Any, expected: tuple[str, ...]) -> None:
    one = examine_function(lambda w, x: (x * w).sum(), spec(), spec(*shape, dtype=dtype))
    assert one.label("b") == expected


def test_classes_inside_the_program_have_numbers() -> None:
    one = examine_function(
        lambda w, x: (jnp.broadcast_to(x[:, None], (B, 7, D)) @ w).sum(), spec(D, F), spec(B, D)
    )
    hidden = [name for name in one.names.of.values() if name.startswith("_")]
    assert hidden
    assert all(not dim.name.startswith("_") for dim in one.names.dims)


def test_finding_and_labelling() -> None:
    one: Examined = examine_model("mlp")
    assert one.names.find("nothing") is None
    classes = one.names.find("classes")
    assert classes is not None
    assert one.names.label(((classes.atoms[0],), ())) == ("classes", "1")
    assert classes.sizes == (16,)
