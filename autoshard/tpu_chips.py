"""TPU chips: figures of the datasheets, and where each was found."""

from autoshard.chip import GIB, Chip, Link

_BOOK = '"How to Scale Your Model", chapter "How to Think About TPUs", tables of TPU specs'
_COMPILER_HBM = "libtpu 0.0.42.1: 'exceeds available HBM' of a program that does not fit"
_VMEM = "jax.experimental.pallas.tpu.get_tpu_info, jax 0.10.2: VMEM of a TensorCore, times cores"
_VPU = (
    "derived: TensorCores * 8 * 128 lanes * 4 ALUs * clock; ALUs of v5p from "
    '"How to Think About GPUs", quiz 1'
)
_LINK = (
    f"{_BOOK}: links and bytes/s one way (the datasheet's total of both ways, divided by 2 * links,"
    ' is 1/9 more); 1 us a hop from its question 5, "ICI bandwidth", for every TPU'
)
_DCN_LATENCY = "; latency assumed: 10 us, the order of a datacentre's kernel-bypass transport"


def _tpu_sources(document: str, **others: str) -> tuple[tuple[str, str], ...]:
    """Sources of a TPU: one document of Google's for most figures, and what differs."""
    document = f'Google Cloud documentation, "{document}"'
    sources = {
        "devices_per_chip": f"{document}; libtpu's deviceless topology shows as many",
        "chips_per_host": document,
        "torus_dims": document,
        "matrix_units": f"{document}: MXUs of a TensorCore, times TensorCores",
        "matrix_tile": f"{_BOOK}: side of an MXU",
        "multiprocessors": "none: the compiler schedules the whole device",
        "matrix_flops_per_cycle": f"{_BOOK}: 128 x 128 multiply-adds a cycle before v6e",
        "clock_hz": "derived: bf16 peak / (matrix_units * matrix_flops_per_cycle)",
        "peak_flops": document,
        "vector_flops": _VPU,
        "hbm_bytes": document,
        "hbm_bytes_per_s": document,
        "usable_hbm_bytes": _COMPILER_HBM,
        "fast_bytes": _VMEM,
        "link": _LINK,
        "die_link": "none: the compiler sees one device a chip",
        "host_bytes_per_s": f"{_BOOK}: PCIe a TPU",
        "network": f"{document}: DCN of a chip, times chips of a host{_DCN_LATENCY}",
    }
    return tuple((sources | others).items())


_V4 = Chip(
    name="v4",
    platform="tpu",
    compiler_name="v4",
    device_kinds=("TPU v4",),
    devices_per_chip=1,
    chips_per_host=4,
    torus_dims=3,
    matrix_units=8,
    matrix_tile=128,
    multiprocessors=1,
    matrix_flops_per_cycle=2 * 128 * 128,
    clock_hz=1.05e9,
    peak_flops=(("bf16", 275e12), ("s8", 275e12)),
    vector_flops=2 * 8 * 128 * 2 * 1.05e9,
    hbm_bytes=32 * GIB,
    hbm_bytes_per_s=1200e9,
    usable_hbm_bytes=int(30.75 * GIB),
    fast_bytes=2 * 16 * 2**20,
    link=Link(6, 4.5e10, 1e-6),
    die_link=None,
    host_bytes_per_s=1.6e10,
    network=Link(1, 2.5e10, 10e-6),
    sources=_tpu_sources(
        "TPU v4",
        devices_per_chip='Google Cloud documentation, "TPU v4": two cores, one megacore device',
        vector_flops=f"{_VPU}; v4 has 2 ALUs a lane, {_BOOK}, appendix",
        network=f"{_BOOK}: DCN a TPU, times chips of a host{_DCN_LATENCY}",
    ),
)

_V5E = Chip(
    name="v5e",
    platform="tpu",
    compiler_name="v5e",
    device_kinds=("TPU v5 lite", "TPU v5e"),
    devices_per_chip=1,
    chips_per_host=8,
    torus_dims=2,
    matrix_units=4,
    matrix_tile=128,
    multiprocessors=1,
    matrix_flops_per_cycle=2 * 128 * 128,
    clock_hz=1.5e9,
    peak_flops=(("bf16", 197e12), ("s8", 393e12)),
    vector_flops=8 * 128 * 4 * 1.5e9,
    hbm_bytes=16 * GIB,
    hbm_bytes_per_s=819e9,
    usable_hbm_bytes=int(15.75 * GIB),
    fast_bytes=128 * 2**20,
    link=Link(4, 4.5e10, 1e-6),
    die_link=None,
    host_bytes_per_s=1.6e10,
    network=Link(1, 2.5e10, 10e-6),
    sources=_tpu_sources(
        "TPU v5e",
        network='Google Cloud documentation, "TPU v6e" (compared with v5e): 2 x 100 Gbps a host'
        + _DCN_LATENCY,
    ),
)

_V5P = Chip(
    name="v5p",
    platform="tpu",
    compiler_name="v5p",
    device_kinds=("TPU v5", "TPU v5p"),
    devices_per_chip=1,
    chips_per_host=4,
    torus_dims=3,
    matrix_units=8,
    matrix_tile=128,
    multiprocessors=1,
    matrix_flops_per_cycle=2 * 128 * 128,
    clock_hz=1.75e9,
    peak_flops=(("bf16", 459e12), ("s8", 918e12), ("f8e4m3fn", 459e12), ("f8e5m2", 459e12)),
    vector_flops=2 * 8 * 128 * 4 * 1.75e9,
    hbm_bytes=95 * GIB,
    hbm_bytes_per_s=2765e9,
    usable_hbm_bytes=int(95.74 * GIB),
    fast_bytes=2 * 64 * 2**20,
    link=Link(6, 9e10, 1e-6),
    die_link=None,
    host_bytes_per_s=1.6e10,
    network=Link(1, 2.5e10, 10e-6),
    sources=_tpu_sources(
        "TPU v5p",
        devices_per_chip='Google Cloud documentation, "TPU7x": v5p is one megacore device',
        peak_flops=f'Google Cloud documentation, "TPU v5p"; s8 from {_BOOK}',
    ),
)

_V6E = Chip(
    name="v6e",
    platform="tpu",
    compiler_name="v6e",
    device_kinds=("TPU v6 lite", "TPU v6e"),
    devices_per_chip=1,
    chips_per_host=8,
    torus_dims=2,
    matrix_units=2,
    matrix_tile=256,
    multiprocessors=1,
    matrix_flops_per_cycle=2 * 2 * 256 * 256,
    clock_hz=1.75e9,
    peak_flops=(("bf16", 918e12), ("s8", 1836e12), ("f8e4m3fn", 918e12), ("f8e5m2", 918e12)),
    vector_flops=8 * 128 * 4 * 1.75e9,
    hbm_bytes=32 * GIB,
    hbm_bytes_per_s=1638e9,
    usable_hbm_bytes=int(31.25 * GIB),
    fast_bytes=128 * 2**20,
    link=Link(4, 9e10, 1e-6),
    die_link=None,
    host_bytes_per_s=3.2e10,
    network=Link(1, 1e11, 10e-6),
    sources=_tpu_sources(
        "TPU v6e",
        matrix_flops_per_cycle="derived: two 256 x 256 products a cycle; libtpu 0.0.42.1 schedules "
        "an 8192^3 bf16 product in 2,977,840 cycles, more than one product a cycle could do",
        vector_flops=f"{_VPU}; ALUs of v6e assumed to be those of v5p",
        peak_flops='Google Cloud documentation, "TPU v6e"; f8 from "TPU7x" (compared with v6e)',
        hbm_bytes_per_s='Google Cloud documentation, "TPU7x" (compared with v6e)',
        network='Google Cloud documentation, "TPU v6e": 4 x 200 Gbps a host' + _DCN_LATENCY,
    ),
)

_TPU7X = Chip(
    name="tpu7x",
    platform="tpu",
    compiler_name="tpu7x",
    device_kinds=("TPU7x",),
    devices_per_chip=2,
    chips_per_host=4,
    torus_dims=3,
    matrix_units=4,
    matrix_tile=256,
    multiprocessors=1,
    matrix_flops_per_cycle=2 * 2 * 256 * 256,
    clock_hz=2.2e9,
    peak_flops=(("bf16", 2307e12), ("f8e4m3fn", 4614e12), ("f8e5m2", 4614e12)),
    vector_flops=2 * 8 * 128 * 4 * 2.2e9,
    hbm_bytes=192 * GIB,
    hbm_bytes_per_s=7380e9,
    usable_hbm_bytes=2 * int(94.75 * GIB),
    fast_bytes=2 * 64 * 2**20,
    link=Link(6, 9e10, 1e-6),
    die_link=Link(1, 6 * 9e10, 1e-6),
    host_bytes_per_s=3.2e10,
    network=Link(1, 5e10, 10e-6),
    sources=_tpu_sources(
        "TPU7x (Ironwood)",
        matrix_units="jax.experimental.pallas.tpu.get_tpu_info, jax 0.10.2: 2 MXUs a TensorCore",
        matrix_flops_per_cycle="derived: two 256 x 256 products a cycle; libtpu 0.0.42.1 schedules "
        "an 8192^3 bf16 product on one of two devices in 2,604,600 cycles",
        vector_flops=f"{_VPU}; ALUs of TPU7x assumed to be those of v5p",
        usable_hbm_bytes=f"{_COMPILER_HBM}, times 2 devices",
        die_link='derived: Google Cloud documentation, "TPU7x": six times a link; latency of a hop',
        host_bytes_per_s="assumed: not published; that of v6e",
    ),
)

TPUS = (_V4, _V5E, _V5P, _V6E, _TPU7X)
