"""The settings that training and planning share: model, batch, rules, optimizer."""

import ast
import dataclasses
from typing import Any

import jax

import models
from experiments.flag_fields import ConfigError, option
from experiments.pass_settings import PassSettings
from passes.pass_pipeline import Checks


@dataclasses.dataclass(frozen=True)
class ModelSettings(PassSettings):
    """What is computed and how it is to be sharded; the help of each is its documentation."""

    model: str = option(
        "gpt2_tiny", "Name of a registered model; a wrong name lists the nearest ones."
    )
    model_overrides: str = option(
        "",
        "Fields of the model's configuration to change, for instance "
        "`num_layers=2,dropout_rate=0.1` or `hidden=(64,64)`.",
    )
    pad_vocab: int = option(
        0,
        "Widen the vocabulary of a text model to a multiple of this, so that it divides over the "
        "mesh; the added tokens never occur. 0 leaves it alone.",
    )
    rules: str = option(
        "auto",
        "What decides the sharding: `auto`, or one or more of `data`, `redco`, `zero1`, `zero2`, "
        "`zero3`, `logical`, joined by `+` or `,`, for instance `zero3+redco`.",
    )
    plan: str = option("", "Use this saved plan (a plan.json) instead of making one.")
    strict: bool = option(
        False, "Refuse a model with operations that have no sharding rule, not just report them."
    )
    dtype: str = option(
        "",
        "Type that matrix products are computed in, for instance `bfloat16`. Empty: the model's.",
    )
    steps: int = option(
        300,
        "Optimizer updates in all, those before a resumption included; also the schedule's end.",
    )
    batch_size: int = option(32, "Examples in a batch, over all devices.")
    seq_len: int | None = option(
        None, "Tokens in an example of a text model. Unset: the longest that the model takes."
    )
    learning_rate: float = option(1e-3, "Peak of the schedule: linear warm-up, then cosine decay.")
    warmup_steps: int | None = option(
        None, "Updates until the peak learning rate. Unset: a tenth of --steps."
    )
    weight_decay: float = option(0.1, "AdamW's decay; biases and scales have none.")

    def __post_init__(self) -> None:
        self.check_at_least(1, "steps", "batch_size")
        if self.seq_len is not None:
            self.check_at_least(2, "seq_len")
        self.check_at_least(0, "pad_vocab", "weight_decay")
        if not self.learning_rate > 0:
            raise ConfigError(f"--learning_rate={self.learning_rate} must be above 0, like 1e-3.")
        if self.warmup_steps is not None and not 0 <= self.warmup_steps < self.steps:
            raise ConfigError(
                f"--warmup_steps={self.warmup_steps} must be at least 0 and below "
                f"--steps={self.steps}, so that the peak learning rate is reached."
            )
        if not self.rule_names:
            raise ConfigError("--rules is empty: name a rule set, such as auto or zero3+redco.")
        parse_overrides(self.model_overrides)
        self.check_passes_settings()

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


def model_spec(config: ModelSettings) -> models.ModelSpec:
    """The model that the flags name, overrides applied.

    Raises:
      ConfigError: the model refuses a value.
    """
    overrides = config.overrides
    if config.pad_vocab:
        overrides["pad_vocab_to"] = config.pad_vocab
    try:
        return models.get(config.model, **overrides)
    except (models.UnknownModelError, models.UnknownFieldError):
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"Model {config.model!r}: {error}") from error


def batch_specs(config: ModelSettings, spec: models.ModelSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of one batch.

    Raises:
      ConfigError: the model does not take such a batch.
    """
    try:
        return dict(spec.example_batch(config.batch_size, config.seq_len))
    except ValueError as error:
        raise ConfigError(f"Model {config.model!r}: {error}") from error


def pass_checks(config: ModelSettings) -> Checks:
    """What follows each pass."""
    return Checks(compare=config.check_passes, dump_to=config.dump_passes_to or None)


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
