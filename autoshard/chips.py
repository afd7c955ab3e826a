"""The chips that are known by name."""

import difflib

from autoshard.chip import Chip
from autoshard.errors import MeshError
from autoshard.gpu_chips import CPU, GPUS
from autoshard.tpu_chips import TPUS

CHIPS: dict[str, Chip] = {chip.name: chip for chip in (*TPUS, *GPUS, CPU)}


def get(name: str) -> Chip:
    """A chip of the table by its name.

    Raises:
      MeshError: the table has no such chip; the message has the nearest names.
    """
    if name in CHIPS:
        return CHIPS[name]
    near = difflib.get_close_matches(name, CHIPS, n=3, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise MeshError(
        f"no chip {name!r} is known: {hint}The table has {', '.join(sorted(CHIPS))}; describe "
        "another in a TOML file (docs/targets.md)"
    )


def of_device_kind(kind: str) -> Chip | None:
    """The chip whose devices JAX names `kind`, such as `TPU v5 lite`; None if it is not known."""
    return next((chip for chip in CHIPS.values() if kind in chip.device_kinds), None)
