"""Flags to passes."""

from typing import Any

import pytest

from autoshard.pass_registry import parse_passes
from experiments.config import TrainConfig
from experiments.flag_fields import ConfigError
from experiments.model_settings import pass_checks
from passes.microbatch import Microbatch
from passes.remat import Remat
from passes.sequence import Sequence
from passes.stack_layers import StackLayers


@pytest.mark.parametrize(
    ("flags", "passes"),
    [
        ({}, ()),
        ({"stack_layers": True, "microbatches": 4}, (StackLayers(), Microbatch(4))),
        (
            {"sequence": "ring", "stack_layers": True, "remat": "full"},
            (StackLayers(), Sequence(axis="seq", method="ring"), Remat("full")),
        ),
        (
            {"remat": "auto", "remat_budget_gib": 1.5, "offload": "activations+optimizer"},
            (Remat("auto", budget_bytes=1610612736, offload="auto"),),
        ),
        (
            {"remat": "auto", "remat_token_wise": True},
            (Remat("auto", token_wise=True),),
        ),
        (
            {"passes": "stack_layers(least=2)", "microbatches": 2},
            (StackLayers(least=2), Microbatch(2)),
        ),
    ],
)
def test_flags_make_passes(flags: dict[str, Any], passes: tuple[Any, ...]) -> None:
    assert parse_passes(TrainConfig(**flags).pass_names) == passes


def test_stages_are_an_axis_of_the_mesh() -> None:
    config = TrainConfig(pipeline_stages=2, mesh="data=2,model=2")
    assert config.mesh_with_stages == "stage=2,data=2,model=2"
    named = TrainConfig(pipeline_stages=2, mesh="stage=2,data=4")
    assert named.mesh_with_stages == named.mesh
    assert TrainConfig(mesh="data=8").mesh_with_stages == "data=8"


def test_checks() -> None:
    checks = pass_checks(TrainConfig(check_passes=True, dump_passes_to="out"))
    assert checks.compare and checks.dump_to == "out"
    assert pass_checks(TrainConfig()).dump_to is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"schedule": "gpip"}, "--schedule='gpip' is none of gpipe, 1f1b"),
        ({"sequence": "rings"}, "--sequence='rings' is none of auto, ring"),
        ({"remat": "some"}, "--remat='some' is none of"),
        ({"offload": "parameters"}, "'parameters' cannot be offloaded"),
        ({"remat": "full", "remat_budget_gib": 2.0}, "set that, too"),
        ({"remat_token_wise": True}, "is decided by --remat=auto"),
        ({"microbatches": 0}, "--microbatches=0 must be at least 1"),
    ],
)
def test_bad_flags(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**flags)
