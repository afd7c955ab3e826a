"""Flags for the passes, and the list of passes that they mean."""

import dataclasses

from experiments.flag_fields import ConfigError, FlagFields, option

STAGE_AXIS = "stage"
SEQUENCE_AXIS = "seq"

REMAT = ("", "auto", "full", "none", "dots", "dots_no_batch", "offload_dots")
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")
SEQUENCE = ("", "auto", "ring", "bidirectional", "ulysses", "heads")


@dataclasses.dataclass(frozen=True)
class PassSettings(FlagFields):
    """What rewrites the program before it is compiled; the help of each is its documentation."""

    passes: str = option(
        "",
        "Passes in order, for instance `stack_layers, microbatch(count=4)`. The flags below add "
        "theirs in the order that works; what is named here goes before them.",
    )
    stack_layers: bool = option(
        False, "Roll the layers of an unrolled model into a loop over stacked parameters."
    )
    microbatches: int = option(
        1, "Microbatches a step: gradients are accumulated, or fill the pipeline."
    )
    pipeline_stages: int = option(
        1, f"Stages of a pipeline, over mesh axis `{STAGE_AXIS}` (added to --mesh where absent)."
    )
    schedule: str = option("1f1b", f"Of the pipeline: {', '.join(SCHEDULES)}.")
    remat: str = option(
        "",
        "What the backward pass computes again: `auto` solves for what to save within "
        "--remat_budget_gib; `full`, `dots`, `dots_no_batch`, `offload_dots` and `none` are JAX's. "
        "Empty: the model's own.",
    )
    remat_budget_gib: float = option(
        0.0, "GiB a device for saved activations, with --remat=auto. 0: what the device has left."
    )
    remat_token_wise: bool = option(
        False,
        "With --remat=auto, a share of a value's tokens may be kept and the rest computed again "
        "(MEMO).",
    )
    offload: str = option(
        "",
        "What waits in host memory: `activations`, `optimizer`, or both joined by `+`. Empty: "
        "nothing.",
    )
    sequence: str = option(
        "",
        f"Attention over mesh axis `{SEQUENCE_AXIS}`: `ring`, `bidirectional`, `ulysses`, `heads`, "
        "or the cheapest of them, `auto`. Empty: attention as it is.",
    )
    dump_passes_to: str = option(
        "", "Folder for the program before and after each pass, numbered, and their difference."
    )
    check_passes: bool = option(
        False, "Evaluate the program before and after each pass on random data, and compare."
    )

    def check_passes_settings(self) -> None:
        """Raises ConfigError for values that no pass takes."""
        self.check_at_least(1, "microbatches", "pipeline_stages")
        self.check_at_least(0, "remat_budget_gib")
        for name, known in (("remat", REMAT), ("schedule", SCHEDULES), ("sequence", SEQUENCE)):
            if getattr(self, name) not in known:
                listed = ", ".join(k for k in known if k)
                raise ConfigError(f"--{name}={getattr(self, name)!r} is none of {listed}.")
        wrong = set(self.offloaded) - {"activations", "optimizer"}
        if wrong:
            raise ConfigError(
                f"--offload={self.offload!r}: {min(wrong)!r} cannot be offloaded; activations and "
                "optimizer can."
            )
        if self.remat_budget_gib and self.remat != "auto":
            raise ConfigError("--remat_budget_gib is a budget for --remat=auto: set that, too.")
        if self.remat_token_wise and self.remat != "auto":
            raise ConfigError("--remat_token_wise is decided by --remat=auto: set that, too.")

    @property
    def offloaded(self) -> tuple[str, ...]:
        """What waits in host memory."""
        return tuple(x for x in self.offload.replace("+", ",").replace(" ", "").split(",") if x)

    @property
    def mesh_with_stages(self) -> str:
        """`--mesh`, with the pipeline's axis where it is not named."""
        mesh: str = getattr(self, "mesh", "")
        if self.pipeline_stages == 1 or f"{STAGE_AXIS}=" in mesh or "=" not in mesh:
            return mesh
        return f"{STAGE_AXIS}={self.pipeline_stages},{mesh}"

    @property
    def pass_names(self) -> str:
        """The passes as text, in the order that works; see `autoshard.compile`."""
        found = [self.passes] if self.passes else []
        if self.stack_layers:
            found.append("stack_layers")
        if self.microbatches > 1:
            found.append(f"microbatch(count={self.microbatches})")
        if self.sequence:
            found.append(f"sequence(axis={SEQUENCE_AXIS!r}, method={self.sequence!r})")
        if self.remat:
            found.append(self._remat())
        if self.pipeline_stages > 1:
            found.append(
                f"pipeline(axis={STAGE_AXIS!r}, schedule={self.schedule!r}, "
                f"microbatches={self.microbatches})"
            )
        return ", ".join(found)

    def _remat(self) -> str:
        settings = [f"policy={self.remat!r}"]
        if self.remat_budget_gib:
            settings.append(f"budget_bytes={int(self.remat_budget_gib * 2**30)}")
        if "activations" in self.offloaded:
            settings.append("offload='auto'")
        if self.remat_token_wise:
            settings.append("token_wise=True")
        return f"remat({', '.join(settings)})"
