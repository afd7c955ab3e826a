"""Which dimensions are one class, and which must never be."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from autoshard.factors import FactorRole
from autoshard.named_dims import Source, analyse
from tests.autoshard.analysis_cases import (
    Examined,
    attention,
    examine_function,
    examine_model,
    spec,
)

TINY = ("gpt2_tiny", "llama3_tiny", "mlp", "vit_tiny", "resnet_tiny")
# Batch, sequence and width are equal: only the data flow tells them apart.
B = S = D = 16
H, K, F, V = 2, 8, 32, 64


def layer_spec(*stack: int) -> dict[str, Any]:
    """One transformer layer's parameters, or a stack of layers'."""
    return {
        **{name: spec(*stack, D, H, K) for name in "qkv"},
        "o": spec(*stack, H, K, D),
        "up": spec(*stack, D, F),
        "down": spec(*stack, F, D),
    }


def block(p: Any, x: jax.Array) -> jax.Array:
    q, k, v = (jnp.einsum("bsd,dhk->bshk", x, p[name]) for name in "qkv")
    x = x + jnp.einsum("bshk,hkd->bsd", attention(q, k, v), p["o"])
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"]


def unrolled(p: Any, tokens: jax.Array) -> jax.Array:
    x = p["embed"][tokens]
    for layer in p["layers"]:
        x = block(layer, x)
    return jax.nn.log_softmax(x @ p["embed"].T).mean()


def scanned(p: Any, tokens: jax.Array) -> jax.Array:
    x = p["embed"][tokens]
    x, _ = lax.scan(lambda x, layer: (block(layer, x), None), x, p["layers"])
    return jax.nn.log_softmax(x @ p["embed"].T).mean()


TOKENS = spec(B, S, dtype=jnp.int32)


@pytest.fixture(scope="module")
def language_model() -> Examined:
    params = {"embed": spec(V, D), "layers": [layer_spec(), layer_spec()]}
    return examine_function(unrolled, params, TOKENS)


@pytest.fixture(scope="module")
def scanned_model() -> Examined:
    return examine_function(scanned, {"embed": spec(V, D), "layers": layer_spec(2)}, TOKENS)


def atoms(one: Examined, name: str) -> set[int]:
    dim = one.names.find(name)
    assert dim is not None, f"{name} is not among {[d.name for d in one.names.dims]}"
    return set(dim.atoms)


def test_equal_sizes_do_not_merge(language_model: Examined) -> None:
    """Batch, sequence and embed are all 16 and stay three classes, in the gradient too."""
    for analysis in (language_model.analysis, language_model.gradient):
        batch, sequence = language_model.dims("b", analysis)
        embed = language_model.dims("p/embed", analysis)[1]
        assert len({batch, sequence, embed}) == 3


def test_head_dim_is_not_embed(language_model: Examined) -> None:
    embed, heads, head_dim = language_model.dims("p/layers/0/q")
    assert len({embed, heads, head_dim}) == 3
    assert not atoms(language_model, "head_dim") & atoms(language_model, "embed")


def test_classes_inside_a_layer_stay_there(language_model: Examined) -> None:
    """A causal mask that both layers share does not tie their heads."""
    for path, dim in (("up", 1), ("q", 1), ("q", 2), ("v", 2)):
        first, second = (language_model.dims(f"p/layers/{i}/{path}")[dim] for i in (0, 1))
        assert first != second
    streams = {language_model.dims(f"p/layers/{i}/{w}")[0] for i in (0, 1) for w in ("q", "up")}
    assert streams == {language_model.dims("p/embed")[1]}


def test_layers_stay_apart_in_the_gradient(language_model: Examined) -> None:
    first, second = (language_model.dims(f"p/layers/{i}/up", language_model.gradient) for i in "01")
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_a_mask_depends_on_nothing(language_model: Examined) -> None:
    analysis = language_model.analysis
    made = [op.outputs[0] for op in analysis.graph.ops if op.primitive in ("iota", "ge")]
    assert made
    assert {analysis.sources[value] for value in made} == {Source.NOTHING}


def test_sources_join(language_model: Examined) -> None:
    analysis = language_model.analysis
    graph = analysis.graph
    assert analysis.sources[graph.outputs[0]] == Source.PARAMETER | Source.BATCH
    assert analysis.sources[graph.inputs[0]] == Source.PARAMETER
    assert analysis.sources[graph.inputs[-1]] == Source.BATCH


def test_attention_scores_are_the_conflicts(language_model: Examined) -> None:
    assert language_model.conflict_shapes() == {(B, H, S, S)}
    batch, sequence = language_model.dims("b")
    for value in language_model.analysis.conflicts:
        first, heads, queries, scores = language_model.analysis.dims[value]
        assert first == batch and queries == scores == sequence
        assert heads in {language_model.dims(f"p/layers/{i}/q")[1] for i in (0, 1)}


def test_a_square_weight_on_the_residual_stream_is_a_conflict() -> None:
    one = examine_function(lambda w, x: (x + x @ w).sum(), spec(D, D), spec(B, D))
    assert one.dims("p")[0] == one.dims("p")[1]
    assert one.analysis.conflicts == (one.analysis.graph.inputs[0],)


def test_a_square_weight_without_residual_is_none() -> None:
    one = examine_function(lambda w, x: jnp.tanh(x @ w).sum(), spec(D, D), spec(B, D))
    assert one.dims("p")[0] != one.dims("p")[1]
    assert one.analysis.conflicts == ()


def test_a_scanned_stack_has_the_classes_of_a_layer(scanned_model: Examined) -> None:
    q, up = scanned_model.dims("p/layers/q"), scanned_model.dims("p/layers/up")
    assert q[1] == up[1] == scanned_model.dims("p/embed")[1]
    assert q[2] == scanned_model.dims("p/layers/o")[1]
    assert up[2] == scanned_model.dims("p/layers/down")[1]
    assert scanned_model.conflict_shapes() == {(B, H, S, S)}
    assert scanned_model.gradient.unmodelled == {}


def test_a_scanned_stack_has_the_names_of_the_unrolled_one(
    language_model: Examined, scanned_model: Examined
) -> None:
    for name in layer_spec():
        whole = scanned_model.label(f"p/layers/{name}")
        assert whole == ("layers", *language_model.label(f"p/layers/0/{name}"))
    assert scanned_model.label("p/embed") == language_model.label("p/embed")


def test_gradients_of_a_scanned_stack_share_its_classes(scanned_model: Examined) -> None:
    gradient = scanned_model.gradient
    for path in ("p/embed", "p/layers/q", "p/layers/down"):
        assert [len(d) for d in scanned_model.dims(path, gradient)] == [
            len(d) for d in scanned_model.dims(path)
        ]


@pytest.mark.parametrize("name", TINY)
def test_every_primitive_of_the_models_is_modelled(name: str) -> None:
    one = examine_model(name)
    assert one.analysis.unmodelled == {}
    assert one.gradient.unmodelled == {}


@pytest.mark.parametrize("name", TINY)
def test_dimensions_multiply_to_sizes(name: str) -> None:
    analysis = examine_model(name).gradient
    for value, dims in zip(analysis.graph.values, analysis.dims, strict=True):
        for size, dim in zip(value.shape, dims, strict=True):
            product = 1
            for atom in dim:
                product *= analysis.sizes[atom]
            assert product == size


@pytest.mark.parametrize("name", TINY)
def test_factors_stand_for_atoms_of_their_size(name: str) -> None:
    analysis = examine_model(name).gradient
    for index, rule in enumerate(analysis.rules):
        for factor, bound in zip(rule.factors, analysis.factor_dims(index), strict=True):
            product = 1
            for atom in bound:
                product *= analysis.sizes[atom]
            assert not bound or product == factor.size


@pytest.mark.parametrize("name", TINY)
def test_gradients_have_the_classes_of_their_parameters(name: str) -> None:
    """The embedding's scatter starts from zeros; the tie makes its rows the vocabulary."""
    one = examine_model(name)
    analysis = one.gradient
    outputs = analysis.graph.outputs[1:]
    positions = one.program.inputs
    parameters = [i for i, leaf in enumerate(positions) if leaf.role.value == "parameter"]
    for output, position in zip(outputs, parameters, strict=True):
        assert analysis.dims[output] == analysis.leaf_dims(position)


def test_an_unknown_primitive_is_listed_and_relates_nothing() -> None:
    def solve(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.linalg.cholesky(w @ w.T) @ x

    one = examine_function(solve, spec(8, 4), spec(8, 3))
    assert one.analysis.unmodelled == {"cholesky": 1}
    (index,) = [i for i, rule in enumerate(one.analysis.rules) if not rule.modelled]
    op, rule = one.analysis.graph.ops[index], one.analysis.rules[index]
    assert {factor.role for factor in rule.factors} == {FactorRole.BLOCKED}
    before, after = one.analysis.dims[op.inputs[0]], one.analysis.dims[op.outputs[0]]
    assert not {a for d in before for a in d} & {a for d in after for a in d}


def test_unknown_primitives_are_counted() -> None:
    def twice(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.linalg.cholesky(w) + jnp.linalg.cholesky(w + x)

    assert examine_function(twice, spec(4, 4), spec(4, 4)).analysis.unmodelled == {"cholesky": 2}


def test_majors_stand_before_their_minors() -> None:
    """Of a flat [heads * head_dim] only the heads can be sharded alone."""

    def project(w: jax.Array, x: jax.Array) -> jax.Array:
        y = (x @ w).reshape(B, S, H, K)
        return jnp.einsum("bshk,bthk->bhst", y, y).sum()

    one = examine_function(project, spec(D, H * K), spec(B, S, D))
    heads, head_dim = one.dims("p")[1]
    assert (one.analysis.sizes[heads], one.analysis.sizes[head_dim]) == (H, K)
    assert one.analysis.majors[head_dim] == {heads}
    assert one.analysis.majors[heads] == frozenset()


def test_a_reshape_without_common_refinement_relates_the_front_only() -> None:
    one = examine_function(lambda w, x: (w.reshape(8, 12) + x).sum(), spec(12, 8), spec(8, 12))
    (major, *rest), columns = one.dims("p")
    assert one.analysis.sizes[major] == 4
    batch = one.dims("b")
    assert batch[0][0] == major
    assert not {*rest, *columns} & {a for d in batch for a in d[1 if d == batch[0] else 0 :]}


def test_a_shifted_loss_makes_a_class_of_its_own() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return ((x[:, :-1] @ w - x[:, 1:]) ** 2).sum()

    one = examine_function(loss, spec(D, D), spec(B, 8, D))
    sequence = one.dims("b")[1]
    shifted = [
        dims[1]
        for value, dims in zip(one.analysis.graph.values, one.analysis.dims, strict=True)
        if value.shape == (B, 7, D)
    ]
    assert shifted and sequence not in shifted


def test_operands_of_size_one_do_not_join() -> None:
    def scale(w: jax.Array, x: jax.Array) -> jax.Array:
        return x * w

    one = examine_function(scale, spec(1, D), spec(B, D))
    assert one.dims("p") == ((), one.dims("b")[1])


def test_dropout_masks_do_not_tie_layers() -> None:
    """One mask, used in two layers, is made from a key: it is cut out."""

    def net(p: Any, batch: Any) -> jax.Array:
        keep = jax.random.bernoulli(jax.random.key(0), 0.9, (B, F))
        hidden = jnp.where(keep, batch @ p["v"], 0.0)
        return jnp.where(keep, batch @ p["w"], 0.0).sum() + hidden.sum()

    one = examine_function(net, {"v": spec(D, F), "w": spec(D, F)}, spec(B, D))
    assert one.dims("p/v")[1] != one.dims("p/w")[1]
    assert one.dims("p/v")[0] == one.dims("p/w")[0]


def _h3k(p: Any, x: jax.Array) -> Any:
    qkv = jnp.einsum("bsd,dhck->bshck", x, p["qkv"])
    return tuple(qkv[..., i, :] for i in range(3))


def _3hk(p: Any, x: jax.Array) -> Any:
    qkv = (x @ p["qkv"]).reshape(B, S, 3, H, K)
    return tuple(qkv[:, :, i] for i in range(3))


def _flat(p: Any, x: jax.Array) -> Any:
    return tuple(y.reshape(B, S, H, K) for y in jnp.split(x @ p["qkv"], 3, -1))


@pytest.mark.parametrize(
    ("split", "shape", "sizes"),
    [
        (_h3k, (D, H, 3, K), [[D], [H], [3], [K]]),
        (_3hk, (D, 3 * H * K), [[D], [3, H, K]]),
        (_flat, (D, 3 * H * K), [[D], [3 * H * K]]),
    ],
)
def test_fused_projections(
    split: Callable[..., Any], shape: tuple[int, ...], sizes: list[list[int]]
) -> None:
    """Only [heads, 3, head_dim] has the heads in front; a flat split hides them."""

    def net(p: Any, x: jax.Array) -> jax.Array:
        return (x + attention(*split(p, x)).reshape(B, S, H * K) @ p["o"]).sum()

    one = examine_function(net, {"qkv": spec(*shape), "o": spec(H * K, D)}, spec(B, S, D))
    assert [[one.analysis.sizes[a] for a in dim] for dim in one.dims("p/qkv")] == sizes
    heads = one.dims("p/o")[0][0]
    carried = [a for dim in one.dims("p/qkv") for a in dim]
    assert (heads in carried) == (split is not _flat)
    if split is _3hk:
        assert one.analysis.majors[heads] == {one.dims("p/qkv")[1][0]}


def test_analysis_of_the_same_program_is_the_same() -> None:
    one = examine_model("mlp")
    again = analyse(one.program)
    assert again.dims == one.analysis.dims
    assert again.rules == one.analysis.rules
