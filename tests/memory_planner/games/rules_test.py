"""The rules of the games, one by one, on problems small enough to follow by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from memory_planner.errors import MemoryPlannerError
from memory_planner.games.game import Game
from memory_planner.games.mapping import MappingGame
from memory_planner.games.order import OrderGame
from memory_planner.games.placement import COPY, DEFAULT, DROP, EARLIEST, LATEST, NOCOPY
from memory_planner.padding import PaddedShape, pad
from memory_planner.problem import MemoryProblem, Stay
from memory_planner.validate import validate
from tests.memory_planner.small_problems import buffer, operation, problem

# One unit is one byte.
SHAPE = PaddedShape(buffers=3, operations=8, uses=3, decisions=5, units=8)
MAPPING, ORDER = MappingGame(), OrderGame()
# Compiled once: all problems here have one shape.
RESET: dict[Game[Any], Any] = {game: jax.jit(game.reset) for game in (MAPPING, ORDER)}
STEP: dict[Game[Any], Any] = {game: jax.jit(game.step) for game in (MAPPING, ORDER)}


def play(
    game: Game[Any], small: MemoryProblem, *actions: int
) -> tuple[list[list[bool]], list[int], tuple[Stay, ...]]:
    """(legality before each action, gains, the stays in the end), which are validated."""
    padded = pad(small, SHAPE)
    state, legal, gains = RESET[game](padded), [], []
    done = jnp.bool_(False)
    for action in actions:
        legal.append(game.legal(padded, state).tolist())
        state, gain_ns, done = STEP[game](padded, state, jnp.int32(action))
        gains.append(int(gain_ns))
    assert done and game.legal(padded, state).all()
    mapping = game.to_mapping(small, padded, state)
    assert validate(small, mapping) == small.slow_ns - sum(gains)
    return legal, gains, mapping.stays


def mapped(
    small: MemoryProblem, *actions: int
) -> tuple[list[list[bool]], list[int], tuple[Stay, ...]]:
    """An episode of the mapping game."""
    return play(MAPPING, small, *actions)


def test_a_birth_takes_the_lowest_free_place() -> None:
    small = problem(buffer("a", 0, 2), buffer("b", 1, 3), buffer("c", 2, 4))
    legal, gains, stays = mapped(small, NOCOPY, NOCOPY, NOCOPY)
    assert [s.offset_bytes for s in stays] == [0, 4]
    assert legal[2] == [False, True, True]  # a and b fill memory in operation 2, not in 3
    assert gains == [25, 25, 0]


def test_a_stay_goes_on_only_at_its_place() -> None:
    small = problem(buffer("a", 0, 1, 4), buffer("b", 2, 3, size=8))
    legal, gains, stays = mapped(small, NOCOPY, NOCOPY, NOCOPY)
    # NOCOPY of the last use is illegal, since b fills memory: it is played as DROP.
    assert legal == [[True, False, True], [True, False, True], [False, False, True]]
    # The write-back of a needs 30 ns of operation 1, in which a is still there.
    assert gains == [25, 25, 0]
    assert stays[0] == Stay(0, 0, 2, 0, False, (0,))


def test_a_copy_starts_as_late_as_time_allows() -> None:
    small = problem(buffer("a", 0, 4, starts=True, copy_ns=50))
    legal, gains, stays = mapped(small, COPY)
    assert legal == [[False, True, True]] and gains == [20]
    assert stays == (Stay(0, 2, 5, 0, True, (0,)),)


def test_copies_take_the_time_of_one_another() -> None:
    a, b = (buffer(name, 0, 2, starts=True, copy_ns=45) for name in "ab")
    legal, gains, _ = mapped(problem(a, b), COPY, COPY)
    assert legal[1] == [False, False, True] and gains == [20, 0]


def test_a_result_of_the_program_is_copied_after_its_definition() -> None:
    legal, _, _ = mapped(problem(buffer("a", 1, 2)), DROP)
    assert legal == [[True, False, True]]
    legal, _, stays = mapped(problem(buffer("a", 1, 3)), COPY)
    assert legal == [[True, True, True]] and stays == (Stay(0, 2, 4, 0, True, (0,)),)


def test_leaving_fast_memory_writes_back_and_keeps_the_place_until_then() -> None:
    legal, gains, stays = mapped(problem(buffer("a", 0, 1, 4, copy_ns=60)), NOCOPY, DROP)
    assert gains == [25, 0]
    assert stays == (Stay(0, 0, 3, 0, False, (0,)),)  # written in operations 1 and 2
    # Its copy back would need 60 ns in operation 3 alone.
    assert legal[1] == [True, False, True]


def test_a_copy_back_follows_the_write_back() -> None:
    small = problem(buffer("a", 0, 1, 5, copy_ns=60))
    legal, gains, stays = mapped(small, NOCOPY, COPY)
    assert legal[1] == [True, True, True] and gains == [25, 20]
    assert stays == (Stay(0, 0, 3, 0, False, (0,)), Stay(0, 3, 6, 0, True, (1,)))


def test_what_cannot_be_written_back_is_given_up() -> None:
    """Drop-backup: every use that the stay served, and the birth, are taken back."""
    small = problem(buffer("a", 0, 1, 2, 3, copy_ns=81))
    legal, gains, stays = mapped(small, NOCOPY, NOCOPY, DROP)
    assert legal[2] == [True, False, True]
    assert gains == [25, 20, -45] and stays == ()


def test_given_up_memory_is_free_again() -> None:
    small = problem(buffer("a", 0, 1, 2, size=8, copy_ns=500), buffer("b", 0, 3, size=8))
    legal, gains, stays = mapped(small, NOCOPY, DROP, NOCOPY)
    assert legal[2] == [True, True, True]
    assert gains == [25, -25, 25] and stays == (Stay(1, 0, 4, 0, False, (0,)),)


def test_a_result_is_written_back_with_its_last_use() -> None:
    small = problem(buffer("a", 0, 1, ends=True, copy_ns=60))
    _, gains, stays = mapped(small, NOCOPY)
    assert gains == [25] and stays == (Stay(0, 0, 3, 0, False, (0,)),)
    legal, _, _ = mapped(problem(buffer("a", 0, 1, ends=True, copy_ns=201)), DROP)
    assert legal == [[False, False, True]]  # the five operations after it have 200 ns


def test_reserved_memory_is_never_taken() -> None:
    operations = (operation(), operation(reserved=5), operation())
    legal, _, _ = mapped(problem(buffer("a", 0, 2), operations=operations), DROP)
    assert legal == [[False, False, True]]  # the copy in operation 1 needs four of three bytes
    operations = (operation(), operation(reserved=4), operation())
    legal, _, stays = mapped(problem(buffer("a", 0, 2), operations=operations), NOCOPY)
    assert legal == [[True, True, True]] and stays[0].offset_bytes == 0


def test_a_floor_ends_the_gain() -> None:
    operations = (operation(), operation(slow_ns=100, floor_ns=85))
    small = problem(buffer("a", 0, 1), buffer("b", 0, 1), operations=operations)
    _, gains, _ = mapped(small, NOCOPY, NOCOPY)
    assert gains == [5 + 15, 5]


def test_an_unfinished_mapping_is_refused() -> None:
    small = problem(buffer("a", 0, 1, 3))
    padded = pad(small, SHAPE)
    state, _, done = STEP[MAPPING](padded, RESET[MAPPING](padded), jnp.int32(NOCOPY))
    assert not done
    with pytest.raises(MemoryPlannerError, match="1 of 2 uses are decided"):
        MAPPING.to_mapping(small, padded, state)


def test_after_the_end_nothing_changes() -> None:
    _, gains, stays = mapped(problem(buffer("a", 0, 2)), NOCOPY, COPY, NOCOPY, DROP)
    assert gains == [25, 0, 0, 0] and stays == (Stay(0, 0, 3, 0, False, (0,)),)
    _, gains, _ = play(ORDER, problem(buffer("a", 0, 2)), 0, 0, 1, 5)
    assert gains == [25, 0, 0, 0]


@pytest.mark.parametrize(("eagerness", "begin"), [(DEFAULT, 2), (EARLIEST, 0), (LATEST, 4)])
def test_eagerness_moves_the_start_of_a_copy(eagerness: int, begin: int) -> None:
    """60 ns before operation 6: two operations suffice; three leave it 120."""
    small = problem(
        buffer("a", 0, 6, starts=True, copy_ns=60), operations=(operation(free_ns=30),) * 7
    )
    _, gains, stays = play(ORDER, small, eagerness)
    assert gains == [20] and stays == (Stay(0, begin, 7, 0, True, (0,)),)


@pytest.mark.parametrize(
    ("eagerness", "stays"),
    [
        (DEFAULT, (Stay(0, 3, 7, 0, True, (0,)),)),
        (EARLIEST, (Stay(0, 3, 7, 0, True, (0,)),)),
        (LATEST, (Stay(0, 4, 7, 0, True, (0,)),)),
    ],
)
def test_a_copy_waits_for_memory(eagerness: int, stays: tuple[Stay, ...]) -> None:
    """Another buffer fills memory until operation 2."""
    small = problem(
        buffer("a", 0, 6, starts=True, copy_ns=60),
        buffer("b", 0, 2, size=8),
        operations=(operation(free_ns=30),) * 7,
    )
    _, gains, placed = play(ORDER, small, 3, eagerness)
    assert gains == [25, 20] and placed[:1] == stays


def test_the_order_decides_who_gets_the_memory() -> None:
    small = problem(buffer("a", 0, 1, 2, size=8), buffer("b", 0, 2, size=8, benefit_ns=50))
    _, gains, _ = play(ORDER, small, 0, 3)
    assert gains == [45, 0]
    legal, gains, _ = play(ORDER, small, 3, 0)
    assert gains == [70, 0]
    assert legal == [[True] * 6 + [False] * 3, [True] * 3 + [False] * 6]


def test_a_chosen_buffer_cannot_be_chosen_again() -> None:
    _, gains, _ = play(ORDER, problem(buffer("a", 0, 2), buffer("b", 1, 2)), 0, 1, 8, 3)
    assert gains == [25, 0, 0, 25]
