"""What each rule set costs a small GPT-2 and Llama on eight CPU devices: estimated beside compiled.

  python -m benchmarks.layouts

Memory is the compiler's (`memory_analysis`), bytes moved are counted in the compiled HLO (a ring's
share of every collective's result). Figures are of the CPU compiler: it turns reduce-scatters into
all-reduces and slices, so the gradients of zero2 and zero3 move twice what they do on TPU and GPU,
and it merges the second gather of a ZeRO-3 parameter with the first.
"""

import math
import os
import re
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

import autoshard
import models
from autoshard.explain import format_bytes

CASES = (
    ("data=8", ("data", "zero1", "zero2", "zero3")),
    ("data=2,model=4", ("redco", "zero3+redco", "auto")),
)
_COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)"
    r"(-start)?\("
)


def sent_bytes(text: str, devices: int) -> dict[str, float]:
    """Bytes that a device sends, by kind of collective; groups are read from each line."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        size = sum(
            4 * math.prod(int(x) for x in shape.split(",") if x)
            for shape in re.findall(r"(?:f32|s32|u32)\[([\d,]*)\]", match["type"])
        )
        group = group_size(line, devices)
        factor = {"all-reduce": 2 * (group - 1) / group, "all-gather": (group - 1) / group,
                  "reduce-scatter": group - 1.0}.get(match["kind"], 1.0)  # fmt: skip
        totals[match["kind"]] = totals.get(match["kind"], 0.0) + factor * size
    return totals


def group_size(line: str, devices: int) -> int:
    """Devices in each replica group, in the three notations that XLA writes."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return devices


def row(spec: models.ModelSpec, mesh: str, rules: str) -> str:
    """One line of the table."""
    compiled: Any = autoshard.compile(
        spec.build(), mesh, batch=spec.example_batch(32, 128), rules=rules
    )
    report = compiled.memory_report()
    sent = sum(sent_bytes(compiled.lower().compile().as_text(), 8).values())
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
