"""Seconds of collectives against closed forms. Links carry 1 GB/s; payloads are 1 MB."""

import dataclasses
import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from passes.hlo.collective_time import CollectiveTime, collective_time, slices_time
from passes.hlo.machine import MachineModel
from passes.hlo.replica_groups import Groups
from tests.passes.hlo.texts import line, machine_of, ring, switch

MB = 1e6
MS = 1e-3


def time_of(machine: MachineModel, kind: str, *groups: tuple[int, ...]) -> CollectiveTime:
    return collective_time(machine, kind, MB, groups)


def everybody(machine: MachineModel) -> tuple[int, ...]:
    return tuple(range(len(machine.coordinates)))


@pytest.mark.parametrize("size", [2, 3, 4, 8, 16])
@pytest.mark.parametrize(
    ("kind", "passes"), [("all-gather", 1), ("reduce-scatter", 1), ("all-reduce", 2)]
)
def test_a_ring_is_used_both_ways(size: int, kind: str, passes: int) -> None:
    """Every device receives the other devices' shares, half of them from either side."""
    machine = machine_of(ring(size))
    found = time_of(machine, kind, everybody(machine))
    assert found.seconds == pytest.approx(passes * MS * (size - 1) / size / 2)
    assert (found.axes, found.links) == (("x",), ("x+", "x-"))


@pytest.mark.parametrize(("kind", "passes"), [("all-gather", 1), ("all-reduce", 2)])
def test_a_line_has_one_way_out_of_its_ends(kind: str, passes: int) -> None:
    machine = machine_of(line(4))
    assert time_of(machine, kind, everybody(machine)).seconds == pytest.approx(passes * MS * 3 / 4)
    half_a_ring = time_of(machine_of(ring(8)), kind, (0, 1, 2, 3), (4, 5, 6, 7))
    assert half_a_ring.seconds == pytest.approx(passes * MS * 3 / 4)


@pytest.mark.parametrize(("kind", "passes"), [("all-gather", 1), ("all-reduce", 2)])
def test_behind_a_switch_everybody_has_a_port(kind: str, passes: int) -> None:
    machine = machine_of(switch(8))
    assert time_of(machine, kind, everybody(machine)).seconds == pytest.approx(passes * MS * 7 / 8)
    # Places do not matter.
    assert time_of(machine, kind, (0, 3), (1, 7)).seconds == pytest.approx(passes * MS / 2)


def test_latency_is_paid_hop_by_hop() -> None:
    machine = machine_of(ring(8, latency_s=1.0))
    assert time_of(machine, "all-gather", everybody(machine)).seconds == pytest.approx(7, rel=0.01)
    assert time_of(machine, "all-reduce", everybody(machine)).seconds == pytest.approx(14, rel=0.01)
    assert time_of(machine, "all-gather", (0, 4)).seconds == pytest.approx(4, rel=0.01)


def test_rings_with_gaps_share_their_links() -> None:
    """Every second device of eight: the two rings cross each other's places."""
    machine = machine_of(ring(8))
    found = time_of(machine, "all-gather", (0, 2, 4, 6), (1, 3, 5, 7))
    assert found.seconds == pytest.approx(MS * 3 / 4 / (2 / 2))


def test_whole_axes_of_a_torus_work_side_by_side() -> None:
    machine = machine_of(ring(4, "z"), ring(4, "y"), ring(4, "x"))
    whole = time_of(machine, "all-reduce", everybody(machine))
    assert whole.seconds == pytest.approx(2 * MS * 63 / 64 / 6)
    assert set(whole.axes) == {"x", "y", "z"} and len(whole.links) == 6
    plane = tuple(d for d in everybody(machine) if machine.coordinates[d][0] == 2)
    found = time_of(machine, "all-reduce", plane)
    assert found.seconds == pytest.approx(2 * MS * 15 / 16 / 4) and set(found.axes) == {"x", "y"}


def test_the_inner_fabric_goes_first() -> None:
    """Two hosts of four: the network between them moves a quarter of the data."""
    machine = machine_of(switch(2, "net", bytes_per_s=1e8), switch(4, "nvlink"))
    found = time_of(machine, "all-reduce", everybody(machine))
    assert found.seconds == pytest.approx(2 * MS * 3 / 4 + 2 * (MS / 4) * (1 / 2) * 10)
    assert set(found.axes) == {"net", "nvlink"}
    across = time_of(machine, "all-reduce", (1, 5))
    assert across.seconds == pytest.approx(2 * MS / 2 * 10) and across.axes == ("net",)
    slices = machine_of(switch(2, "dcn", bytes_per_s=1e8), ring(4, "x"))
    found = time_of(slices, "all-reduce", everybody(slices))
    assert found.seconds == pytest.approx(2 * MS * 3 / 4 / 2 + 2 * (MS / 4) / 2 * 10)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_all_to_all(size: int) -> None:
    """On a ring a share passes n/4 links on average, of 2n that the devices have together."""
    on_ring, behind = machine_of(ring(size)), machine_of(switch(size))
    found = time_of(on_ring, "all-to-all", everybody(on_ring)).seconds
    assert found == pytest.approx(MS * (size / 4) * size / (2 * size))
    found = time_of(behind, "all-to-all", everybody(behind)).seconds
    assert found == pytest.approx(MS * (size - 1) / size)


def hops_by_walking(machine: MachineModel, pairs: Groups) -> tuple[float, set[str]]:
    """The fullest link, by sending every message a link at a time, x last, on the shorter side."""
    loads: dict[tuple[tuple[int, ...], int, int], int] = {}
    names = set()
    for source, target in pairs:
        here = list(machine.coordinates[source])
        for number, axis in enumerate(machine.axes):
            ahead = (machine.coordinates[target][number] - here[number]) % axis.size
            step = 1 if 2 * ahead <= axis.size else -1
            while here[number] != machine.coordinates[target][number]:
                key = (tuple(here), number, step)
                loads[key] = loads.get(key, 0) + 1
                names.add(f"{axis.name}{'+' if step > 0 else '-'}")
                here[number] = (here[number] + step) % axis.size
    return max(loads.values(), default=0), names


@hypothesis.given(st.sampled_from([(4,), (5,), (2, 4), (3, 2, 4)]), st.data())
def test_permutes_wait_for_the_fullest_link(sizes: tuple[int, ...], data: st.DataObject) -> None:
    machine = machine_of(*(ring(size, name) for size, name in zip(sizes, "zyx", strict=False)))
    devices = everybody(machine)
    pairs = tuple(zip(devices, data.draw(st.permutations(devices)), strict=True))
    fullest, names = hops_by_walking(machine, pairs)
    found = time_of(machine, "collective-permute", *pairs)
    assert found.seconds == pytest.approx(fullest * MS) and set(found.links) == names


def test_shifts() -> None:
    machine = machine_of(ring(4))
    shift = tuple((d, (d + 1) % 4) for d in range(4))
    assert time_of(machine, "collective-permute", *shift) == CollectiveTime(MS, ("x",), ("x+",))
    back = tuple((t, s) for s, t in shift)
    assert time_of(machine, "collective-permute", *back) == CollectiveTime(MS, ("x",), ("x-",))
    two = tuple((d, (d + 2) % 4) for d in range(4))
    assert time_of(machine, "collective-permute", *two).seconds == pytest.approx(2 * MS)
    port = machine_of(switch(4))
    assert time_of(port, "collective-permute", *two).seconds == pytest.approx(MS)
    to_itself = tuple((d, d) for d in range(4))
    assert time_of(machine, "collective-permute", *to_itself) == CollectiveTime(0, (), ())


def test_the_slowest_device_decides() -> None:
    uneven = dataclasses.replace(switch(4), device_bytes_per_s=(1e9, 1e9, 1e8, 1e9))
    machine = machine_of(uneven)
    assert time_of(machine, "all-gather", everybody(machine)).seconds == pytest.approx(7.5 * MS)
    assert time_of(machine, "all-gather", (0, 1)).seconds == pytest.approx(MS / 2)
    # Of several groups, the slowest.
    assert time_of(machine, "all-gather", (0, 1), (2, 3)).seconds == pytest.approx(5 * MS)


def test_between_slices() -> None:
    machine = machine_of(switch(4, "dcn"), ring(4, "x"))
    assert slices_time(machine, "all-reduce", MB).seconds == pytest.approx(2 * MS * 3 / 4)
    # What is sent of a gather is one slice's share; the whole is four of them.
    assert slices_time(machine, "all-gather", MB).seconds == pytest.approx(3 * MS)
    assert slices_time(machine, "all-reduce", MB).axes == ("dcn",)
    assert slices_time(machine_of(), "all-reduce", MB) == CollectiveTime(0.0, (), ())


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "all-to-all", "collective-permute"])
def test_groups_of_nobody_and_of_one_take_no_time(kind: str) -> None:
    machine = machine_of(ring(4))
    assert time_of(machine, kind).seconds == 0
    assert time_of(machine, kind, (2,)).seconds == 0
    assert time_of(machine, kind, (70, 71)).seconds == 0  # devices that the machine does not have


@hypothesis.given(st.sampled_from(["all-reduce", "all-gather", "all-to-all"]), st.data())
def test_more_data_takes_longer_and_every_group_some_time(kind: str, data: st.DataObject) -> None:
    """Whatever the group, on a grid or not."""
    machine = machine_of(switch(2, "dcn"), ring(4, "y"), line(3, "x"))
    group = tuple(data.draw(st.lists(st.sampled_from(everybody(machine)), unique=True, min_size=2)))
    short = collective_time(machine, kind, MB, (group,)).seconds
    long = collective_time(machine, kind, 2 * MB, (group,)).seconds
    assert short > 0 and long == pytest.approx(2 * short)


def test_a_link_is_never_beaten() -> None:
    """No all-gather is faster than the links into a device: two of every axis."""
    machine = machine_of(ring(4, "y"), ring(8, "x"))
    for size in (2, 4, 8, 16):
        for group in itertools.islice(itertools.combinations(everybody(machine), size), 50):
            found = time_of(machine, "all-gather", group).seconds
            assert found >= MS * (size - 1) / size / 4 * (1 - 1e-9)
