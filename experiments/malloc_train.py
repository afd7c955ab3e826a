"""Teaches a player of the order game on random problems, and writes its network to a file.

  python -m experiments.malloc_train --minutes=10 --out=runs/order_player

Killed or stopped, it goes on where it was when it is started again with the same settings. The
network, OUT/network.npz, is what `memory_planner.agents.stored_network.load_network` reads.

Exit status: 0 when finished, or stopped by SIGTERM after a checkpoint; 2 for a setting that cannot
work, said in one paragraph.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import ClassVar

import jax
from absl import app, flags

from experiments.flag_fields import ConfigError, FlagFields, define_flags, from_flags, option
from experiments.interrupts import stop_on_signals
from experiments.quiet import quieted
from memory_planner.agents.alphazero import AlphaZero, SearchSettings
from memory_planner.agents.learner import Learner, LearningSettings
from memory_planner.agents.network import NetworkConfig
from memory_planner.agents.random_batches import RandomBatches
from memory_planner.agents.stored_network import StoredNetwork, save_network
from memory_planner.agents.train import Limits, Report, TrainingSettings, train
from memory_planner.errors import MemoryPlannerError
from memory_planner.games.order import OrderGame
from memory_planner.padding import PaddedShape

EXIT_BAD_INPUT = 2


@dataclasses.dataclass(frozen=True)
class MallocTrainConfig(FlagFields):
    """Settings of `experiments.malloc_train`; a field is a flag."""

    program: ClassVar[str] = "experiments.malloc_train"

    out: str = option("", "Folder for checkpoints and the network; training goes on from there.")
    minutes: float = option(10.0, "Minutes to train for, from now; 0 for no limit.")
    iterations: int = option(0, "Iterations in all, those before a restart too; 0 for no limit.")
    buffers: int = option(32, "Buffers of a random problem, at most; at least half as many.")
    lanes: int = option(32, "Games at a time.")
    simulations: int = option(16, "Game steps of the search for a move.")
    considered: int = option(8, "Actions that the search tries at the root, at most.")
    width: int = option(48, "Of the network.")
    layers: int = option(3, "Of the network.")
    learning_rate: float = option(1e-3, "Of Adam.")
    batch_size: int = option(128, "Samples of an update.")
    updates: int = option(16, "Updates after each round of games.")
    seed: int = option(0, "Of all chance.")

    def __post_init__(self) -> None:
        if not self.out:
            raise ConfigError("--out must name a folder, such as --out=runs/order_player.")
        if self.minutes <= 0 and self.iterations <= 0:
            raise ConfigError("Nothing would end training: give --minutes or --iterations.")
        self.check_at_least(2, "buffers", "considered")
        self.check_at_least(1, "lanes", "simulations", "width", "layers", "batch_size", "updates")

    def agent(self) -> AlphaZero:
        """The player."""
        search = SearchSettings(self.simulations, self.considered)
        return AlphaZero(OrderGame(), NetworkConfig(self.width, self.layers), search)

    def batches(self) -> RandomBatches:
        """What it is taught on: as many operations as a random problem may have, and a few."""
        operations = 32 * -(-(self.buffers + 1) // 32)
        shape = PaddedShape(self.buffers, operations, 8, 4 * self.buffers, 128)
        return RandomBatches(self.lanes, max(1, self.buffers // 2), self.buffers, shape, self.seed)

    def settings(self) -> TrainingSettings:
        """How it is taught."""
        learning = LearningSettings(self.learning_rate, self.batch_size, self.updates)
        return TrainingSettings(self.seed, self.lanes, learning)


def run(config: MallocTrainConfig) -> pathlib.Path:
    """Trains, and writes the network; returns its path.

    Raises:
      MemoryPlannerError: the folder cannot be used, or holds another run.
    """
    out = pathlib.Path(config.out).expanduser()
    agent, batches = config.agent(), config.batches()
    with stop_on_signals() as stop:
        limits = Limits(
            iterations=config.iterations or None,
            seconds=60 * config.minutes if config.minutes > 0 else None,
            stop=lambda: bool(stop),
        )
        learner = train(
            agent,
            batches,
            config.settings(),
            limits,
            directory=out / "checkpoints",
            report=_print_report,
        )
    path = out / "network.npz"
    save_network(path, stored(config, agent, batches, learner))
    print(f"{learner.iteration * config.lanes} games played; network: {path}")
    return path


def stored(
    config: MallocTrainConfig, agent: AlphaZero, batches: RandomBatches, learner: Learner
) -> StoredNetwork:
    """The learner's network, with what it reads and how it came about."""
    problem = jax.tree.map(lambda a: a[0], batches(0))
    seen = agent.game.observe(problem, agent.game.reset(problem))
    return StoredNetwork(
        config=agent.network,
        buffer_features=seen.buffers.shape[-1],
        summary_features=seen.summary.shape[-1],
        params=learner.params,
        history=(
            f"{learner.iteration * config.lanes} games of random problems with up to "
            f"{config.buffers} buffers, {config.simulations} simulations a move, seed {config.seed}"
        ),
    )


def _print_report(report: Report) -> None:
    losses = ", ".join(f"{name} {value:.4f}" for name, value in report.losses.items())
    print(
        f"iteration {report.iteration:5d}  {report.seconds:7.1f} s  "
        f"return {report.mean_return:.4f} of random's best  {losses}",
        flush=True,
    )


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs what the flags say; returns the exit status."""
    try:
        if len(argv) > 1:
            raise ConfigError(f"Unexpected argument {argv[1]!r}: flags are written --name=value.")
        run(from_flags(MallocTrainConfig, flag_values))
    except (ConfigError, MemoryPlannerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    define_flags(MallocTrainConfig)
    app.run(quieted(main))
