"""Attention spread over a mesh axis is the attention that was written."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from passes import ir
from passes.errors import PassError
from passes.pass_pipeline import Checks, run_passes
from passes.program import Program
from passes.sequence import Sequence
from tests.passes import programs
from tests.passes.attention import writings
from tests.passes.attention.writings import MASKS, WRITINGS, S

METHODS = ("ring", "bidirectional", "ulysses", "heads")


def spread(program: Program, method: Any = "ring", seq: int = 4, **settings: Any) -> Program:
    """The program, its attention spread over `seq` devices, checked by the pipeline."""
    one = Sequence(method=method, **settings)
    after, _ = run_passes(writings.placed(program, seq=seq), [one])
    return after


def check(before: Program, after: Program) -> None:
    """Loss to 1e-5 and gradients to 1e-4 of the greatest one."""
    loss, gradients = programs.loss_and_gradients(before)
    found, others = programs.loss_and_gradients(after)
    assert found == pytest.approx(loss, rel=1e-5)
    for path, gradient in gradients.items():
        atol = 1e-4 * max(float(np.max(np.abs(gradient))), 1e-3)
        np.testing.assert_allclose(others[path], gradient, rtol=0, atol=atol, err_msg=path)


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_on_a_ring(mask: str) -> None:
    before = writings.program(MASKS[mask])
    after = spread(before, "ring", seq=8)
    assert after.notes[0].startswith("attention at writings.py:")
    assert "became ring" in after.notes[0]
    contiguous = ("none", "window", "near", "packed")
    assert ("zig-zag" in after.notes[0]) == (mask not in contiguous)
    check(before, after)


@pytest.mark.parametrize(("mask", "seq"), [("packed", 8), ("dense", 4), ("segments", 3)])
def test_masks_on_rings_both_ways(mask: str, seq: int) -> None:
    length = 4 * seq if seq < 8 else S
    given, masks = writings.parameters(length=length), writings.batch(length)
    before = writings.program(MASKS[mask], given, masks)
    after = spread(before, "bidirectional", seq)
    assert "became bidirectional" in after.notes[0]
    check(before, after)


@pytest.mark.parametrize(
    ("mask", "method"),
    [
        ("window", "ulysses"),
        ("padding", "heads"),
        ("dense", "ulysses"),
        ("alibi", "heads"),
        ("segments", "ulysses"),
        ("constant", "heads"),
    ],
)
def test_masks_with_heads_cut(mask: str, method: str) -> None:
    before = writings.program(MASKS[mask])
    after = spread(before, method, block=4)
    assert f"became {method}" in after.notes[0]
    check(before, after)


@pytest.mark.parametrize("writing", WRITINGS)
def test_every_way_of_writing(writing: str) -> None:
    function, heads = WRITINGS[writing]
    before = writings.program(function, writings.parameters(heads))
    on_ring = writing in ("keys_first", "mapped", "library_lengths", "one_key_head")
    after = spread(before, "ring" if on_ring else "auto", seq=2)
    assert len(after.notes) == 1 and "became" in after.notes[0]
    check(before, after)


@pytest.mark.parametrize("method", METHODS[2:])
@pytest.mark.parametrize(("writing", "heads"), [(writings.grouped, 2), (writings.one_key_head, 1)])
def test_heads_that_are_shared(method: str, writing: Any, heads: int) -> None:
    before = writings.program(writing, writings.parameters(heads))
    check(before, spread(before, method, seq=2))


def test_tiles_within_chunks() -> None:
    before = writings.program(MASKS["window"])
    check(before, spread(before, "ring", seq=2, block=2, balance=False))


@pytest.mark.parametrize("method", ["ring", "heads"])
def test_cross_attention(method: str) -> None:
    given = writings.parameters(keys=8)
    before = writings.program(MASKS["none"], given)
    check(before, spread(before, method))


def test_half_precision_keeps_its_types() -> None:
    def written(q: Any, k: Any, v: Any, batch: Any) -> Any:
        q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
        scores = jnp.einsum("bshd,bthd->bhst", q, k, preferred_element_type=jnp.float32)
        scores = jnp.where(writings.causal(S, S), scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(v.dtype)
        return jnp.einsum("bhst,bthd->bshd", weights, v)

    before = writings.program(written)
    after = spread(before, "ring", seq=2)
    one, other = (programs.loss_and_gradients(p) for p in (before, after))
    assert other[0] == pytest.approx(one[0], rel=2e-3)
    for path, gradient in one[1].items():
        scale = max(float(np.max(np.abs(gradient))), 1e-3)
        np.testing.assert_allclose(other[1][path], gradient, rtol=0, atol=0.03 * scale)


@pytest.mark.parametrize(
    ("model", "settings", "method"),
    [
        ("llama3_tiny", {"num_layers": 2, "scan_layers": True, "remat": "full"}, "auto"),
        ("gpt2_tiny", {"num_layers": 1, "remat": "full", "dropout_rate": 0.0}, "heads"),
        ("t5_tiny", {"num_layers": 1}, "auto"),
    ],
)
def test_models_with_loops_and_checkpoints(model: str, settings: Any, method: str) -> None:
    before = programs.of_spec(model, 2, 16, **settings)
    after = spread(before, method, seq=2)
    assert all("became" in note for note in after.notes)
    check(before, after)


def arrays_of(program: Program) -> set[tuple[int, ...]]:
    jaxpr, _ = ir.closed(program.jaxpr)
    return {
        ir.spec(x).shape for e in ir.equations(jaxpr) for x in e.outvars if hasattr(x.aval, "shape")
    }


@pytest.mark.parametrize("mask", ["causal", "segments", "window", "packed", "alibi"])
def test_no_array_has_all_queries_and_all_keys(mask: str) -> None:
    given, masks = writings.parameters(length=64), writings.batch(64)
    given["bias"] = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32)
    before = writings.program(MASKS[mask], given, masks)
    assert any(shape.count(64) >= 2 for shape in arrays_of(before))
    after = spread(before, block=8)
    assert not any(shape.count(64) >= 2 for shape in arrays_of(after))


def test_a_mask_from_outside_a_loop_is_made_inside() -> None:
    def written(q: Any, k: Any, v: Any, batch: Any) -> Any:
        mask = writings.segments(S, S, batch)

        @jax.checkpoint
        def layer(x: Any, scale: Any) -> Any:
            return writings.einsum(lambda *_: mask)(x * scale, k, v, batch), None

        return jax.lax.scan(layer, q, jnp.array([1.0, 0.5]))[0]

    before = writings.program(written)
    after = spread(before, seq=2)
    assert not any(shape.count(S) >= 2 for shape in arrays_of(after))
    check(before, after)


def compiled_text(method: str, mask: str) -> str:
    """The compiled forward and backward pass, batch and positions cut over a mesh."""
    given = writings.parameters(length=32)
    before = writings.placed(
        writings.program(MASKS[mask], given, writings.batch(32)), data=2, seq=4
    )
    after = Sequence(method=method).apply(before)  # type: ignore[arg-type]
    assert after.placement is not None
    mesh = after.placement.mesh

    def sharding(leaf: Any) -> NamedSharding:
        cut = leaf.shape[:2] == (writings.B, 32)
        return NamedSharding(mesh, PartitionSpec("data", "seq") if cut else PartitionSpec())

    shardings = [sharding(leaf) for leaf in after.inputs]
    specs = [ir.spec(x) for x in after.jaxpr.jaxpr.invars]
    floats = [i for i, x in enumerate(specs) if jnp.issubdtype(x.dtype, jnp.floating)]
    function = jax.value_and_grad(lambda *x: ir.as_function(after.jaxpr)(*x)[0], argnums=floats)
    return str(jax.jit(function, in_shardings=shardings).lower(*specs).compile().as_text())


def counted(text: str) -> dict[str, int]:
    kinds = "all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= .*? ({kinds})(?:-start)?\(", text)
    return {kind: found.count(kind) for kind in set(found)}


def test_a_ring_only_permutes() -> None:
    assert set(counted(compiled_text("ring", "none"))) == {"collective-permute"}


def test_an_exchange_is_all_to_all() -> None:
    # Forward: query, key, value, result. Backward: the cotangent, and three gradients.
    found = counted(compiled_text("ulysses", "none"))
    assert set(found) == {"all-to-all"} and found["all-to-all"] >= 4 + 4


def test_attention_with_dropout_is_left_alone_and_reported() -> None:
    def written(q: Any, k: Any, v: Any, batch: Any) -> Any:
        weights = jax.nn.softmax(jnp.einsum("bshd,bthd->bhst", q, k))
        keep = jax.random.bernoulli(jax.random.key(0), 0.9, weights.shape)
        return jnp.einsum("bhst,bthd->bshd", jnp.where(keep, weights / 0.9, 0), v)

    before = writings.program(written)
    after = spread(before)
    assert after.jaxpr is before.jaxpr
    assert re.match(r"attention at sequence_test.py:\d+ .*left alone.*dropout", after.notes[0])


def test_weights_that_are_normalised_late_are_reported() -> None:
    def written(q: Any, k: Any, v: Any, batch: Any) -> Any:
        weights = jnp.exp(jnp.einsum("bshd,bthd->bhst", q, k))
        total = jnp.sum(weights, -1)
        return jnp.einsum("bhst,bthd->bshd", weights, v) / jnp.swapaxes(total, 1, 2)[..., None]

    assert "use jax.nn.softmax" in spread(writings.program(written)).notes[0]


def test_an_odd_step_between_scores_and_softmax_is_reported() -> None:
    def written(q: Any, k: Any, v: Any, batch: Any) -> Any:
        scores = jnp.einsum("bshd,bthd->bhst", q, k)
        return jnp.einsum("bhst,bthd->bshd", jax.nn.softmax(jnp.cumsum(scores, -1)), v)

    notes = spread(writings.program(written)).notes
    assert notes == ("no attention was spread",) or "left alone" in notes[0]


def test_a_program_without_attention_stays() -> None:
    def written(q: Any, k: Any, v: Any, batch: Any) -> Any:
        return jax.nn.softmax(q) * k @ jnp.ones((writings.D, writings.D))

    before = writings.program(written)
    after = spread(before)
    assert after.jaxpr is before.jaxpr and after.notes == ("no attention was spread",)


def test_one_device_has_nothing_to_do() -> None:
    after = spread(writings.program(MASKS["none"]), seq=1)
    assert "nothing to do" in after.notes[0]


def test_parts_of_an_axis_are_one_axis() -> None:
    before = writings.program(MASKS["causal"])
    placed = writings.placed(before, **{"data": 2, "seq.0": 2, "seq.1": 2})
    after = Sequence(method="heads").apply(placed)
    assert "over 4 devices" in after.notes[0]
    check(before, after)


def test_the_pipeline_compares_it_with_what_it_was() -> None:
    before = writings.placed(writings.program(MASKS["none"]), seq=2)
    _, reports = run_passes(before, [Sequence(axis="seq")], Checks(compare=True))
    assert reports[0].name == "sequence" and reports[0].settings == ""


class TestRefusals:
    def test_no_mesh(self) -> None:
        with pytest.raises(PassError, match="needs a mesh"):
            Sequence().apply(writings.program(MASKS["none"]))

    def test_no_such_axis(self) -> None:
        placed = writings.placed(writings.program(MASKS["none"]), seq=4)
        with pytest.raises(PassError, match=r"no axis 'model'.* are seq: .*'data=2,model=4'"):
            Sequence(axis="model").apply(placed)

    def test_a_length_that_does_not_divide(self) -> None:
        before = writings.program(MASKS["none"], writings.parameters(length=18), writings.batch(18))
        message = r"sequence_test|writings.*18 does not divide over the 4 .*pad it to 20.* 3 dev"
        with pytest.raises(PassError, match=message):
            spread(before)

    def test_keys_that_do_not_divide_are_left_alone(self) -> None:
        before = writings.program(MASKS["none"], writings.parameters(keys=6))
        assert "16 queries and 6 keys do not both divide" in spread(before).notes[0]

    def test_heads_that_do_not_divide(self) -> None:
        before = writings.program(MASKS["none"])
        with pytest.raises(PassError, match=r"'ulysses' cuts heads over 8 .*use 'ring'"):
            spread(before, "ulysses", seq=8)
