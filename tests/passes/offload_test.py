"""Values that go to the host by name or by cost, on programs that run."""

import dataclasses

import pytest

from passes.errors import PassError
from passes.offload import Offload
from passes.pass_pipeline import run_passes
from passes.program import Program
from tests.passes import programs
from tests.passes.remat_test import llama


def note(program: Program, start: str) -> str:
    return next((text for text in program.notes if text.startswith(start)), "")


def test_named_values_go_to_the_host() -> None:
    before = llama()
    after, _ = run_passes(before, [Offload(values=("*/carry", "*/up_proj/*"))])
    host = note(after, "host an iteration")
    assert "block0/carry" in host and "up_proj" in host and "gate_proj" not in host
    assert not note(after, "saved an iteration")
    programs.assert_same(before, after)


def test_what_is_carried_stays_where_it_is_not_named() -> None:
    after = Offload(values=("*/up_proj/*",)).apply(llama())
    assert "block0/carry" in note(after, "saved an iteration")


def test_by_cost_nothing_stays_on_the_device() -> None:
    before = llama()
    after = Offload(hidden=False).apply(before)
    assert "saved on a device: 0.00 MiB" in note(after, "saved on a device")
    assert "block0/carry" in note(after, "host an iteration")


def test_bad_input_is_refused() -> None:
    with pytest.raises(PassError, match=r"no value matches 'nothing\*'.*block0/carry"):
        Offload(values=("nothing*",)).apply(llama())
    with pytest.raises(PassError, match="there is no plan yet"):
        Offload(values=("*",)).apply(dataclasses.replace(llama(), placement=None))
    with pytest.raises(PassError, match="let transfers show"):
        slow = llama()
        assert slow.placement is not None
        machine = dataclasses.replace(slow.placement.machine, host_bytes_per_s=1.0)
        placement = dataclasses.replace(slow.placement, machine=machine)
        Offload().apply(dataclasses.replace(slow, placement=placement))
