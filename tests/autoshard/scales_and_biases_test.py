"""What is only added and multiplied with, in programs whose parameters are known."""

import pytest

import models
from autoshard.named_dims import analyse
from autoshard.scales_and_biases import scales_and_biases
from autoshard.trace import gradient_program
from tests.autoshard import cases


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "vit"])
def test_norms_and_biases_are_and_kernels_and_tables_are_not(family: str, scanned: bool) -> None:
    spec = cases.small(family, scan_layers=scanned)
    program = cases.compile_case(spec, "data=8", "data").traced.program
    for analysis in (analyse(program), analyse(*gradient_program(program))):
        found = {program.inputs[p].path for p in scales_and_biases(analysis)}
        paths = {leaf.path for leaf in program.inputs if leaf.role.value == "parameter"}
        # ViT adds its class token and its positions, too.
        small = ("bias", "scale", "cls", "positions", "pos_embedding")
        assert found == {path for path in paths if path.endswith(small)}


def test_zero3_leaves_small_ones_whole_and_cuts_large_ones() -> None:
    spec = models.get("mlp", in_features=8, hidden=(120_000,), num_classes=16)
    plan = cases.compile_case(spec, "data=8", "zero3", 16).plan
    arrays = {a.leaf.shape: a for a in plan.arrays if a.leaf.role.value == "parameter"}
    assert any(arrays[120_000,].param)
    assert not any((*arrays[16,].param, *arrays[16,].grad, *arrays[16,].opt))
