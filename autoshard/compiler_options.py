"""Options of the TPU compiler that decide much and cost nothing to give.

A program is compiled with those of its chip, its plan's above them, and the user's above those.

Figures are simulated from the compiler's schedules (libtpu 0.0.42.1); nothing was run. On 256 v6e
with batches of several sequences of 4,096 tokens, the compiler writes the masks and scales of
attention to memory under its own limit of 32 MiB: a step of Llama-3-8B under ZeRO-3 times tensor
parallelism of 4 takes 2383 ms and 13.0 GiB, with 64 MiB 1377 ms and 8.7 GiB. Published recipes for
v6e give it 96 MiB (MaxText, `xla_flags_library.py`).
"""

import dataclasses
from collections.abc import Mapping

from autoshard.topology import Topology


@dataclasses.dataclass(frozen=True)
class OptionSet:
    """Options that belong together.

    Attributes:
      name: in words.
      options: (name, value) pairs.
    """

    name: str
    options: tuple[tuple[str, str], ...]


# VMEM that one operation may take for itself; the rest holds values between operations.
_SCOPED_VMEM = "xla_tpu_scoped_vmem_limit_kib"

_OF_CHIP: Mapping[str, Mapping[str, str]] = {"v6e": {_SCOPED_VMEM: str(64 * 1024)}}

# Collectives run beside computation, whose values live longer for it: it is for whoever compiles
# a program to see whether it fits, and whether it is quicker.
ASYNC_COLLECTIVES = OptionSet(
    "asynchronous collectives",
    (
        ("xla_enable_async_all_gather", "true"),
        ("xla_enable_async_all_reduce", "true"),
        ("xla_tpu_enable_async_collective_fusion", "true"),
        ("xla_tpu_enable_async_collective_fusion_fuse_all_gather", "true"),
        ("xla_tpu_enable_async_collective_fusion_fuse_all_reduce", "true"),
        ("xla_tpu_enable_async_collective_fusion_multiple_steps", "true"),
        ("xla_tpu_overlap_compute_collective_tc", "true"),
    ),
)


def of_chip(topology: Topology) -> dict[str, str]:
    """What programs for a machine's chips are compiled with; empty where nothing is known."""
    return {} if topology.chip is None else dict(_OF_CHIP.get(topology.chip.name, {}))


def alternatives(topology: Topology) -> tuple[OptionSet, ...]:
    """Options under which a step may be quicker, or slower."""
    several = topology.device_count > 1
    return (ASYNC_COLLECTIVES,) if topology.platform == "tpu" and several else ()
