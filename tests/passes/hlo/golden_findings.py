"""What the reader and the simulator find in a program, as plain data for a golden file."""

import collections
from typing import Any

from autoshard.machine import machine_model
from autoshard.topology import Topology
from passes.hlo.loops import trip_count
from passes.hlo.module import HloModule
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate


def trip_counts(module: HloModule) -> list[int | None]:
    """Of every loop, in the text's order."""
    return [
        trip_count(module, computation, i)
        for computation in module.computations.values()
        for i in computation.instructions
        if i.opcode == "while"
    ]


def findings(text: str, topology: str) -> dict[str, Any]:
    """Everything is counted from the text; no times, which are the machine model's."""
    module = parse(text)
    timeline = simulate(module, machine_model(Topology.parse(topology)))
    instructions = [i for c in module.computations.values() for i in c.instructions]
    collectives = collections.Counter(
        (c.kind, c.payload_bytes, c.group_size, c.repeats) for c in timeline.collectives
    )
    keys = ("kind", "payload_bytes", "group_size", "repeats")
    return {
        "unknown": list(module.unknown),
        "unmodelled": list(timeline.unmodelled),
        "device_count": module.device_count,
        "computations": len(module.computations),
        "opcodes": dict(sorted(collections.Counter(i.opcode for i in instructions).items())),
        "sources": sorted({module.source(i) for i in instructions} - {""}),
        "trip_counts": trip_counts(module),
        "flops": timeline.flops,
        "collectives": [
            {**dict(zip(keys, key, strict=True)), "count": count}
            for key, count in sorted(collectives.items())
        ],
    }
