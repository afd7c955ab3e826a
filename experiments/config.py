"""The settings of a run: one frozen value, filled from flags once.

A field is a flag: its name, default and help are written here and nowhere else. `define_flags`
turns the fields into flags, `from_flags` the parsed flags into a `TrainConfig`, and
`TrainConfig.command` goes the other way, to tell a user how to go on.
"""

import ast
import dataclasses
import json
import shlex
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from autoshard.errors import AutoshardError


class ConfigError(AutoshardError):
    """A flag has a value that cannot work."""


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of `python -m experiments.train`; the help of each is its documentation."""

    model: str = _option(
        "gpt2_tiny", "Name of a registered model; a wrong name lists the nearest ones."
    )
    model_overrides: str = _option(
        "",
        "Fields of the model's configuration to change, for instance "
        "`num_layers=2,dropout_rate=0.1` or `hidden=(64,64)`.",
    )
    pad_vocab: int = _option(
        0,
        "Widen the vocabulary of a text model to a multiple of this, so that it divides over the "
        "mesh; the added tokens never occur. 0 leaves it alone.",
    )
    mesh: str = _option(
        "",
        "Devices as named axes and their sizes, `data=2,model=4`, or a topology, `cpu:8`. On CPU "
        "the process gives itself that many devices. Empty: all devices, one axis `data`.",
    )
    rules: str = _option(
        "auto",
        "What decides the sharding: `auto`, or one or more of `data`, `redco`, `zero1`, `zero2`, "
        "`zero3`, `logical`, joined by `+` or `,`, for instance `zero3+redco`.",
    )
    plan: str = _option("", "Run this saved plan (a plan.json) instead of making one.")
    strict: bool = _option(
        False, "Refuse a model with operations that have no sharding rule, not just report them."
    )
    dtype: str = _option(
        "",
        "Type that matrix products are computed in, for instance `bfloat16`. Empty: the model's.",
    )
    steps: int = _option(
        300,
        "Optimizer updates in all, those before a resumption included; also the schedule's end.",
    )
    batch_size: int = _option(32, "Examples in a batch, over all devices.")
    seq_len: int | None = _option(
        None, "Tokens in an example of a text model. Unset: the longest that the model takes."
    )
    learning_rate: float = _option(1e-3, "Peak of the schedule: linear warm-up, then cosine decay.")
    warmup_steps: int | None = _option(
        None, "Updates until the peak learning rate. Unset: a tenth of --steps."
    )
    weight_decay: float = _option(0.1, "AdamW's decay of matrices; vectors and scalars have none.")
    seed: int = _option(0, "Of the parameters, dropout and the order of the data.")
    data: str = _option(
        "",
        "Text files to train on, as a quoted glob: --data='books/**/*.txt'. Empty: the Python "
        "standard library's sources. Models of images and vectors get synthetic patterns.",
    )
    eval_every: int = _option(50, "Steps between held-out scores; 0 scores only at the end.")
    eval_batches: int = _option(8, "Batches in the fixed set that a held-out score averages over.")
    log_every: int = _option(10, "Steps between lines of output and TensorBoard points.")
    checkpoint_dir: str = _option(
        "", "Where checkpoints go: new, empty, or an earlier run's. Empty: no checkpoints."
    )
    checkpoint_every: int = _option(
        100, "Steps between checkpoints; the last step and SIGTERM make one too."
    )
    keep: int = _option(3, "How many of the newest checkpoints stay.")
    resume: bool = _option(
        False,
        "Go on from the newest checkpoint, on this or another mesh and under these or other rules; "
        "a new run if there is none yet.",
    )
    resume_step: int | None = _option(
        None, "Go on from this checkpoint, not the newest; newer ones are moved aside."
    )
    output_dir: str = _option(
        "",
        "Where metrics.jsonl, TensorBoard events, plan.json, config.json and loss.png go. Empty: "
        "runs/<model>.",
    )

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "eval_batches",
            "log_every",
            "checkpoint_every",
            "keep",
        ):
            _check(name, getattr(self, name), at_least=1)
        if self.seq_len is not None:
            _check("seq_len", self.seq_len, at_least=2)
        for name in ("pad_vocab", "seed", "eval_every", "weight_decay"):
            _check(name, getattr(self, name), at_least=0)
        if not self.learning_rate > 0:
            raise ConfigError(f"--learning_rate={self.learning_rate} must be above 0, like 1e-3.")
        if self.warmup_steps is not None and not 0 <= self.warmup_steps < self.steps:
            raise ConfigError(
                f"--warmup_steps={self.warmup_steps} must be at least 0 and below "
                f"--steps={self.steps}, so that the peak learning rate is reached."
            )
        if self.resume_step is not None and not self.resume:
            raise ConfigError("--resume_step says where to go on from: it needs --resume too.")
        if self.resume and not self.checkpoint_dir:
            raise ConfigError("--resume needs --checkpoint_dir, the directory to go on from.")
        if not self.rule_names:
            raise ConfigError("--rules is empty: name a rule set, such as auto or zero3+redco.")
        parse_overrides(self.model_overrides)

    @property
    def rule_names(self) -> tuple[str, ...]:
        """The rule sets, in the order given."""
        return tuple(
            name for name in self.rules.replace("+", ",").replace(" ", "").split(",") if name
        )

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of the model's configuration to replace."""
        return parse_overrides(self.model_overrides)

    @property
    def output(self) -> str:
        """The output directory that is meant."""
        return self.output_dir or f"runs/{self.model}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainConfig":
        return cls(**values)

    def dumps(self) -> str:
        """The settings as JSON text, for people and `from_json`."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def arguments(self) -> list[str]:
        """The flags that make this configuration; those at their default are left out."""
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return [_argument(field.name, getattr(self, field.name)) for field in changed]

    def command(self) -> str:
        """A shell command that runs this configuration."""
        return shlex.join(["python", "-m", "experiments.train", *self.arguments()])


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one flag for each field of `TrainConfig`."""
    hints = typing.get_type_hints(TrainConfig)
    define: dict[type, Callable[..., Any]] = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
    }
    for field in dataclasses.fields(TrainConfig):
        hint = hints[field.name]
        kind = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
        define[kind](field.name, field.default, field.metadata["help"], flag_values=flag_values)


def from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> TrainConfig:
    """Turns parsed flags into settings.

    Raises:
      ConfigError: a value cannot work; the message names the flag.
    """
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return TrainConfig.from_json({name: flag_values[name].value for name in names})


def parse_overrides(text: str) -> dict[str, Any]:
    """Reads `name=value,...`, values being Python literals or bare words.

    Raises:
      ConfigError: it is not of that form.
    """
    try:
        # A call's keyword arguments are this very syntax, brackets and quotes included.
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("not keyword arguments")
        return {str(k.arg): _literal(k.value) for k in call.keywords if _named(k)}
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"--model_overrides={text!r} cannot be read: write name=value pairs joined by commas, "
            f"such as num_layers=2,dtype=bfloat16."
        ) from error


def _named(keyword: ast.keyword) -> bool:
    if keyword.arg is None:
        raise ValueError("a mapping where a name was expected")
    return True


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _argument(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={value}"


def _check(name: str, value: float, at_least: int) -> None:
    if not value >= at_least:
        raise ConfigError(f"--{name}={value} must be at least {at_least}.")
