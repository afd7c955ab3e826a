"""The settings of a training run: one frozen value, filled from flags once."""

import dataclasses
from typing import ClassVar

from experiments.flag_fields import ConfigError, option
from experiments.model_settings import ModelSettings


@dataclasses.dataclass(frozen=True)
class TrainConfig(ModelSettings):
    """Settings of `python -m experiments.train`; the help of each is its documentation."""

    program: ClassVar[str] = "experiments.train"

    mesh: str = option(
        "",
        "Devices as named axes and their sizes, `data=2,model=4`, or a topology, `cpu:8`. On CPU "
        "the process gives itself that many devices. Empty: all devices, one axis `data`.",
    )
    seed: int = option(0, "Of the parameters, dropout and the order of the data.")
    data: str = option(
        "",
        "Text files to train on, as a quoted glob: --data='books/**/*.txt'. Empty: the Python "
        "standard library's sources. Models of images and vectors get synthetic patterns.",
    )
    eval_every: int = option(50, "Steps between held-out scores; 0 scores only at the end.")
    eval_batches: int = option(8, "Batches in the fixed set that a held-out score averages over.")
    log_every: int = option(10, "Steps between lines of output and TensorBoard points.")
    checkpoint_dir: str = option(
        "", "Where checkpoints go: new, empty, or an earlier run's. Empty: no checkpoints."
    )
    checkpoint_every: int = option(
        100, "Steps between checkpoints; the last step and SIGTERM make one too."
    )
    keep: int = option(3, "How many of the newest checkpoints stay.")
    resume: bool = option(
        False,
        "Go on from the newest checkpoint, on this or another mesh and under these or other rules; "
        "a new run if there is none yet.",
    )
    resume_step: int | None = option(
        None, "Go on from this checkpoint, not the newest; newer ones are moved aside."
    )
    output_dir: str = option(
        "",
        "Where metrics.jsonl, TensorBoard events, plan.json, config.json and loss.png go. Empty: "
        "runs/<model>.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "eval_batches", "log_every", "checkpoint_every", "keep")
        self.check_at_least(0, "seed", "eval_every")
        if self.resume_step is not None and not self.resume:
            raise ConfigError("--resume_step says where to go on from: it needs --resume too.")
        if self.resume and not self.checkpoint_dir:
            raise ConfigError("--resume needs --checkpoint_dir, the directory to go on from.")

    @property
    def output(self) -> str:
        """The output directory that is meant."""
        return self.output_dir or f"runs/{self.model}"
