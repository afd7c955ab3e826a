"""Small HLO texts and machines to try the reader and the simulator on."""

import itertools
import textwrap

from passes.hlo.machine import Axis, Fabric, MachineModel
from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.parse import parse


def text_of(entry: str, *computations: str, partitions: int = 1) -> str:
    """The text of a scheduled module; each computation is `name` on a line, its body below."""
    parts = [f"HloModule test, is_scheduled=true, num_partitions={partitions}\n"]
    for computation in computations:
        name, body = textwrap.dedent(computation).strip("\n").split("\n", 1)
        parts.append(_computation(f"%{name}", body))
    parts.append(_computation("ENTRY %main", textwrap.dedent(entry).strip("\n")))
    return "\n".join(parts)


def _computation(name: str, body: str) -> str:
    return f"{name} (p: f32[]) -> f32[] {{\n{textwrap.indent(textwrap.dedent(body), '  ')}\n}}\n"


def module_of(entry: str, *computations: str, partitions: int = 1) -> HloModule:
    """`text_of`, read; nothing in it is unknown."""
    module = parse(text_of(entry, *computations, partitions=partitions))
    assert module.unknown == ()
    return module


def in_entry(module: HloModule, name: str) -> tuple[HloModule, Computation, Instruction]:
    """What functions on instructions take, of an instruction of the entry."""
    return module, module.entry_computation, module.entry_computation.by_name[name]


def machine_of(*axes: Axis, hbm_bytes_per_s: float = 1e9, efficiency: float = 1.0) -> MachineModel:
    """A machine of round figures: 1 GHz, 1 TFLOP/s, 1 GB/s of HBM, 0.5 GB/s to the host."""
    return MachineModel(
        name="test",
        platform="tpu",
        clock_hz=1e9,
        peak_flops=(("f32", 1e12), ("bf16", 2e12)),
        vector_flops=1e11,
        hbm_bytes=1 << 34,
        hbm_bytes_per_s=hbm_bytes_per_s,
        fast_bytes=1 << 20,
        host_bytes_per_s=0.5e9,
        axes=axes,
        coordinates=tuple(itertools.product(*(range(axis.size) for axis in axes))),
        efficiency=efficiency,
    )


def ring(size: int, name: str = "x", *, bytes_per_s: float = 1e9, latency_s: float = 0.0) -> Axis:
    """A torus axis that closes."""
    return Axis(name, size, Fabric.TORUS, True, bytes_per_s, latency_s)


def line(size: int, name: str = "x", *, bytes_per_s: float = 1e9, latency_s: float = 0.0) -> Axis:
    """A torus axis that does not."""
    return Axis(name, size, Fabric.TORUS, False, bytes_per_s, latency_s)


def switch(size: int, name: str = "s", *, bytes_per_s: float = 1e9, latency_s: float = 0.0) -> Axis:
    """Devices behind a switch."""
    return Axis(name, size, Fabric.SWITCH, False, bytes_per_s, latency_s)
