"""`OrderGame`: which buffer the allocator takes next, and how early its copies start.

It stands for the memory-space assignment of the TPU compiler, which goes through the buffers in an
order and gives each the best that it can still get: each of its uses in turn is served without a
copy if that is legal, else with one, else not at all (rules of `placement`). The eagerness says
where a copy starts, of the operations from which time and memory are free until the use:

  EARLIEST  the first.
  LATEST    where its time just suffices, there or not at all.
  DEFAULT   the first that leaves it at most twice its time, as the compiler prefers.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from memory_planner.games import copies, features, moves, occupancy, placement, result
from memory_planner.games.game import Observation
from memory_planner.games.placement import COPY, DROP, NOCOPY, Memory, pick
from memory_planner.padding import PaddedProblem, PaddedShape
from memory_planner.problem import MemoryMapping, MemoryProblem

DEFAULT = 0
EARLIEST = 1
LATEST = 2
EAGERNESS_COUNT = 3


@struct.dataclass
class OrderState:
    """Attributes:
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

    def reset(self, problem: PaddedProblem) -> OrderState:
        """See `Game`."""
        return OrderState(
            memory=placement.empty(problem), placed=jnp.zeros(problem.begin.shape, bool)
        )

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
    rule = functools.partial(_start, eagerness)

    def decide(carry: tuple[Array, Memory, Array]) -> tuple[Array, Memory, Array]:
        use, memory, gain_ns = carry
        offer = placement.offer(problem, memory, buffer, use, rule)
        action = jnp.where(offer.legal[COPY], COPY, DROP)
        action = jnp.where(offer.legal[NOCOPY], NOCOPY, action)
        memory, more_ns = moves.apply(
            problem, memory, buffer, use, offer, action, eagerness == LATEST
        )
        return use + 1, memory, gain_ns + more_ns

    _, memory, gain_ns = lax.while_loop(
        lambda carry: carry[0] < uses, decide, (jnp.int32(0), memory, jnp.int32(0))
    )
    return memory, gain_ns


def _start(
    eagerness: Array, memory: Memory, earliest: Array, time: Array, size: Array, copy_ns: Array
) -> tuple[Array, Array, Array]:
    """A `StartRule`: the first start from which the memory is free, of those that suit."""
    latest = copies.latest_start(memory.free_before, time, copy_ns)
    relaxed = copies.latest_start(memory.free_before, time, 2 * copy_ns)
    from_ = jnp.where(eagerness == LATEST, latest, earliest)
    from_ = jnp.where(eagerness == DEFAULT, jnp.maximum(earliest, relaxed), from_)
    units = 32 * memory.occupied.shape[0]

    def offset(begin: Array) -> Array:
        return occupancy.lowest_run(occupancy.taken(memory.occupied, begin, time + 1), size)

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        has_room = offset(middle) < units
        return jnp.where(has_room, low, middle + 1), jnp.where(has_room, middle, high)

    # The later a stay starts, the more memory is free throughout it: `high` has room if any has.
    begin, _ = lax.while_loop(lambda b: b[0] < b[1], halve, (from_, latest))
    found = offset(begin)
    return begin, found, (found < units) & (latest >= earliest)
