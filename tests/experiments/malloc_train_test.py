"""`experiments.malloc_train`, a round of games of tiny problems."""

import pathlib

import jax
import pytest
from absl import flags

from experiments import malloc_train
from experiments.flag_fields import define_flags
from experiments.malloc_train import EXIT_BAD_INPUT, MallocTrainConfig
from memory_planner.agents.stored_network import load_network
from memory_planner.games.order import OrderGame

TINY = (
    "--minutes=0 --iterations=2 --buffers=4 --lanes=2 --simulations=2 --considered=2 "
    "--width=4 --layers=1 --batch_size=4 --updates=1"
).split()


def run(*arguments: str) -> int:
    values = flags.FlagValues()
    define_flags(MallocTrainConfig, values)
    values(["malloc_train", *arguments])
    return malloc_train.main(["malloc_train"], values)


def test_trains_writes_a_network_and_goes_on(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"--out={tmp_path}", *TINY) == 0
    assert "4 games played" in capsys.readouterr().out
    network = load_network(tmp_path / "network.npz")
    config = MallocTrainConfig(out=str(tmp_path), buffers=4, lanes=2)
    problem = jax.tree.map(lambda a: a[0], config.batches()(0))
    game = OrderGame()
    network.check_fits(jax.eval_shape(lambda: game.observe(problem, game.reset(problem))))
    assert network.config.width == 4 and "4 games" in network.history
    # It has reached its end: started again it plays nothing and writes the same.
    assert run(f"--out={tmp_path}", *TINY) == 0
    out = capsys.readouterr().out
    assert "iteration" not in out and "4 games played" in out
    # Another player cannot go on from it.
    assert run(f"--out={tmp_path}", *TINY, "--considered=3") == EXIT_BAD_INPUT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes=1"], "--out must name a folder"),
        (["--out=x", "--minutes=0"], "give --minutes or --iterations"),
        (["--out=x", "--buffers=1"], "--buffers=1 must be at least 2"),
        (["--out=x", "--width=0"], "--width=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == EXIT_BAD_INPUT
    assert message in capsys.readouterr().err
