"""Moves a second of the memory planner's games, on a problem of 128 buffers, against the bar.

  make bench-games         (or: python -m benchmarks.game_speed [--buffers=128] [--batch=64] ...)

Episodes of random legal moves run in a batch, split over two CPU devices, with the
state's legality mask read before each move, as an agent would. The bar, of
the mapping game: 200,000 moves/s on two cores. A machine that does other things, too, gives those
moves less than its cores, so the moves per second of processor time are printed beside, times the
number of cores, with the load average.
"""

import argparse
import functools
import os
import time

# A device for each core, each with one thread: the batch is split once, and not every kernel.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
)

import jax
import jax.numpy as jnp
import numpy as np

from memory_planner.games.game import Game
from memory_planner.games.mapping import MappingGame
from memory_planner.games.order import EAGERNESS_COUNT, OrderGame
from memory_planner.padding import PaddedProblem, pad
from memory_planner.problem import MemoryProblem
from memory_planner.problems_random import RandomShape, random_problem

BAR = 200_000
CORES = 2


def mapping_episode(game: Game, moves: int, problem: PaddedProblem, draws: jax.Array) -> jax.Array:
    """Gain of an episode whose moves are the legal ones that random numbers [moves] name."""

    def move(state: object, draw: jax.Array) -> tuple[object, jax.Array]:
        legal = jnp.cumsum(game.legal(problem, state).astype(jnp.int32))
        action = jnp.sum(legal <= draw % legal[-1], dtype=jnp.int32)
        state, gain_ns, _ = game.step(problem, state, action)
        return state, gain_ns

    return jnp.sum(jax.lax.scan(move, game.reset(problem), draws[:moves])[1])


def order_episode(game: Game, moves: int, problem: PaddedProblem, draws: jax.Array) -> jax.Array:
    """Gain of an episode that takes the buffers in the order of random numbers [moves]."""
    order = jnp.argsort(draws[:moves]).astype(jnp.int32)

    def move(state: object, choice: tuple[jax.Array, jax.Array]) -> tuple[object, jax.Array]:
        buffer, draw = choice
        action = EAGERNESS_COUNT * buffer + draw % EAGERNESS_COUNT
        action = jnp.where(game.legal(problem, state)[action], action, 0)
        state, gain_ns, _ = game.step(problem, state, action)
        return state, gain_ns

    return jnp.sum(jax.lax.scan(move, game.reset(problem), (order, draws[:moves]))[1])


def measure(
    name: str, problem: MemoryProblem, batch: int, seconds: float
) -> tuple[float, float, float]:
    """(moves/s by the clock, moves/s of processor time times cores, mean gain) of a game."""
    if name == "mapping":
        episode = functools.partial(mapping_episode, MappingGame(), problem.use_count)
        moves = problem.use_count
    else:
        episode = functools.partial(order_episode, OrderGame(), len(problem.buffers))
        moves = len(problem.buffers)
    mesh = jax.make_mesh((CORES,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    play = jax.jit(
        jax.shard_map(
            jax.vmap(episode, in_axes=(None, 0)),
            mesh=mesh,
            in_specs=(spec(), spec("batch")),
            out_specs=spec("batch"),
            check_vma=False,
        )
    )
    padded = jax.tree.map(jnp.asarray, pad(problem))
    draws = jax.random.randint(jax.random.key(0), (batch, moves), 0, 2**30)
    gain_ns = float(play(padded, draws).block_until_ready().mean())
    count, begin, begin_cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        play(padded, draws).block_until_ready()
        count += batch * moves
    wall_s = time.perf_counter() - begin
    cpu_s = time.process_time() - begin_cpu
    return count / wall_s, CORES * count / cpu_s, gain_ns / problem.slow_ns


def main() -> None:
    """Prints one line a game."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--buffers", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    problem = random_problem(np.random.default_rng(0), RandomShape(args.buffers))
    print(
        f"{len(problem.buffers)} buffers, {problem.use_count} uses, {len(problem.operations)} "
        f"operations; batch {args.batch}, {CORES} cores"
    )
    for name in ("mapping", "order"):
        rate, cpu_rate, gain = measure(name, problem, args.batch, args.seconds)
        bar = f", bar {BAR:,}" if name == "mapping" else ""
        print(
            f"{name:8} {rate:10,.0f} moves/s by the clock, {cpu_rate:10,.0f} of processor time on "
            f"{CORES} cores{bar}; load {os.getloadavg()[0]:.1f}; mean gain {gain:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
