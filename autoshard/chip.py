"""`Chip`: what one accelerator can do, every figure with its source.

Figures are datasheet peaks. `sources` says for each field where it was found, or, after "derived:",
the formula that gives it from others. What nobody publishes is marked "assumed:", with the reason.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Link:
    """A way out of a chip.

    Attributes:
      count: links of this kind that a chip has.
      bytes_per_s: of one link, one way.
      latency_s: of one hop.
    """

    count: int
    bytes_per_s: float
    latency_s: float


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip; all figures are of the whole chip.

    Attributes:
      name: as it is written in a topology, such as `v5p`.
      platform: `tpu`, `gpu` or `cpu`.
      compiler_name: the chip that its programs are compiled for: itself, if its compiler knows it.
      device_kinds: what JAX calls devices of this chip (`device_kind`).
      devices_per_chip: devices that the compiler sees on a chip.
      chips_per_host: chips that share a host's network.
      torus_dims: dimensions of its torus of links; 0 where a switch joins the chips of a host.
      matrix_units: MXUs, or tensor cores.
      matrix_tile: side of the square tiles in which matrix products are handed to the units.
      multiprocessors: streaming multiprocessors, which work on tiles side by side; 1 where the
        compiler schedules the whole device.
      matrix_flops_per_cycle: of one matrix unit, in bf16 (f32 on CPU).
      clock_hz: of the matrix units, and of the cycles that a compiler writes into a schedule.
      peak_flops: (dtype in HLO's spelling, FLOP/s) pairs of the matrix units; dense.
      vector_flops: FLOP/s of elementwise work in f32.
      hbm_bytes: capacity.
      hbm_bytes_per_s: bandwidth.
      usable_hbm_bytes: what the compiler lets a program have; None where it is not known.
      fast_bytes: VMEM, or shared memory of all streaming multiprocessors.
      link: torus links, or links to the switch of a host.
      die_link: between the dies of a chip that shows as several devices; None where there is one.
      host_bytes_per_s: one way between the chip and its host.
      network: of a host to other hosts or slices (DCN, InfiniBand); None for a CPU.
      sources: (field, source) pairs; every figure has one.
    """

    name: str
    platform: str
    compiler_name: str
    device_kinds: tuple[str, ...]
    devices_per_chip: int
    chips_per_host: int
    torus_dims: int
    matrix_units: int
    matrix_tile: int
    multiprocessors: int
    matrix_flops_per_cycle: int
    clock_hz: float
    peak_flops: tuple[tuple[str, float], ...]
    vector_flops: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    usable_hbm_bytes: int | None
    fast_bytes: int
    link: Link
    die_link: Link | None
    host_bytes_per_s: float
    network: Link | None
    sources: tuple[tuple[str, str], ...] = dataclasses.field(repr=False)

    @property
    def memory_bytes(self) -> int:
        """HBM that programs on the chip can have: the compiler's figure, else the datasheet's."""
        return self.usable_hbm_bytes or self.hbm_bytes

    def source(self, field: str) -> str:
        """Where a figure is from."""
        return dict(self.sources)[field]
