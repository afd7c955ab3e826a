"""`Network`: a machine that the user describes in a TOML file, evenly wired or not.

The format, with a complete example, is in docs/targets.md. Uneven machines are groups of hosts with
different adapters, as in "Holmes: Towards Distributed Training Across Clusters with Heterogeneous
NIC Environment".
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoshard import chips
from autoshard.chip import Chip, Link
from autoshard.errors import MeshError
from autoshard.slice_shapes import check_slice_shape, wraps


@dataclasses.dataclass(frozen=True)
class HostNetwork:
    """A network between hosts.

    Attributes:
      name: `infiniband`, `roce`, `ethernet`, ...
      bytes_per_s: of one host, one way.
      latency_s: of one message.
    """

    name: str
    bytes_per_s: float
    latency_s: float


@dataclasses.dataclass(frozen=True)
class HostGroup:
    """Hosts with the same adapters.

    Attributes:
      name: of the group.
      hosts: number of hosts.
      chips_per_host: chips in each.
      network: between hosts of the group.
    """

    name: str
    hosts: int
    chips_per_host: int
    network: HostNetwork


@dataclasses.dataclass(frozen=True)
class Network:
    """Chips and the ways between them, from a file.

    Attributes:
      path: the file, as the user wrote it.
      chip: the chips, all of one kind.
      shape: of one slice, x first, where the chips have torus links; else empty.
      wraps: whether each axis of the torus closes to a ring.
      slices: number of slices.
      groups: groups of hosts, where a switch joins the chips of a host; else empty.
      between: the network between slices, or between hosts of different groups; None where there
        is one slice or group.
    """

    path: str
    chip: Chip
    shape: tuple[int, ...]
    wraps: tuple[bool, ...]
    slices: int
    groups: tuple[HostGroup, ...]
    between: HostNetwork | None


# What each key of a chip holds, as an example that an error can show.
_EXAMPLES = {
    "platform": '"gpu"',
    "device_kinds": '["NVIDIA H100 80GB HBM3"]',
    "devices_per_chip": "1",
    "chips_per_host": "8",
    "torus_dims": "0  # a switch joins the chips of a host; 2 or 3 for torus links",
    "matrix_units": "528",
    "matrix_tile": "128",
    "multiprocessors": "132",
    "matrix_flops_per_cycle": "1024",
    "clock_hz": "1.83e9",
    "peak_flops": "{ bf16 = 989e12, f32 = 495e12 }",
    "vector_flops": "67e12",
    "hbm_bytes": "80e9",
    "hbm_bytes_per_s": "3.35e12",
    "usable_hbm_bytes": "78e9",
    "fast_bytes": "30e6",
    "link": "{ count = 18, bytes_per_s = 25e9, latency_s = 2e-6 }",
    "die_link": "{ count = 1, bytes_per_s = 540e9, latency_s = 1e-6 }",
    "host_bytes_per_s": "64e9",
    "network": "{ count = 8, bytes_per_s = 50e9, latency_s = 4e-6 }",
}
_DEFAULTS: dict[str, Any] = {
    "device_kinds": (),
    "devices_per_chip": 1,
    "usable_hbm_bytes": None,
    "die_link": None,
    "network": None,
}
_WHOLE = (
    *("devices_per_chip", "chips_per_host", "torus_dims", "matrix_units", "matrix_tile"),
    *("multiprocessors", "matrix_flops_per_cycle", "hbm_bytes", "usable_hbm_bytes", "fast_bytes"),
)
_LINKS = ("link", "die_link", "network")


def load(path: str) -> Network:
    """Reads a machine from a TOML file.

    Raises:
      MeshError: the file cannot be read, or lacks a figure, which the message names with its table
        and an example.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MeshError(f"cannot read the machine {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MeshError(f"{path} is not TOML: {error}") from error
    top = _Table(path, "", values)
    top.only(("chip", "between", "groups", "slice", "networks", "chips"))
    chip = _chip(top)
    between = _host_network(top, top.text("between", '"ethernet"')) if top.has("between") else None
    if top.has("groups") == top.has("slice"):
        raise MeshError(
            f"{path} needs either [[groups]] (hosts whose chips a switch joins) or [slice] (chips "
            "with torus links), one of the two: docs/targets.md has an example of each"
        )
    if top.has("slice"):
        return _slice(top, chip, between)
    return _grouped(top, chip, between)


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table of the file, read key by key; errors name the file, the table and an example."""

    path: str
    name: str
    values: Mapping[str, Any]

    def has(self, key: str) -> bool:
        return key in self.values

    def only(self, keys: Iterable[str]) -> None:
        keys = tuple(keys)
        for key in self.values:
            if key not in keys:
                near = difflib.get_close_matches(key, keys, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise MeshError(
                    f"{self._where} has an unknown key {key!r}: {hint}It may have {', '.join(keys)}"
                )

    def get(self, key: str, example: str) -> Any:
        if key not in self.values:
            raise MeshError(f"{self._where} lacks {key!r}: add a line such as {key} = {example}")
        return self.values[key]

    def wrong(self, key: str, wanted: str, example: str) -> MeshError:
        return MeshError(
            f"{self._where} has {key} = {self.values[key]!r}, which is not {wanted}: write for "
            f"example {key} = {example}"
        )

    def text(self, key: str, example: str) -> str:
        value = self.get(key, example)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a text", example)
        return value

    def number(self, key: str, example: str) -> float:
        value = self.get(key, example)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
            raise self.wrong(key, "a number of at least 0", example)
        return float(value)

    def positive(self, key: str, example: str) -> float:
        if not self.number(key, example):
            raise self.wrong(key, "a number above 0", example)
        return float(self.values[key])

    def whole(self, key: str, example: str, least: int = 1) -> int:
        value = self.number(key, example)
        if value != int(value) or value < least:
            raise self.wrong(key, f"a whole number of at least {least}", example)
        return int(value)

    def table(self, key: str, example: str) -> "_Table":
        value = self.get(key, example)
        if not isinstance(value, dict):
            raise self.wrong(key, "a table", example)
        return _Table(self.path, f"{self.name}.{key}".lstrip("."), value)

    @property
    def _where(self) -> str:
        return f"[{self.name}] of {self.path}" if self.name else self.path


def _chip(top: _Table) -> Chip:
    name = top.text("chip", '"h100"')
    own = top.table("chips", "{}") if top.has("chips") else _Table(top.path, "chips", {})
    if not own.has(name):
        return _chip_of_the_table(top.path, name)
    table = own.table(name, "{}")
    table.only(("like", *_EXAMPLES))
    base = None
    if table.has("like"):
        base = _chip_of_the_table(table.path, table.text("like", '"h100"'))
    given = {key: _chip_value(table, key) for key in _EXAMPLES if table.has(key)}
    if base is not None:
        sources = tuple(
            (key, table.path if key in given else source) for key, source in base.sources
        )
        return dataclasses.replace(base, name=name, sources=sources, **given)
    values = {
        key: _DEFAULTS[key] if key in _DEFAULTS else table.get(key, example)
        for key, example in _EXAMPLES.items()
        if key not in given
    }
    sources = tuple((key, table.path) for key in _EXAMPLES)
    return Chip(name=name, compiler_name=name, sources=sources, **{**values, **given})


def _chip_of_the_table(path: str, name: str) -> Chip:
    try:
        return chips.get(name)
    except MeshError as error:
        raise MeshError(f"{path}: {error}") from error


def _chip_value(table: _Table, key: str) -> Any:
    example = _EXAMPLES[key]
    if key == "platform":
        if table.text(key, example) not in ("cpu", "gpu", "tpu"):
            raise table.wrong(key, "cpu, gpu or tpu", example)
        return table.values[key]
    if key == "device_kinds":
        kinds = table.get(key, example)
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise table.wrong(key, "a list of texts", example)
        return tuple(kinds)
    if key == "peak_flops":
        rates = table.table(key, example)
        if not rates.values:
            raise table.wrong(key, "a table with a dtype", example)
        return tuple((dtype, rates.positive(dtype, "989e12")) for dtype in rates.values)
    if key in _LINKS:
        link = table.table(key, example)
        link.only(("count", "bytes_per_s", "latency_s"))
        return Link(
            link.whole("count", "1"),
            link.positive("bytes_per_s", "25e9"),
            link.number("latency_s", "2e-6"),
        )
    if key in _WHOLE:
        return table.whole(key, example, least=0 if key == "torus_dims" else 1)
    return table.positive(key, example)


def _host_network(top: _Table, name: str) -> HostNetwork:
    example = "{ bytes_per_s = 50e9, latency_s = 4e-6 }"
    table = top.table("networks", f"{{ {name} = {example} }}").table(name, example)
    table.only(("bytes_per_s", "latency_s"))
    return HostNetwork(
        name,
        table.positive("bytes_per_s", "50e9  # of one host, one way"),
        table.number("latency_s", "4e-6"),
    )


def _slice(top: _Table, chip: Chip, between: HostNetwork | None) -> Network:
    table = top.table("slice", "{ shape = [4, 4, 4] }")
    table.only(("shape", "wraps", "count"))
    shape = table.get("shape", "[4, 4, 4]")
    if not isinstance(shape, list) or not all(type(s) is int and s > 0 for s in shape):
        raise table.wrong("shape", "a list of whole numbers", "[4, 4, 4]")
    if not chip.torus_dims or len(shape) != chip.torus_dims:
        raise table.wrong(
            "shape", f"of {chip.name}, whose torus has {chip.torus_dims} dimensions", "[4, 4, 4]"
        )
    closed = wraps(tuple(shape))
    of_the_table = chips.CHIPS.get(chip.name) == chip
    if of_the_table:
        try:
            check_slice_shape(chip.name, tuple(shape))
        except MeshError as error:
            raise MeshError(f"{top.path}: {error}") from error
    if table.has("wraps") or not of_the_table:
        given = table.get("wraps", str([True] * len(shape)).lower())
        if not isinstance(given, list) or [type(w) for w in given] != [bool] * len(shape):
            raise table.wrong("wraps", "true or false for each axis", "[true, true, false]")
        closed = tuple(given)
    slices = table.whole("count", "2") if table.has("count") else 1
    if slices > 1 and between is None:
        top.get("between", '"dcn"')
    return Network(top.path, chip, tuple(shape), closed, slices, (), between)


def _grouped(top: _Table, chip: Chip, between: HostNetwork | None) -> Network:
    entries = top.get("groups", "[]")
    if (
        not isinstance(entries, list)
        or not all(isinstance(e, dict) for e in entries)
        or not entries
    ):
        raise top.wrong("groups", "a list of tables", "[[groups]]")
    if chip.torus_dims or chip.devices_per_chip > 1:
        raise MeshError(
            f"{top.path} puts {chip.name} into [[groups]], whose chips a switch joins, and "
            f"{chip.name} has torus links or several devices a chip: describe a [slice] instead"
        )
    groups = []
    for i, entry in enumerate(entries):
        table = _Table(top.path, f"groups.{i}", entry)
        table.only(("name", "hosts", "chips_per_host", "network"))
        groups.append(
            HostGroup(
                table.text("name", f'"group{i}"'),
                table.whole("hosts", "4"),
                table.whole("chips_per_host", "8"),
                _host_network(top, table.text("network", '"infiniband"')),
            )
        )
    if len(groups) > 1 and between is None:
        top.get("between", '"ethernet"')
    return Network(top.path, chip, (), (), 1, tuple(groups), between)
