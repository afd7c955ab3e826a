"""Machines described in TOML files: the examples of the documentation, and what can be wrong."""

import re
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from autoshard import chips, networks
from autoshard.errors import MeshError
from autoshard.machine import machine_model
from autoshard.topology import Topology
from autoshard.torus import lay_out
from passes.hlo.machine import Axis, Fabric

DOCUMENT = Path(__file__).parents[2] / "docs" / "targets.md"
EXAMPLES = {
    re.findall(r"\w+\.toml", text)[0]: text
    for text in re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
}


def example(name: str, folder: Path, *changes: tuple[str, str]) -> str:
    """The path of an example of the documentation, after some replacements."""
    text = EXAMPLES[name]
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return str(path)


def test_uneven_groups(tmp_path: Path) -> None:
    topology = Topology.parse(example("holmes.toml", tmp_path))
    assert topology.device_count == 64
    assert Topology.parse(str(topology)) == topology
    assert topology.compiler_name == "a100:8x8"
    machine = machine_model(topology)
    between, network, nvlink = machine.axes
    assert (between.name, between.size, between.fabric) == ("between", 3, Fabric.SWITCH)
    assert (network.name, network.size) == ("network", 4)
    assert nvlink == Axis("nvlink", 8, Fabric.SWITCH, False, 300e9, 1.9e-6)
    # Each GPU has an eighth of its host's adapters, and hosts of a group the same ones.
    assert network.device_bytes_per_s == (12.5e9,) * 48 + (3.125e9 / 8,) * 16
    assert between.device_bytes_per_s == (3.125e9 / 8,) * 64
    assert network.bytes_per_s == between.bytes_per_s == 3.125e9 / 8
    assert machine.coordinates[31:34] == ((0, 3, 7), (1, 0, 0), (1, 0, 1))
    layout = lay_out(topology, (8, 8))
    assert layout.order == tuple(range(64))
    assert layout.coordinates == machine.coordinates


def test_figures_of_uneven_devices_follow_the_mesh(tmp_path: Path) -> None:
    topology = Topology.parse(example("holmes.toml", tmp_path))
    machine = machine_model(topology, order=range(63, -1, -1))
    assert machine.axes[1].device_bytes_per_s == (3.125e9 / 8,) * 16 + (12.5e9,) * 48
    assert machine.coordinates[0] == (2, 1, 7)


def test_even_groups_are_laid_out(tmp_path: Path) -> None:
    path = example("holmes.toml", tmp_path, ("hosts = 4", "hosts = 2"))
    layout = lay_out(Topology.parse(path), (6, 8))
    assert [[part.axis for part in parts] for parts in layout.parts] == [
        ["between", "network"],
        ["nvlink"],
    ]


def test_a_torus_of_ones_own(tmp_path: Path) -> None:
    topology = Topology.parse(example("torus.toml", tmp_path))
    assert (topology.device_count, topology.slices) == (256, 2)
    assert topology.wraps == (True, True, True)
    assert Topology.parse(str(topology)) == topology
    assert topology.compiler_name == "2x mine:4x4x8"
    machine = machine_model(topology)
    assert [(axis.name, axis.size) for axis in machine.axes] == [
        ("dcn", 2),
        ("z", 8),
        ("y", 4),
        ("x", 4),
    ]
    assert machine.axes[0].bytes_per_s == 50e9 / 4
    assert machine.axes[1] == Axis("z", 8, Fabric.TORUS, True, 100e9, 1e-6)
    assert machine.flops_per_s("s8") == 2097e12
    assert machine.hbm_bytes == 126_000_000_000


def test_a_chip_like_another(tmp_path: Path) -> None:
    path = example("pcie.toml", tmp_path)
    chip = networks.load(path).chip
    assert (chip.name, chip.compiler_name) == ("h100_pcie", "h100")
    assert chip.hbm_bytes_per_s == 2e12
    assert chip.hbm_bytes == chips.get("h100").hbm_bytes
    assert chip.source("hbm_bytes_per_s") == path
    assert "NVIDIA" in chip.source("hbm_bytes")
    machine = machine_model(Topology.parse(path))
    assert [(axis.name, axis.size) for axis in machine.axes] == [("infiniband", 2), ("nvlink", 4)]
    assert machine.axes[1].bytes_per_s == 64e9


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d. |]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == set(chips.CHIPS) - {"cpu"}
    for name, figures in rows:
        chip = chips.get(name)
        assert chip.network is not None
        assert [float(figure) for figure in figures.split("|")] == pytest.approx(
            [
                dict(chip.peak_flops)["bf16"] / 1e12,
                chip.hbm_bytes / 2**30,
                chip.hbm_bytes_per_s / 1e9,
                chip.link.count,
                chip.link.bytes_per_s / 1e9,
                chip.chips_per_host,
                chip.network.count * chip.network.bytes_per_s / 1e9,
            ],
            rel=1e-3,
        )


FIGURES = re.findall(r"^(\w+) = ", EXAMPLES["torus.toml"].partition("# These")[0], re.MULTILINE)


@pytest.mark.parametrize("key", FIGURES)
def test_a_lacking_figure_is_named_with_an_example(key: str, tmp_path: Path) -> None:
    text = re.sub(rf"(?m)^{key} = .*\n", "", EXAMPLES["torus.toml"], count=1)
    path = tmp_path / "lacking.toml"
    path.write_text(text)
    if key == "count":
        assert networks.load(str(path)).slices == 1
        return
    with pytest.raises(
        MeshError, match=rf"lacking\.toml lacks '{key}': add a line such as {key} ="
    ):
        networks.load(str(path))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "holmes.toml",
            "bytes_per_s = 3.125e9\n",
            "",
            r"\[networks.ethernet\] .* lacks 'bytes_per",
        ),
        ("holmes.toml", 'network = "roce"', 'network = "rose"', r"\[networks\] .* lacks 'rose'"),
        ("holmes.toml", "hosts = 4\n", "", r"\[groups.0\] .* lacks 'hosts'.*hosts = 4"),
        (
            "holmes.toml",
            "hosts = 4",
            "hosts = 0",
            "hosts = 0, which is not a whole number of at le",
        ),
        ("holmes.toml", "hosts = 4", "hosts = true", "hosts = True, which is not a number"),
        ("holmes.toml", "hosts = 4", "host = 4", "unknown key 'host': did you mean 'hosts'"),
        ("holmes.toml", 'between = "ethernet"', "", "lacks 'between'"),
        ("holmes.toml", '"a100"', '"a101"', "no chip 'a101' is known: did you mean a100"),
        ("holmes.toml", '"a100"', '"v5p"', r"v5p has torus links .* describe a \[slice\]"),
        ("holmes.toml", '"a100"', "7", "chip = 7, which is not a text"),
        ("holmes.toml", "latency_s = 4e-6", "latency_s = -1", "latency_s = -1, which is not a num"),
        ("holmes.toml", "latency_s = 4e-6", "latency_s = nan", "which is not a number of at least"),
        ("holmes.toml", "[[groups]]", "[groups]", "is not TOML"),
        ("torus.toml", "shape = [4, 4, 8]", "shape = [4, 4]", "whose torus has 3 dimensions"),
        ("torus.toml", "shape = [4, 4, 8]", "shape = [4, 4, 0]", "not a list of whole numbers"),
        (
            "torus.toml",
            "wraps = [true, true, true]",
            "wraps = [true]",
            "true or false for each axis",
        ),
        (
            "torus.toml",
            "[slice]",
            "[[groups]]",
            "whose chips a switch joins, and mine has torus li",
        ),
        ("torus.toml", 'platform = "tpu"', 'platform = "npu"', "not cpu, gpu or tpu"),
        ("torus.toml", "clock_hz = 2e9", "clock_hz = 0", "not a number above 0"),
        ("torus.toml", "clock_hz = 2e9", "clok_hz = 2e9", "'clok_hz': did you mean 'clock_hz'"),
        ("torus.toml", "count = 6, ", "", r"\[chips.mine.link\] of .* lacks 'count'"),
        ("torus.toml", "{ bf16 = 1048e12, s8 = 2097e12 }", "{}", "not a table with a dtype"),
        ("torus.toml", '["TPU mine"]', '"TPU mine"', "not a list of texts"),
        ("pcie.toml", 'like = "h100"', 'like = "h10"', "no chip 'h10' is known"),
    ],
)
def test_what_can_be_wrong(name: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    path = example(name, tmp_path, (old, new))
    with pytest.raises(MeshError, match=message) as caught:
        Topology.parse(path)
    assert name in str(caught.value)


def test_a_slice_of_the_table_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "slice.toml"
    path.write_text('chip = "v5p"\n[slice]\nshape = [4, 4, 6]\n')
    with pytest.raises(MeshError, match=r"slice\.toml: v5p has no slice of shape 4x4x6"):
        networks.load(str(path))
    path.write_text('chip = "v5p"\n[slice]\nshape = [4, 4, 8]\n')
    topology = Topology.parse(str(path))
    assert machine_model(topology).axes == machine_model(Topology.parse("v5p:4x4x8")).axes
    assert topology.compiler_name == "v5p:4x4x8"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"cannot read the machine .*absent\.toml: No such file"):
        Topology.parse(str(tmp_path / "absent.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(MeshError, match="cannot read the machine"):
        Topology.parse(str(tmp_path / "folder.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MeshError, match="is not TOML"):
        Topology.parse(str(tmp_path / "bytes.toml"))
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(MeshError, match="lacks 'chip': add a line such as chip = \"h100\""):
        Topology.parse(str(tmp_path / "empty.toml"))
    (tmp_path / "bare.toml").write_text('chip = "h100"')
    with pytest.raises(MeshError, match=r"either \[\[groups\]\] .* or \[slice\]"):
        Topology.parse(str(tmp_path / "bare.toml"))


@hypothesis.given(data=st.data())
@hypothesis.settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_damaged_files_give_a_machine_or_an_error(data: st.DataObject, tmp_path: Path) -> None:
    text = EXAMPLES[data.draw(st.sampled_from(sorted(EXAMPLES)))]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 8))
        new = data.draw(
            st.sampled_from(["", "0", "9999999", "-1", "true", '"x"', "[]", "{}", "\n"])
        )
        text = text[:start] + new + text[end:]
    path = tmp_path / "damaged.toml"
    path.write_text(text)
    try:
        assert Topology.parse(str(path)).device_count > 0
    except MeshError as error:
        assert "damaged.toml" in str(error)
