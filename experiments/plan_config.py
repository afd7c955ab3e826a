"""The settings of planning: one frozen value, filled from flags once."""

import dataclasses
from typing import ClassVar

from experiments.flag_fields import ConfigError, option
from experiments.model_settings import ModelSettings

TASKS = ("train", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class PlanningSettings(ModelSettings):
    """What is planned and compiled; the help of each is its documentation."""

    topology: str = option(
        "",
        "Machine to compile for, which need not be here: `v5p:4x4x4`, `2x v5e:16x16`, `h100:8x4` "
        "(GPUs a host x hosts), `cpu:8`, or a TOML file. Empty: that of --plan.",
    )
    mesh: str = option(
        "",
        "Named axes to lay over the topology, `data=16,model=4`. Empty: those of --plan, else the "
        "cheapest of all `data` x `model`.",
    )
    dtype: str = option(
        "bfloat16",
        "Type that matrix products are computed in; parameters stay in float32. Not that of "
        "experiments.train, which leaves small models as they are. Empty: the model's.",
    )
    task: str = option(
        "train",
        "What is planned: `train`; for a decoder also `prefill`, which reads prompts of --seq_len "
        "tokens, and `decode`, which reads one more token of each sequence. For these, parameters "
        "and cache are stored in --dtype.",
    )
    capacity: int | None = option(
        None,
        "Positions of the cache of --task=prefill and --task=decode. Unset: the longest that the "
        "model takes.",
    )
    verify: int = option(
        -1,
        "With --rules=auto: how many of the best layouts are compiled for the topology before one "
        "is chosen; 0: the estimate decides. -1: 4.",
    )
    max_layouts: int = option(600, "With --rules=auto: layouts that are costed at most.")
    forbid: str = option(
        "",
        "With --rules=auto: dimensions that are not to be sharded (`vocab`) and mesh axes that are "
        "not to be wide (`model`), separated by commas.",
    )
    memory_limit_gib: float = option(0.0, "GiB that a device may hold. 0: what its chip has.")
    cache: bool = option(
        True, "Keep compilations on disk, and take from there what was compiled before."
    )
    timeout_s: float = option(3600.0, "Seconds after which a compilation is given up.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise ConfigError(f"--task={self.task!r} is none of {', '.join(TASKS)}.")
        if self.capacity is not None:
            self.check_at_least(1, "capacity")
            if self.task == "train":
                raise ConfigError("--capacity is of the cache of --task=prefill or --task=decode.")
        if self.task != "train" and (self.pass_names or self.offload):
            raise ConfigError(
                f"--task={self.task} takes no passes ({self.pass_names or self.offload}): they are "
                "for training."
            )
        if not self.timeout_s > 0:
            raise ConfigError(f"--timeout_s={self.timeout_s} must be above 0.")
        self.check_at_least(-1, "verify")
        self.check_at_least(1, "max_layouts")
        self.check_at_least(0, "memory_limit_gib")

    @property
    def forbidden(self) -> tuple[str, ...]:
        """Dimensions and axes that the search must not use."""
        return tuple(name.strip() for name in self.forbid.split(",") if name.strip())

    @property
    def memory_limit_bytes(self) -> int | None:
        """Bytes that a device may hold; None for the chip's own."""
        return round(self.memory_limit_gib * 2**30) or None


@dataclasses.dataclass(frozen=True)
class PlanConfig(PlanningSettings):
    """Settings of `python -m experiments.plan`."""

    program: ClassVar[str] = "experiments.plan"

    out: str = option(
        "",
        "Where report.html, report.json, plan.json, trace.json and hlo.txt go, with --compare "
        "compare.html. Empty: runs/plan/<model>.",
    )
    compare: str = option(
        "",
        "Show two results side by side: --compare=PLAN1,PLAN2 or --compare PLAN1 PLAN2, each a "
        "plan.json, a report.json or the directory of one. A plan is compiled again, with the "
        "model and batch of the flags, only where no report.json lies beside it.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.topology or self.plan or self.compare):
            raise ConfigError(
                "--topology is empty: name the machine to compile for, such as v5p:4x4x4, h100:8x4 "
                "or cpu:8; or give a saved --plan, or two to --compare."
            )
        if self.plan and self.compare:
            raise ConfigError("--plan and --compare exclude each other: --compare takes two plans.")

    @property
    def output(self) -> str:
        """The output directory that is meant."""
        return self.out or f"runs/plan/{self.model}"
