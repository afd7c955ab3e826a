"""What networks see: bounded, blind to the order of the buffers, and telling states apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memory_planner.games.features import BUFFER_FEATURES, SUMMARY_SIZE
from memory_planner.games.mapping import MappingGame
from memory_planner.games.order import OrderGame
from memory_planner.padding import PaddedShape, pad, stack
from memory_planner.problems_random import RandomShape, random_problem

SHAPE = PaddedShape(buffers=10, operations=12, uses=3, decisions=20, units=64)
MAPPING, ORDER = MappingGame(), OrderGame()
OBSERVE = {game: jax.jit(jax.vmap(game.observe)) for game in (MAPPING, ORDER)}
RESET = {game: jax.jit(jax.vmap(game.reset)) for game in (MAPPING, ORDER)}
STEP = {game: jax.jit(jax.vmap(game.step)) for game in (MAPPING, ORDER)}
BATCH = 16


def problems() -> list:
    """Sixteen of nine buffers, so that one row is padding."""
    rng = np.random.default_rng(2)
    return [random_problem(rng, RandomShape(9, uses=3)) for _ in range(BATCH)]


@pytest.mark.parametrize("game", [MAPPING, ORDER], ids=["mapping", "order"])
def test_features_are_bounded_and_padding_is_zero(game: MappingGame | OrderGame) -> None:
    padded = stack([pad(p, SHAPE) for p in problems()])
    state = RESET[game](padded)
    rng = np.random.default_rng(3)
    for _ in range(9):
        seen = OBSERVE[game](padded, state)
        assert seen.buffers.shape == (BATCH, 10, BUFFER_FEATURES)
        assert seen.summary.shape == (BATCH, SUMMARY_SIZE)
        assert seen.mask.tolist() == [[True] * 9 + [False]] * BATCH
        assert not seen.buffers[:, 9].any()
        for features in (seen.buffers, seen.summary):
            assert np.isfinite(features).all() and np.abs(features).max() <= 1.0 + 1e-6
        legal = np.asarray(jax.vmap(game.legal)(padded, state))
        actions = [int(rng.choice(np.flatnonzero(row))) for row in legal]
        state, _, _ = STEP[game](padded, state, jnp.asarray(actions, jnp.int32))


def test_no_two_features_are_the_same_and_none_is_constant() -> None:
    padded = stack([pad(p, SHAPE) for p in problems()])
    state = RESET[MAPPING](padded)
    rows = []
    for move in range(8):
        actions = jnp.where(state.offer.legal[:, 0], 0, jnp.where(state.offer.legal[:, 1], 1, 2))
        actions = jnp.where(move % 3 == 2, 2, actions).astype(jnp.int32)
        state, _, _ = STEP[MAPPING](padded, state, actions)
        rows.append(
            np.asarray(OBSERVE[MAPPING](padded, state).buffers[:, :9]).reshape(-1, BUFFER_FEATURES)
        )
    seen = np.concatenate(rows)
    assert (seen.std(axis=0) > 0).all()
    assert len(np.unique(seen, axis=1).T) == BUFFER_FEATURES


def test_permuted_buffers_permute_the_rows_of_the_order_game() -> None:
    original = problems()
    rng = np.random.default_rng(4)
    orders = [rng.permutation(9) for _ in original]
    permuted = [
        dataclasses.replace(p, buffers=tuple(p.buffers[i] for i in order))
        for p, order in zip(original, orders, strict=True)
    ]
    padded, padded_again = (stack([pad(p, SHAPE) for p in ps]) for ps in (original, permuted))
    state, state_again = RESET[ORDER](padded), RESET[ORDER](padded_again)
    for buffer in (2, 7, 4):
        actions = jnp.full(BATCH, 3 * buffer + 1, jnp.int32)
        moved = [3 * int(np.flatnonzero(order == buffer)[0]) + 1 for order in orders]
        state, gain_ns, _ = STEP[ORDER](padded, state, actions)
        state_again, gain_again_ns, _ = STEP[ORDER](
            padded_again, state_again, jnp.asarray(moved, jnp.int32)
        )
        assert gain_ns.tolist() == gain_again_ns.tolist()
    seen, again = OBSERVE[ORDER](padded, state), OBSERVE[ORDER](padded_again, state_again)
    for n, order in enumerate(orders):
        np.testing.assert_allclose(seen.buffers[n][order], again.buffers[n][:9], atol=1e-6)
    np.testing.assert_allclose(seen.summary, again.summary, atol=1e-6)


def test_the_mapping_game_marks_what_is_to_be_decided() -> None:
    padded = stack([pad(p, SHAPE) for p in problems()])
    state = RESET[MAPPING](padded)
    for move in range(3):
        seen = OBSERVE[MAPPING](padded, state)
        buffer = padded.decision_buffer[:, move]
        marks = seen.buffers[:, :, -5]
        assert np.argmax(marks, axis=1).tolist() == buffer.tolist()
        assert marks.sum(axis=1).tolist() == [1.0] * BATCH
        legal = np.stack([seen.buffers[n, buffer[n], -4:-2] for n in range(BATCH)])
        assert np.array_equal(legal, state.offer.legal[:, :2])
        state, _, _ = STEP[MAPPING](padded, state, jnp.full(BATCH, 2, jnp.int32))
