"""`Game`: what agents, search and baselines know of a game.

All functions are pure and act on one problem; `jax.vmap` them for a batch, of problems
(`padding.stack`) or of states of one problem. What a game's own functions need not know they do not
take: no names, no bytes.

    state = game.reset(problem)
    while not done:
        action = choose(game.observe(problem, state), game.legal(problem, state))
        state, reward_ns, done = game.step(problem, state, action)
    mapping = game.to_mapping(memory_problem, problem, state)

The rewards of an episode add up to what the step gains over everything lying in HBM:
`problem.slow_ns - duration_ns(problem, mapping)`, in nanoseconds.
"""

from typing import Protocol, TypeVar

import chex
from flax import struct

from memory_planner.padding import PaddedProblem, PaddedShape
from memory_planner.problem import MemoryMapping, MemoryProblem

State = TypeVar("State")


@struct.dataclass
class Observation:
    """What a network sees: features near [-1, 1], whatever the program's size.

    Attributes:
      buffers: [N, F] float32 of each buffer; rows of padding are zero. In the order game, permuting
        the buffers permutes the rows; in the mapping game one row is marked as the one to decide.
      mask: [N] bool: not padding.
      summary: [G] float32 of the whole state.
    """

    buffers: chex.Array
    mask: chex.Array
    summary: chex.Array


class Game(Protocol[State]):
    """One way to fill fast memory move by move."""

    def action_count(self, shape: PaddedShape) -> int:
        """A: actions are 0 .. A-1."""

    def max_moves(self, shape: PaddedShape) -> int:
        """Moves after which any episode has ended."""

    def move_count(self, problem: PaddedProblem) -> int:
        """Legal moves of an episode of one problem: every episode of it has as many."""

    def reset(self, problem: PaddedProblem) -> State:
        """The state before the first move: everything in HBM."""

    def step(
        self, problem: PaddedProblem, state: State, action: chex.Array
    ) -> tuple[State, chex.Array, chex.Array]:
        """Plays an action (int32 []): the next state, reward_ns (int32 []) and done (bool []).

        Once an episode has ended every action is legal, does nothing and earns nothing. What an
        illegal action does before is said by each game; it never leaves an impossible state.
        """

    def legal(self, problem: PaddedProblem, state: State) -> chex.Array:
        """[A] bool; at least one is True."""

    def observe(self, problem: PaddedProblem, state: State) -> Observation:
        """The state as a network sees it."""

    def to_mapping(
        self, problem: MemoryProblem, padded: PaddedProblem, state: State
    ) -> MemoryMapping:
        """The mapping that the last state of an episode (one, not a batch) stands for."""
