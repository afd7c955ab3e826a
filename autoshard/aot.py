"""Devices that are not here, for compilation only."""

import importlib.util
import os
from typing import Any

from jax.experimental import topologies

from autoshard.errors import DeviceError, MeshError


def tpu_devices(name: str) -> tuple[Any, ...]:
    """The chips of a TPU slice such as `v5e:2x4`, in the compiler's order.

    libtpu's compiler then takes programs for them; nothing can run on them.

    Raises:
      DeviceError: libtpu is not installed.
      MeshError: libtpu knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise DeviceError(
            f"compiling for {name} needs libtpu, TPU or not: pip install 'jax[tpu]' "
            "(of the version of jax that is installed)"
        )
    # Without these libtpu looks for a TPU's metadata server, and a second process that loads it
    # stops at a lock file.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return tuple(topologies.get_topology_desc(name, platform="tpu").devices)
    except Exception as error:
        raise MeshError(
            f"libtpu cannot describe {name!r}: write a chip and a shape, such as 'v5e:2x4' or "
            f"'v5p:4x4x4' ({str(error).splitlines()[0]})"
        ) from error
