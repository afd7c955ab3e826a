"""`Topology`: a machine, whether it is here or not."""

import dataclasses
import math
import re

from autoshard import chips, networks
from autoshard.chip import Chip
from autoshard.errors import MeshError
from autoshard.networks import Network
from autoshard.slice_shapes import check_slice_shape, format_shape, wraps

_PLATFORMS = ("cpu", "gpu", "tpu")
_MOST_DEVICES = 1_000_000  # each is described by itself
_FORMS = "'v5p:4x4x4', '2x v5e:16x16' (slices), 'h100:8x4' (GPUs a host x hosts), 'cpu:8'"


PLATFORMS = ("cpu", "gpu", "tpu")


@dataclasses.dataclass(frozen=True)
class Topology:
    """A set of devices that need not be here.

    Attributes:
      platform: `cpu`, `gpu` or `tpu`.
      device_count: number of devices, as the compiler counts them.
      chip: what the devices are; None where only the platform is known (`tpu:8`).
      shape: of one slice in chips, x first; of GPUs, chips a host and hosts; empty where the
        platform is all that is known, on CPU, and where `network` has groups of hosts.
      slices: number of slices.
      network: the file that describes the machine; None for one of the table.
    """

    platform: str
    device_count: int
    chip: Chip | None = None
    shape: tuple[int, ...] = ()
    slices: int = 1
    network: Network | None = None

    def __post_init__(self) -> None:
        if self.platform not in PLATFORMS:
            raise MeshError(
                f"platform {self.platform!r} is unknown: it is one of {', '.join(PLATFORMS)}; to "
                "run on the CPU set JAX_PLATFORMS=cpu"
            )
        if self.device_count > _MOST_DEVICES:
            raise MeshError(
                f"{self} has {self.device_count:,} devices, and machines of at most "
                f"{_MOST_DEVICES:,} are described: name a smaller one"
            )

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """From `v5p:4x4x4`, `2x v5e:16x16`, `h100:8x4`, `cpu:8`, `tpu:8` or a TOML file's path.

        Raises:
          MeshError: the text is of no such form, the chip or the shape is unknown, or the file
            cannot be read.
        """
        text = text.strip()
        if text.endswith(".toml"):
            return _of_network(networks.load(text))
        match = re.fullmatch(r"(?:(\d{1,5})x\s*)?([a-z]\w*):(\d{1,5}(?:x\d{1,5})*)", text.lower())
        if match is None:
            raise MeshError(
                f"cannot read topology {text!r}: write a chip and a shape, such as {_FORMS}, the "
                "path of a TOML file, or mesh axes such as 'data=2,model=4'"
            )
        slices = int(match[1] or 1)
        shape = tuple(map(int, match[3].split("x")))
        try:
            return _of_chip(match[2], shape, slices)
        except MeshError as error:
            raise MeshError(f"cannot read topology {text!r}: {error}") from error

    def __str__(self) -> str:
        if self.network is not None:
            return self.network.path
        if self.chip is None or not self.shape:
            return f"{self.platform}:{self.device_count}"
        return f"{self.slices}x {self.slice_name}" if self.slices > 1 else self.slice_name

    @property
    def slice_name(self) -> str:
        """One slice, such as `v5p:4x4x4`; of GPUs, the whole machine."""
        return f"{self.known_chip.name}:{format_shape(self.shape)}"

    @property
    def compiler_name(self) -> str:
        """What to compile for: the machine as a compiler knows it, without the user's network."""
        if self.network is None:
            return str(self)
        name = self.network.chip.compiler_name
        if not self.network.groups:
            slices = f"{self.slices}x " if self.slices > 1 else ""
            return f"{slices}{name}:{format_shape(self.shape)}"
        per_host = math.gcd(*(group.chips_per_host for group in self.network.groups))
        hosts = self.device_count // per_host
        return f"{name}:{per_host}x{hosts}"

    @property
    def known_chip(self) -> Chip:
        """What the devices are.

        Raises:
          MeshError: only the platform is known.
        """
        if self.chip is not None:
            return self.chip
        if self.platform == "cpu":
            return chips.CHIPS["cpu"]
        raise MeshError(
            f"{self} names {self.device_count} devices but no chip, so nothing is known of their "
            f"speed or memory: name the chip and the shape, such as {_FORMS}"
        )

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each axis of `shape` closes to a ring; empty where there is no torus."""
        if self.network is not None:
            return self.network.wraps
        return wraps(self.shape) if self.chip is not None and self.chip.torus_dims else ()


def _of_chip(name: str, shape: tuple[int, ...], slices: int) -> Topology:
    if min(shape) < 1 or slices < 1:
        raise MeshError("sizes are at least 1")
    if name in _PLATFORMS:
        if len(shape) > 1 or slices > 1:
            raise MeshError(f"{name} takes a number of devices, such as '{name}:8'")
        return Topology(name, shape[0])
    try:
        chip = chips.get(name)
    except MeshError as error:
        raise MeshError(
            f"{error}. Where only the platform matters, write one of {', '.join(_PLATFORMS)} and "
            "a number of devices"
        ) from error
    if chip.torus_dims:
        check_slice_shape(name, shape)
        count = math.prod(shape) * slices * chip.devices_per_chip
        return Topology(chip.platform, count, chip, shape, slices)
    return _of_hosts(chip, shape, slices)


def _of_hosts(chip: Chip, shape: tuple[int, ...], slices: int) -> Topology:
    per_host, hosts = (*shape, 1)[:2]
    if slices > 1 or len(shape) > 2:
        raise MeshError(
            f"{chip.name} takes chips a host and hosts, such as '{chip.name}:8x{max(slices, 4)}'"
        )
    if per_host > chip.chips_per_host:
        most = chip.chips_per_host
        rounded = -(-per_host * hosts // most)
        raise MeshError(
            f"a host has at most {most} {chip.name}, not {per_host}: write "
            f"'{chip.name}:{most}x{rounded}' for {most * rounded} of them on {rounded} hosts"
        )
    return Topology(
        chip.platform, per_host * hosts, chip, (per_host,) if hosts == 1 else (per_host, hosts)
    )


def _of_network(network: Network) -> Topology:
    per_group = [group.hosts * group.chips_per_host for group in network.groups]
    chip_count = sum(per_group) if network.groups else math.prod(network.shape) * network.slices
    return Topology(
        network.chip.platform,
        chip_count * network.chip.devices_per_chip,
        network.chip,
        network.shape,
        network.slices,
        network,
    )
