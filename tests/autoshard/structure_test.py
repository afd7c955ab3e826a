"""Products with weights, lookups and attention, read off the factor maps."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from autoshard.structure import Product, ProductKind
from tests.autoshard.analysis_cases import (
    Examined,
    attention,
    examine_function,
    examine_model,
    spec,
)

B, S, D, H, K, F, E = 4, 6, 16, 2, 8, 32, 5


def named(one: Examined, product: Product) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = one.names.of
    return tuple(names[a] for a in product.contracted), tuple(names[a] for a in product.produced)


def test_a_matmul_contracts_and_produces() -> None:
    one = examine_function(lambda w, x: (x @ w).sum(), spec(D, F), spec(B, D))
    (product,) = one.structure.products
    assert product.kind is ProductKind.MATMUL
    assert (product.contracted,) == one.dims("p")[:1]
    assert (product.produced,) == one.dims("p")[1:]
    assert product.shared == ()
    assert product.weight_size == D * F
    assert one.structure.interactions == ()


@pytest.mark.parametrize("order", ["weight first", "weight last"])
def test_the_weight_may_be_either_operand(order: str) -> None:
    def net(w: jax.Array, x: jax.Array) -> jax.Array:
        return (w @ x.T).sum() if order == "weight first" else (x @ w.T).sum()

    one = examine_function(net, spec(F, D), spec(B, D))
    (product,) = one.structure.products
    assert (product.produced, product.contracted) == one.dims("p")


def test_a_computed_weight_is_a_weight() -> None:
    """Cast, scaled or transposed weights depend on parameters alone."""
    one = examine_function(
        lambda w, x: (x.astype(jnp.bfloat16) @ (2 * w.T).astype(jnp.bfloat16)).sum(),
        spec(F, D),
        spec(B, D),
    )
    (product,) = one.structure.products
    assert product.contracted == one.dims("p")[1]


def test_a_product_of_weights_is_no_product() -> None:
    one = examine_function(lambda p, x: (x * (p @ p.T).sum()).sum(), spec(D, F), spec(B))
    assert one.structure.products == ()


def test_a_lookup_contracts_its_rows() -> None:
    one = examine_function(lambda t, i: t[i].sum(), spec(32, D), spec(B, S, dtype=jnp.int32))
    (product,) = one.structure.products
    assert product.kind is ProductKind.LOOKUP
    assert (product.contracted, product.produced) == one.dims("p")


def test_picking_labels_from_logits_is_no_lookup() -> None:
    def loss(w: jax.Array, batch: Any) -> jax.Array:
        return jnp.take_along_axis(batch["x"] @ w, batch["label"][:, None], 1).sum()

    batch = {"x": spec(B, D), "label": spec(B, dtype=jnp.int32)}
    one = examine_function(loss, spec(D, 32), batch)
    assert [p.kind for p in one.structure.products] == [ProductKind.MATMUL]


def test_a_convolution_contracts_channels() -> None:
    def net(w: jax.Array, x: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers).sum()

    one = examine_function(net, spec(3, 3, D, F), spec(B, 8, 8, D))
    (product,) = one.structure.products
    assert product.kind is ProductKind.CONVOLUTION
    assert product.contracted == one.dims("p")[2] == one.dims("b")[3]
    assert product.produced == one.dims("p")[3]


def test_patches_contract_their_window() -> None:
    def net(w: jax.Array, x: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (4, 4), "VALID", dimension_numbers=numbers).sum()

    one = examine_function(net, spec(4, 4, 3, F), spec(B, 8, 8, 3))
    (product,) = one.structure.products
    assert product.contracted == tuple(a for dim in one.dims("p")[:3] for a in dim)
    assert [len(dim) for dim in one.dims("b")] == [1, 2, 2, 1]


def test_attention_has_two_interactions_over_heads() -> None:
    def net(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = (jnp.einsum("bsd,dhk->bshk", x, p[n]) for n in "qkv")
        return jnp.einsum("bshk,hkd->bsd", attention(q, k, v), p["o"]).sum()

    params = {**{n: spec(D, H, K) for n in "qkv"}, "o": spec(H, K, D)}
    one = examine_function(net, params, spec(B, S, D))
    batch, sequence, _ = one.dims("b")
    heads = one.dims("p/q")[1]
    scores, mixed = one.structure.interactions
    assert scores.shared == mixed.shared == batch + heads
    assert scores.contracted == one.dims("p/q")[2]
    assert scores.free == sequence * 2
    assert mixed.contracted == sequence
    assert set(mixed.free) == {*sequence, *one.dims("p/v")[2]}
    assert one.structure.head_atoms == set(heads)
    assert one.structure.group_atoms == frozenset()


def test_repeated_keys_make_a_group_behind_the_heads() -> None:
    def net(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = (jnp.einsum("bsd,dhk->bshk", x, p[n]) for n in "qkv")
        return attention(q, *(jnp.repeat(y, 3, axis=2) for y in (k, v))).sum()

    params = {"q": spec(D, 6, K), "k": spec(D, 2, K), "v": spec(D, 2, K)}
    one = examine_function(net, params, spec(B, S, D))
    kv, group = one.dims("p/q")[1]
    assert one.dims("p/k")[1] == (kv,)
    assert one.structure.head_atoms == {kv}
    assert one.structure.group_atoms == {group}


def test_experts_are_shared_by_weight_and_activation() -> None:
    def net(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.einsum("ecd,edf->ecf", jnp.stack([x] * E), w).sum()

    one = examine_function(net, spec(E, D, F), spec(B, D))
    (product,) = one.structure.products
    assert (product.shared, product.contracted, product.produced) == one.dims("p")


def test_atoms_of_data_and_parameters() -> None:
    one = examine_function(lambda w, x: (x @ w).sum(), spec(D, F), spec(B, D))
    batch, features = one.dims("b")
    assert one.structure.batch_atoms == batch
    assert one.structure.data_atoms == {*batch, *features}
    assert one.structure.parameter_atoms == {a for dim in one.dims("p") for a in dim}


@pytest.mark.parametrize(
    ("model", "layers", "a_layer", "others", "attentions"),
    [
        ("gpt2_tiny", 4, 6, {"lookup": 1, "matmul": 1}, 2),
        ("llama3_tiny", 2, 7, {"lookup": 1, "matmul": 1}, 2),
        ("vit_tiny", 2, 6, {"convolution": 1, "matmul": 1}, 2),
        ("mlp", 2, 1, {"matmul": 1}, 0),
    ],
)
def test_products_of_the_models(
    model: str, layers: int, a_layer: int, others: dict[str, int], attentions: int
) -> None:
    one = examine_model(model)
    kinds = Counter(product.kind.value for product in one.structure.products)
    assert kinds == Counter(others) + Counter({"matmul": layers * a_layer})
    assert len(one.structure.interactions) == layers * attentions


def test_weights_of_a_layer_link_the_names() -> None:
    one = examine_model("gpt2_tiny")
    links = Counter(named(one, product) for product in one.structure.products)
    assert links == {
        (("vocab",), ("embed",)): 1,
        (("embed",), ("heads", "head_dim")): 12,
        (("heads", "head_dim"), ("embed",)): 4,
        (("embed",), ("ffn",)): 4,
        (("ffn",), ("embed",)): 4,
        (("embed",), ("vocab",)): 1,
    }
