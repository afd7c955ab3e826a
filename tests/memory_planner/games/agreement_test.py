"""The JAX games and plain Python agree to the last bit on 1,000 random problems, move by move."""

import dataclasses
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

GAMES: dict[str, Game[Any]] = {"mapping": MappingGame(), "order": OrderGame()}


@dataclasses.dataclass(frozen=True)
class Group:
    """Random problems of one size.

    Attributes:
      count: how many.
      buffers: of one problem, the fewest and the most.
      shape: that holds them.
    """

    count: int
    buffers: tuple[int, int]
    shape: PaddedShape


SMALL = Group(990, (2, 9), PaddedShape(9, 11, uses=3, decisions=18, units=64))
# Times that take three words of bits, and a number of units that is no power of two.
LARGE = Group(10, (38, 50), PaddedShape(50, 70, uses=3, decisions=100, units=45))
GROUPS = {"small": SMALL, "large": LARGE}


@functools.cache
def problems(group: Group) -> list[MemoryProblem]:
    """From hardly any memory to enough for all."""
    rng = np.random.default_rng(6)
    low, high = group.buffers
    return [
        random_problem(
            rng,
            RandomShape(int(rng.integers(low, high + 1)), 3, residual=0.5, contention=(0.1, 1.0)),
            name=f"random {number}",
        )
        for number in range(group.count)
    ]


@functools.cache
def padded(group: Group) -> PaddedProblem:
    """All of them, stacked."""
    return stack([pad(p, group.shape) for p in problems(group)])


@functools.cache
def played(name: str, group: Group) -> dict[str, Any]:
    """Episodes of random moves, one in ten of which may be illegal: [moves, problems, ...]."""
    game = GAMES[name]
    actions = game.action_count(group.shape)
    # Two moves more than an episode can have.
    moves = game.max_moves(group.shape) + 2

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
                "used_units": memory.used_units,
                "left_ns": memory.free_before[1:] - memory.free_before[:-1],
                "saved_ns": memory.saved_ns,
                "served": memory.stays >= 0,
            }
            return state, kept

        last, kept = jax.lax.scan(move, game.reset(problem), jax.random.split(key, moves))
        return kept, last

    keys = jax.random.split(jax.random.key(7), group.count)
    kept, last = jax.jit(jax.vmap(episode, out_axes=(1, 0)))(padded(group), keys)
    return {**jax.device_get(kept), "last": jax.device_get(last)}


def reference(name: str, problem: MemoryProblem, group: Group) -> ReferenceMapping | ReferenceOrder:
    """The same game in plain Python."""
    units = group.shape.units
    size = unit_bytes(problem, units)
    if name == "mapping":
        return ReferenceMapping(problem, units, size)
    return ReferenceOrder(problem, units, size, group.shape.buffers)


@functools.cache
def compared(name: str, group: Group) -> list[ReferenceMapping | ReferenceOrder]:
    """The reference at the end of each problem, every move compared on the way."""
    out = played(name, group)
    ends: list[ReferenceMapping | ReferenceOrder] = []
    for number, problem in enumerate(problems(group)):
        rules = reference(name, problem, group)
        count = len(problem.operations)
        for move in range(out["action"].shape[0]):
            here = f"{problem.name}, move {move}"
            assert out["legal"][move, number].tolist() == rules.legal(), here
            was_over = rules.is_over()
            gain_ns = rules.step(int(out["action"][move, number]))
            assert out["gain_ns"][move, number] == gain_ns, here
            assert out["done"][move, number] == rules.is_over(), here
            taken = [len(rules.taken(t)) for t in range(count)]
            assert out["used_units"][move, number, :count].tolist() == taken, here
            assert out["left_ns"][move, number, :count].tolist() == rules.left, here
            assert out["saved_ns"][move, number, :count].tolist() == rules.saved, here
            served = {(s.buffer, k) for s in rules.stays for k in s.uses}
            assert set(zip(*np.nonzero(out["served"][move, number]), strict=True)) == served, here
            if was_over:
                assert not out["gain_ns"][move:, number].any(), here
                break
        ends.append(rules)
    return ends


@pytest.mark.parametrize("size", GROUPS)
@pytest.mark.parametrize("name", GAMES)
def test_every_move_agrees_with_plain_python(name: str, size: str) -> None:
    group = GROUPS[size]
    out = played(name, group)
    for number, rules in enumerate(compared(name, group)):
        problem = problems(group)[number]
        one = jax.tree.map(lambda leaf, number=number: leaf[number], (padded(group), out["last"]))
        mapping = GAMES[name].to_mapping(problem, *one)
        assert set(mapping.stays) == rules.mapping(), problem.name
        gained_ns = int(out["gain_ns"][:, number].sum())
        assert problem.slow_ns - validate(problem, mapping) == gained_ns, problem.name


def test_the_random_problems_bring_up_every_rule() -> None:
    """Else the agreement would say little."""
    out = played("mapping", SMALL)
    legal, action = out["legal"], out["action"]
    is_on = np.concatenate([np.ones((1, SMALL.count), bool), ~out["done"][:-1]])
    assert (~legal[..., 0] & is_on).mean() > 0.1 and (~legal[..., 1] & is_on).mean() > 0.1
    assert ((out["gain_ns"] < 0) & is_on).sum() > 50  # stays that were given up
    refused = ~np.take_along_axis(legal, action[..., None], axis=-1)[..., 0]
    assert (refused & is_on).sum() > 200
    stays = [rules.stays for rules in compared("mapping", SMALL)]
    copied = sum(s.is_copied for row in stays for s in row)
    long = sum(len(s.uses) > 1 for row in stays for s in row)
    ends = sum(
        s.end > problems(SMALL)[n].buffers[s.buffer].uses[s.uses[-1]].time + 1
        for n, row in enumerate(stays)
        for s in row
    )
    assert copied > 300 and long > 300 and ends > 30  # the last: for a write-back
