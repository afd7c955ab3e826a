"""The mesh of a run, from the text of `--mesh`.

data=2,model=4    named axes over the devices of this process's backend
cpu:8             any topology that autoshard knows, by its name
"""

import math
import os
import re
from typing import TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from autoshard.errors import MeshError

Axes: TypeAlias = tuple[tuple[str, int], ...]

_COUNT_FLAG = "xla_force_host_platform_device_count"


def parse_axes(text: str) -> Axes | None:
    """Reads `data=2,model=4`; None for text without `=`, which is a topology's name or empty.

    Raises:
      MeshError: an axis has no name or no size of at least 1, or a name occurs twice.
    """
    if "=" not in text:
        return None
    axes = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*(\d+)\s*", part)
        if match is None or int(match[2]) < 1:
            raise MeshError(
                f"--mesh={text!r}: {part!r} is not an axis. Write name=size pairs with sizes of at "
                f"least 1, such as data=2,model=4."
            )
        axes.append((match[1], int(match[2])))
    names = [name for name, _ in axes]
    if len(set(names)) < len(names):
        raise MeshError(f"--mesh={text!r} names an axis twice; give each its own name.")
    return tuple(axes)


def host_device_count(text: str) -> int:
    """How many CPU devices `--mesh` asks for; 1 where it does not say."""
    axes = parse_axes(text)
    if axes is not None:
        return math.prod(size for _, size in axes)
    match = re.fullmatch(r"cpu:(\d+(?:x\d+)*)", text.strip())
    return math.prod(map(int, match[1].split("x"))) if match else 1


def force_host_devices(text: str) -> None:
    """Lets the CPU backend show as many devices as `--mesh` needs.

    Must be called before JAX starts its backends. Other backends ignore it, and a number that the
    user has put into XLA_FLAGS stays.
    """
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if _COUNT_FLAG not in xla_flags:
        count = host_device_count(text)
        os.environ["XLA_FLAGS"] = f"{xla_flags} --{_COUNT_FLAG}={count}".strip()


def stay_on_cpu() -> None:
    """Leaves accelerators of this machine alone: planning needs none, and they may be in use.

    Must be called before JAX starts its backends; JAX_PLATFORMS in the environment prevails.
    """
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")


def make_mesh(text: str) -> Mesh | str:
    """The mesh, or the topology's name for autoshard to read.

    Raises:
      MeshError: it cannot be read, or there are too few devices.
    """
    axes = parse_axes(text)
    if axes is None and text:
        return text
    devices = jax.devices()
    axes = axes or (("data", len(devices)),)
    names, sizes = zip(*axes, strict=True)
    count = math.prod(sizes)
    if count > len(devices):
        raise MeshError(
            f"--mesh={text!r} needs {count} devices, but this process has {len(devices)} "
            f"({devices[0].platform}). Choose smaller axes, or on CPU unset {_COUNT_FLAG} in "
            f"XLA_FLAGS, so that the runner sets it."
        )
    return Mesh(
        np.array(devices[:count]).reshape(sizes), names, axis_types=(AxisType.Auto,) * len(names)
    )
