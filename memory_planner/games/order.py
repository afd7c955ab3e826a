"""`OrderGame`: which buffer the allocator takes next, and how early its copies start.

It stands for the memory-space assignment of the TPU compiler, which goes through the buffers in an
order and gives each the best that it can still get: each of its uses in turn is served without a
copy if that is legal, else with one, else not at all. Rules and eagerness are those of `placement`;
DEFAULT is what the compiler prefers by itself.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from memory_planner.games import features, moves, result
from memory_planner.games.game import Observation
from memory_planner.games.placement import COPY, DROP, NOCOPY, Memory, empty, offer, pick
from memory_planner.padding import PaddedProblem, PaddedShape
from memory_planner.problem import MemoryMapping, MemoryProblem

# DEFAULT, EARLIEST, LATEST.
EAGERNESS_COUNT = 3


@struct.dataclass
class OrderState:
    """A state of the order game.

    Attributes:
      memory: what has been decided.
      placed: [N] bool, the buffers that have been chosen.
    """

    memory: Memory
    placed: Array


@dataclasses.dataclass(frozen=True)
class OrderGame:
    """A `Game` whose actions are 3 * buffer + eagerness; each buffer with uses is chosen once.

    An illegal action changes nothing and earns nothing.
    """

    def action_count(self, shape: PaddedShape) -> int:
        """Three for each buffer."""
        return EAGERNESS_COUNT * shape.buffers

    def max_moves(self, shape: PaddedShape) -> int:
        """One for each buffer."""
        return shape.buffers

    def move_count(self, problem: PaddedProblem) -> int:
        """One for each buffer with uses."""
        return int(np.sum(problem.is_buffer))

    def reset(self, problem: PaddedProblem) -> OrderState:
        """See `Game`."""
        return OrderState(memory=empty(problem), placed=jnp.zeros(problem.begin.shape, bool))

    def step(
        self, problem: PaddedProblem, state: OrderState, action: Array
    ) -> tuple[OrderState, Array, Array]:
        """See `Game`."""
        buffer, eagerness = action // EAGERNESS_COUNT, action % EAGERNESS_COUNT
        is_legal = pick(problem.is_buffer, buffer) & ~pick(state.placed, buffer)
        uses = jnp.where(is_legal, pick(problem.use_count, buffer), 0)
        memory, gain_ns = _place(problem, state.memory, buffer, eagerness, uses)
        here = jnp.arange(state.placed.shape[0], dtype=jnp.int32) == buffer
        placed = state.placed | (here & is_legal)
        return (
            OrderState(memory=memory, placed=placed),
            gain_ns,
            jnp.all(placed | ~problem.is_buffer),
        )

    def legal(self, problem: PaddedProblem, state: OrderState) -> Array:
        """See `Game`."""
        is_free = problem.is_buffer & ~state.placed
        return jnp.repeat(is_free | ~jnp.any(is_free), EAGERNESS_COUNT)

    def observe(self, problem: PaddedProblem, state: OrderState) -> Observation:
        """See `Game`."""
        decided = state.placed[:, None] & (problem.use_time < problem.slow_ns.shape[0])
        return features.observation(problem, state.memory, decided, None)

    def to_mapping(
        self, problem: MemoryProblem, padded: PaddedProblem, state: OrderState
    ) -> MemoryMapping:
        """See `Game`."""
        return result.to_mapping(problem, padded, state.memory)


def _place(
    problem: PaddedProblem, memory: Memory, buffer: Array, eagerness: Array, uses: Array
) -> tuple[Memory, Array]:
    """Decides the first `uses` uses of a buffer; the gain comes with the memory."""

    def decide(carry: tuple[Array, Memory, Array]) -> tuple[Array, Memory, Array]:
        use, memory, gain_ns = carry
        offered = offer(problem, memory, buffer, use, eagerness)
        action = jnp.where(offered.legal[COPY], COPY, DROP)
        action = jnp.where(offered.legal[NOCOPY], NOCOPY, action)
        memory, more_ns = moves.apply(problem, memory, buffer, use, offered, action, eagerness)
        return use + 1, memory, gain_ns + more_ns

    _, memory, gain_ns = lax.while_loop(
        lambda carry: carry[0] < uses, decide, (jnp.int32(0), memory, jnp.int32(0))
    )
    return memory, gain_ns
