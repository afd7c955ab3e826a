"""The chip table: every figure has a source, and what can be derived is derived again."""

import dataclasses

import pytest

from autoshard import chips
from autoshard.chip import Chip
from autoshard.errors import MeshError

NOT_FIGURES = {"name", "platform", "compiler_name", "device_kinds", "sources"}
CHIPS = [pytest.param(chip, id=name) for name, chip in chips.CHIPS.items()]


@pytest.mark.parametrize("chip", CHIPS)
def test_every_figure_has_a_source(chip: Chip) -> None:
    figures = {field.name for field in dataclasses.fields(chip)} - NOT_FIGURES
    assert {field for field, _ in chip.sources} == figures
    assert len(chip.sources) == len(figures)
    assert all(len(text) > 10 for _, text in chip.sources)


@pytest.mark.parametrize("chip", CHIPS)
def test_peaks_follow_from_units_and_clock(chip: Chip) -> None:
    rates = dict(chip.peak_flops)
    peak = chip.matrix_units * chip.matrix_flops_per_cycle * chip.clock_hz
    assert rates.get("bf16", rates.get("f32")) == pytest.approx(peak, rel=0.003)


@pytest.mark.parametrize("chip", CHIPS)
def test_figures_are_of_a_plausible_order(chip: Chip) -> None:
    rates = dict(chip.peak_flops)
    assert chip.vector_flops <= max(rates.values())
    assert rates.get("s8", max(rates.values())) >= rates.get("bf16", 0)
    assert rates.get("f8e4m3fn") == rates.get("f8e5m2")
    assert 0.9 * chip.hbm_bytes < chip.memory_bytes < 1.02 * chip.hbm_bytes
    assert chip.fast_bytes < chip.hbm_bytes / 50
    # Ever slower, the farther away.
    port = chip.link.count * chip.link.bytes_per_s
    assert chip.hbm_bytes_per_s >= port
    if chip.network is not None:
        share = chip.network.count * chip.network.bytes_per_s / chip.chips_per_host
        assert port > share
        assert chip.network.latency_s > chip.link.latency_s


@pytest.mark.parametrize(
    ("name", "gigabytes_per_s"),
    # Both ways over all links, as Google Cloud's pages of the TPUs have it.
    [("v5e", 400), ("v5p", 1200), ("v6e", 800), ("tpu7x", 1200)],
)
def test_links_are_nine_tenths_of_the_datasheet(name: str, gigabytes_per_s: float) -> None:
    link = chips.get(name).link
    assert 2 * link.count * link.bytes_per_s == pytest.approx(0.9 * gigabytes_per_s * 1e9)


@pytest.mark.parametrize(
    ("name", "gigabytes_per_s"),
    # Both ways, as NVIDIA's datasheets have it.
    [("a100", 600), ("h100", 900), ("h200", 900), ("b200", 1800)],
)
def test_nvlink_is_half_of_the_datasheet_one_way(name: str, gigabytes_per_s: float) -> None:
    link = chips.get(name).link
    assert link.count * link.bytes_per_s == gigabytes_per_s * 1e9 / 2


def test_derived_figures_say_so() -> None:
    for chip in chips.CHIPS.values():
        assert chip.source("clock_hz").startswith("derived:") or chip.platform == "cpu"
    assert "assumed" in chips.get("tpu7x").source("host_bytes_per_s")
    assert "derived" in chips.get("tpu7x").source("die_link")


def test_an_unknown_chip_is_answered_with_near_ones() -> None:
    with pytest.raises(MeshError, match="no chip 'h10' is known: did you mean h100") as caught:
        chips.get("h10")
    assert "v5p" in str(caught.value)


def test_chips_are_found_by_what_jax_calls_their_devices() -> None:
    assert chips.of_device_kind("TPU v5 lite") == chips.get("v5e")
    assert chips.of_device_kind("TPU v5") == chips.get("v5p")
    assert chips.of_device_kind("NVIDIA H100 80GB HBM3") == chips.get("h100")
    assert chips.of_device_kind("abacus") is None
    kinds = [kind for chip in chips.CHIPS.values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))
