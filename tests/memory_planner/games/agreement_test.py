"""The JAX games and plain Python agree to the last bit on 1,000 random problems, move by move."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memory_planner.games.game import Game
from memory_planner.games.mapping import MappingGame
from memory_planner.games.order import OrderGame
from memory_planner.padding import PaddedProblem, PaddedShape, pad, stack, unit_bytes
from memory_planner.problem import MemoryProblem
from memory_planner.problems_random import RandomShape, random_problem
from memory_planner.validate import validate
from tests.memory_planner.games.reference import ReferenceMapping, ReferenceOrder

PROBLEMS = 1000
SHAPE = PaddedShape(buffers=9, operations=11, uses=3, decisions=18, units=64)
GAMES: dict[str, Game[Any]] = {"mapping": MappingGame(), "order": OrderGame()}


@functools.cache
def problems() -> list[MemoryProblem]:
    """Of two to nine buffers, from hardly any memory to enough for all."""
    rng = np.random.default_rng(6)
    return [
        random_problem(
            rng,
            RandomShape(int(rng.integers(2, 10)), uses=3, residual=0.5, contention=(0.1, 1.0)),
            name=f"random {number}",
        )
        for number in range(PROBLEMS)
    ]


@functools.cache
def padded() -> PaddedProblem:
    """All of them, stacked."""
    return stack([pad(p, SHAPE) for p in problems()])


@functools.cache
def played(name: str) -> dict[str, np.ndarray]:
    """Episodes of random moves, one in ten of which may be illegal: [moves, problems, ...]."""
    game = GAMES[name]
    actions = game.action_count(SHAPE)
    # Two moves more than an episode can have.
    moves = game.max_moves(SHAPE) + 2

    def episode(problem: PaddedProblem, key: jax.Array) -> tuple[dict, Any]:
        def move(state: Any, key: jax.Array) -> tuple[Any, dict]:
            legal = game.legal(problem, state)
            kind, choice = jax.random.split(key)
            # Drops as likely as all else would leave fast memory empty.
            weights = jnp.arange(actions) < 2 if name == "mapping" else jnp.zeros(actions)
            logits = jnp.where(legal | (jax.random.uniform(kind) < 0.1), 2.0 * weights, -1e9)
            action = jax.random.categorical(choice, logits).astype(jnp.int32)
            state, gain_ns, done = game.step(problem, state, action)
            memory = state.memory
            kept = {
                "legal": legal,
                "action": action,
                "gain_ns": gain_ns,
                "done": done,
                "taken": memory.used_units,
                "left_ns": memory.free_before[1:] - memory.free_before[:-1],
                "saved_ns": memory.saved_ns,
                "served": memory.stays >= 0,
            }
            return state, kept

        last, kept = jax.lax.scan(move, game.reset(problem), jax.random.split(key, moves))
        return kept, last

    keys = jax.random.split(jax.random.key(7), PROBLEMS)
    kept, last = jax.jit(jax.vmap(episode, out_axes=(1, 0)))(padded(), keys)
    return {**jax.device_get(kept), "last": jax.device_get(last)}


def reference(name: str, problem: MemoryProblem) -> ReferenceMapping | ReferenceOrder:
    """The same game in plain Python."""
    size = unit_bytes(problem, SHAPE.units)
    if name == "mapping":
        return ReferenceMapping(problem, SHAPE.units, size)
    return ReferenceOrder(problem, SHAPE.units, size, SHAPE.buffers)


@functools.cache
def compared(name: str) -> list[ReferenceMapping | ReferenceOrder]:
    """The reference at the end of each problem, every move compared on the way."""
    out = played(name)
    ends: list[ReferenceMapping | ReferenceOrder] = []
    for number, problem in enumerate(problems()):
        rules = reference(name, problem)
        count = len(problem.operations)
        for move in range(out["action"].shape[0]):
            here = f"{problem.name}, move {move}"
            assert out["legal"][move, number].tolist() == rules.legal(), here
            gain_ns = rules.step(int(out["action"][move, number]))
            assert out["gain_ns"][move, number] == gain_ns, here
            assert out["done"][move, number] == rules.is_over(), here
            taken = [len(rules.taken(t)) for t in range(count)]
            assert out["taken"][move, number, :count].tolist() == taken, here
            assert out["left_ns"][move, number, :count].tolist() == rules.left, here
            assert out["saved_ns"][move, number, :count].tolist() == rules.saved, here
            served = {(s.buffer, k) for s in rules.stays for k in s.uses}
            assert set(zip(*np.nonzero(out["served"][move, number]), strict=True)) == served, here
        ends.append(rules)
    return ends


@pytest.mark.parametrize("name", GAMES)
def test_every_move_agrees_with_plain_python(name: str) -> None:
    out = played(name)
    for number, rules in enumerate(compared(name)):
        problem = problems()[number]
        one = jax.tree.map(lambda leaf, number=number: leaf[number], (padded(), out["last"]))
        mapping = GAMES[name].to_mapping(problem, *one)
        assert set(mapping.stays) == rules.mapping(), problem.name
        gained_ns = int(out["gain_ns"][:, number].sum())
        assert problem.slow_ns - validate(problem, mapping) == gained_ns, problem.name


def test_the_random_problems_bring_up_every_rule() -> None:
    """Else the agreement would say little."""
    out = played("mapping")
    legal, action = out["legal"], out["action"]
    is_on = np.concatenate([np.ones((1, PROBLEMS), bool), ~out["done"][:-1]])
    assert (~legal[..., 0] & is_on).mean() > 0.1 and (~legal[..., 1] & is_on).mean() > 0.1
    assert ((out["gain_ns"] < 0) & is_on).sum() > 50  # stays that were given up
    refused = ~np.take_along_axis(legal, action[..., None], axis=-1)[..., 0]
    assert (refused & is_on).sum() > 200
    stays = [rules.stays for rules in compared("mapping")]
    copied = sum(s.is_copied for row in stays for s in row)
    long = sum(len(s.uses) > 1 for row in stays for s in row)
    ends = sum(
        s.end > problems()[n].buffers[s.buffer].uses[s.uses[-1]].time + 1
        for n, row in enumerate(stays)
        for s in row
    )
    assert copied > 300 and long > 300 and ends > 30  # the last: for a write-back
