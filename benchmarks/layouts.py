"""What each rule set costs a small GPT-2 and Llama on eight CPU devices: estimated beside compiled.

  python -m benchmarks.layouts

Memory is the compiler's (`memory_analysis`), bytes moved are counted in the compiled HLO (a ring's
share of every collective). Figures are of the CPU compiler: it turns reduce-scatters into
all-reduces and slices, so the gradients of zero2 and zero3 move twice what they do on TPU and GPU,
and it merges the second gather of a ZeRO-3 parameter with the first.
"""

import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

import autoshard
import models
from autoshard.explain import format_bytes
from autoshard.machine import machine_model
from autoshard.topology import Topology
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate

CASES = (
    ("data=8", ("data", "zero1", "zero2", "zero3")),
    ("data=2,model=4", ("redco", "zero3+redco", "auto")),
)
# Times that a ring moves the data: an all-reduce is a reduce-scatter and an all-gather.
PASSES = {"all-reduce": 2}


def sent_bytes(text: str) -> float:
    """Bytes that a device sends in a step: a ring's share of every collective, loops multiplied."""
    timeline = simulate(parse(text), machine_model(Topology.parse("cpu:8")))
    return sum(
        PASSES.get(c.kind, 1)
        * c.payload_bytes
        * c.repeats
        * (1 if c.kind == "collective-permute" else (c.group_size - 1) / c.group_size)
        for c in timeline.collectives
    )


def row(spec: models.ModelSpec, mesh: str, rules: str) -> str:
    """One line of the table."""
    compiled: Any = autoshard.compile(
        spec.build(), mesh, batch=spec.example_batch(32, 128), rules=rules
    )
    report = compiled.memory_report()
    sent = sent_bytes(compiled.lower().compile().as_text())
    chosen = "+".join(compiled.plan.rules) if rules == "auto" else ""
    return (
        f"{spec.name:12} {mesh:15} {rules:12} {format_bytes(report.estimate.total_bytes):>9} "
        f"{format_bytes(report.compiled_bytes):>9} "
        f"{report.estimate.total_bytes / report.compiled_bytes:>6.2f} "
        f"{format_bytes(compiled.plan.cost.moved_bytes):>9} {format_bytes(sent):>9} "
        f"{compiled.plan.cost.moved_bytes / max(sent, 1):>6.2f}  {chosen}"
    )


def main() -> None:
    """Print the table."""
    print(
        f"{'model':12} {'mesh':15} {'rules':12} {'est.mem':>9} {'compiled':>9} {'ratio':>6} "
        f"{'est.sent':>9} {'compiled':>9} {'ratio':>6}  chosen"
    )
    for name in ("gpt2_tiny", "llama3_tiny"):
        for mesh, rule_sets in CASES:
            for rules in rule_sets:
                print(row(models.get(name), mesh, rules), flush=True)


if __name__ == "__main__":
    main()
