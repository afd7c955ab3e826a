"""GPUs, and the CPU: figures of the datasheets, and where each was found."""

import dataclasses

from autoshard.chip import GIB, Chip, Link

_BOOK = '"How to Scale Your Model", chapter "How to Think About GPUs"'
_NCCL = "; latency from NCCL's own tuning model (src/graph/tuning.cc), ring with protocol LL128"
_XLA = "XLA's target description (xla/backends/gpu/target_config/specs)"


def _gpu_sources(document: str, system: str, **others: str) -> tuple[tuple[str, str], ...]:
    """Sources of a GPU: NVIDIA's document of the chip and of the eight-GPU system around it."""
    sources = {
        "devices_per_chip": document,
        "chips_per_host": system,
        "torus_dims": f"{system}: NVSwitch joins the GPUs of a host",
        "matrix_units": f"{document}: tensor cores",
        "matrix_tile": "assumed: 128, a common tile of cuBLAS and CUTLASS kernels",
        "multiprocessors": f"{document}: streaming multiprocessors",
        "matrix_flops_per_cycle": f"{_BOOK}: FLOPs of a tensor core in a cycle",
        "clock_hz": "derived: bf16 peak / (matrix_units * matrix_flops_per_cycle)",
        "peak_flops": f"{document}, dense; f32 is its TF32 row, as XLA runs f32 products",
        "vector_flops": f"{document}: FP32 without tensor cores",
        "hbm_bytes": document,
        "hbm_bytes_per_s": document,
        "usable_hbm_bytes": "not published: depends on the share that the client preallocates",
        "fast_bytes": f"derived: multiprocessors * shared memory of one, {_XLA}",
        "link": f"{document}: NVLink, one way{_NCCL}",
        "die_link": "none: the compiler sees one device a chip",
        "host_bytes_per_s": f"{document}: PCIe x16, one way",
        "network": f"{system}: its compute network adapters{_NCCL}",
    }
    return tuple((sources | others).items())


_A100 = Chip(
    name="a100",
    platform="gpu",
    compiler_name="a100",
    device_kinds=("NVIDIA A100-SXM4-80GB",),
    devices_per_chip=1,
    chips_per_host=8,
    torus_dims=0,
    matrix_units=432,
    matrix_tile=128,
    multiprocessors=108,
    matrix_flops_per_cycle=512,
    clock_hz=1.41e9,
    peak_flops=(
        ("bf16", 312e12),
        ("f16", 312e12),
        ("f32", 156e12),
        ("f64", 19.5e12),
        ("s8", 624e12),
    ),
    vector_flops=19.5e12,
    hbm_bytes=80 * 10**9,
    hbm_bytes_per_s=2039e9,
    usable_hbm_bytes=None,
    fast_bytes=108 * 167936,
    link=Link(12, 25e9, 1.9e-6),
    die_link=None,
    host_bytes_per_s=32e9,
    network=Link(8, 25e9, 4e-6),
    sources=_gpu_sources("NVIDIA A100 Tensor Core GPU datasheet, 80GB SXM", "NVIDIA DGX A100"),
)

_H100 = Chip(
    name="h100",
    platform="gpu",
    compiler_name="h100",
    device_kinds=("NVIDIA H100 80GB HBM3",),
    devices_per_chip=1,
    chips_per_host=8,
    torus_dims=0,
    matrix_units=528,
    matrix_tile=128,
    multiprocessors=132,
    matrix_flops_per_cycle=1024,
    clock_hz=1.83e9,
    peak_flops=(
        ("bf16", 989.4e12),
        ("f16", 989.4e12),
        ("f32", 494.7e12),
        ("f64", 66.9e12),
        ("s8", 1978.9e12),
        ("f8e4m3fn", 1978.9e12),
        ("f8e5m2", 1978.9e12),
    ),
    vector_flops=66.9e12,
    hbm_bytes=80 * 10**9,
    hbm_bytes_per_s=3.35e12,
    usable_hbm_bytes=None,
    fast_bytes=132 * 233472,
    link=Link(18, 25e9, 1.9e-6),
    die_link=None,
    host_bytes_per_s=64e9,
    network=Link(8, 50e9, 4e-6),
    sources=_gpu_sources(
        "NVIDIA H100 Tensor Core GPU Architecture whitepaper, H100 SXM5", "NVIDIA DGX H100"
    ),
)

_H200 = dataclasses.replace(
    _H100,
    name="h200",
    compiler_name="h200",
    device_kinds=("NVIDIA H200",),
    hbm_bytes=141 * 10**9,
    hbm_bytes_per_s=4.8e12,
    sources=_gpu_sources(
        "NVIDIA H200 Tensor Core GPU datasheet, H200 SXM",
        "NVIDIA DGX H200",
        peak_flops="NVIDIA H100 Tensor Core GPU Architecture whitepaper, H100 SXM5, dense: same "
        "chip; f32 is its TF32 row, as XLA runs f32 products",
    ),
)

_B200 = Chip(
    name="b200",
    platform="gpu",
    compiler_name="b200",
    device_kinds=("NVIDIA B200",),
    devices_per_chip=1,
    chips_per_host=8,
    torus_dims=0,
    matrix_units=592,
    matrix_tile=128,
    multiprocessors=148,
    matrix_flops_per_cycle=2048,
    clock_hz=1.856e9,
    peak_flops=(
        ("bf16", 2250e12),
        ("f16", 2250e12),
        ("f32", 1125e12),
        ("f64", 37e12),
        ("s8", 4500e12),
        ("f8e4m3fn", 4500e12),
        ("f8e5m2", 4500e12),
    ),
    vector_flops=75e12,
    hbm_bytes=180 * 10**9,
    hbm_bytes_per_s=8e12,
    usable_hbm_bytes=None,
    fast_bytes=148 * 233472,
    link=Link(18, 50e9, 1.9e-6),
    die_link=None,
    host_bytes_per_s=64e9,
    network=Link(8, 50e9, 4e-6),
    sources=_gpu_sources(
        "NVIDIA HGX B200 datasheet, divided by eight GPUs",
        "NVIDIA DGX B200",
        matrix_units="derived: 4 tensor cores a multiprocessor",
        multiprocessors=_XLA,
    ),
)

CPU = Chip(
    name="cpu",
    platform="cpu",
    compiler_name="cpu",
    device_kinds=("cpu",),
    devices_per_chip=1,
    chips_per_host=64,
    torus_dims=0,
    matrix_units=1,
    matrix_tile=8,
    multiprocessors=1,
    matrix_flops_per_cycle=2 * 2 * 8,
    clock_hz=2.45e9,
    peak_flops=(("f32", 78.4e9),),
    vector_flops=78.4e9,
    hbm_bytes=64 * GIB,
    hbm_bytes_per_s=3.2e9,
    usable_hbm_bytes=None,
    fast_bytes=512 * 2**10,
    link=Link(1, 3.2e9, 1e-6),
    die_link=None,
    host_bytes_per_s=3.2e9,
    network=None,
    sources=tuple(
        (field, f"AMD EPYC 7763 datasheet, one core of 64{note}")
        for field, note in (
            ("devices_per_chip", "; a device stands for a core"),
            ("chips_per_host", ""),
            ("torus_dims", ": cores share the host's memory"),
            ("matrix_units", "; derived: its vector unit"),
            ("matrix_tile", "; derived: lanes of a vector"),
            ("multiprocessors", ""),
            ("matrix_flops_per_cycle", "; derived: 2 pipes * 8 lanes * multiply and add (AVX2)"),
            ("clock_hz", ": base clock"),
            ("peak_flops", "; derived: matrix_flops_per_cycle * clock"),
            ("vector_flops", "; derived: as peak_flops"),
            ("hbm_bytes", ": up to 4 TiB, shared"),
            ("hbm_bytes_per_s", ": 204.8 GB/s, shared"),
            ("usable_hbm_bytes", ": not limited by the compiler"),
            ("fast_bytes", ": level 2 cache"),
            ("link", "; assumed: a copy at the memory's bandwidth, 1 us to hand over"),
            ("die_link", ": none"),
            ("host_bytes_per_s", "; derived: the device's memory is the host's"),
            ("network", ": none, devices of one process"),
        )
    ),
)

GPUS = (_A100, _H100, _H200, _B200)
