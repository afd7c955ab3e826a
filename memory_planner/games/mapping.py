"""`MappingGame`: Copy, NoCopy or Drop for each use, in order of time.

After "Optimizing Memory Mapping Using Deep Reinforcement Learning" (mallocGame), with the rules of
`placement`; a copy starts as late as HBM's free time allows.
"""

import dataclasses

import jax.numpy as jnp
from flax import struct
from jax import Array

from memory_planner.errors import MemoryPlannerError
from memory_planner.games import features, moves, result
from memory_planner.games.game import Observation
from memory_planner.games.placement import DROP, LATEST, NOTHING, Memory, Offer, empty, offer, pick
from memory_planner.padding import PaddedProblem, PaddedShape
from memory_planner.problem import MemoryMapping, MemoryProblem


@struct.dataclass
class MappingState:
    """A state of the mapping game.

    Attributes:
      memory: what has been decided.
      decision: [] int32, number of the next decision.
      offer: what may be done about it.
    """

    memory: Memory
    decision: Array
    offer: Offer


@dataclasses.dataclass(frozen=True)
class MappingGame:
    """A `Game` whose actions are NOCOPY=0, COPY=1 and DROP=2; an illegal one is played as DROP."""

    def action_count(self, shape: PaddedShape) -> int:
        """Three."""
        del shape
        return 3

    def max_moves(self, shape: PaddedShape) -> int:
        """One for each use."""
        return shape.decisions

    def move_count(self, problem: PaddedProblem) -> int:
        """One for each use."""
        return int(problem.decision_count)

    def reset(self, problem: PaddedProblem) -> MappingState:
        """See `Game`."""
        return _offered(problem, empty(problem), jnp.int32(0))

    def step(
        self, problem: PaddedProblem, state: MappingState, action: Array
    ) -> tuple[MappingState, Array, Array]:
        """See `Game`."""
        buffer, use = _current(problem, state.decision)
        is_over = state.decision >= problem.decision_count
        action = jnp.where(pick(state.offer.legal, action), action, DROP)
        action = jnp.where(is_over, NOTHING, action)
        memory, gain_ns = moves.apply(
            problem, state.memory, buffer, use, state.offer, action, LATEST
        )
        decision = jnp.where(is_over, state.decision, state.decision + 1)
        return (
            _offered(problem, memory, decision),
            gain_ns,
            decision >= problem.decision_count,
        )

    def legal(self, problem: PaddedProblem, state: MappingState) -> Array:
        """See `Game`; DROP is always legal."""
        return state.offer.legal | (state.decision >= problem.decision_count)

    def observe(self, problem: PaddedProblem, state: MappingState) -> Observation:
        """See `Game`."""
        buffer, use = _current(problem, state.decision)
        is_over = state.decision >= problem.decision_count
        decided = features.decided_before(problem, buffer, use, is_over)
        return features.observation(
            problem, state.memory, decided, (buffer, use, state.offer.legal & ~is_over)
        )

    def to_mapping(
        self, problem: MemoryProblem, padded: PaddedProblem, state: MappingState
    ) -> MemoryMapping:
        """See `Game`.

        Raises:
          MemoryPlannerError: the episode has not ended: what was born in fast memory may have uses
            to come, before which it would have to be written back.
        """
        if state.decision < padded.decision_count:
            raise MemoryPlannerError(
                f"{int(state.decision)} of {int(padded.decision_count)} uses are decided: play "
                "the episode to its end (DROP is always legal)."
            )
        return result.to_mapping(problem, padded, state.memory)


def _current(problem: PaddedProblem, decision: Array) -> tuple[Array, Array]:
    """(buffer, use) of a decision; the last one's where there is none any more."""
    return pick(problem.decision_buffer, decision), pick(problem.decision_use, decision)


def _offered(problem: PaddedProblem, memory: Memory, decision: Array) -> MappingState:
    buffer, use = _current(problem, decision)
    return MappingState(
        memory=memory,
        decision=decision,
        offer=offer(problem, memory, buffer, use, LATEST),
    )
