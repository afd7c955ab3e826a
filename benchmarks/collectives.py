"""Collectives that plans predict for Llama, beside those of the programs that XLA makes of them.

  make bench-collectives       (or: python -m benchmarks.collectives [--topology=v5e:2x4] ...)

For data, zero3, redco and zero3+redco: what agrees in kind, source, count and bytes, loops
multiplied, and every row that differs, with its source. A row's source says behind a comma in which
other form the compiler does what was predicted; a form alone is no difference, as long as count
and bytes agree. The default is a Llama 3 of a quarter of the 8B release's width with its layers
scanned and rematerialised, compiled for eight chips; `--width=4096` has the release's width.
"""

import argparse
import dataclasses
import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

import autoshard
import models
from autoshard.collective_rows import differs
from autoshard.compile_report import CollectiveRow, CompileReport
from autoshard.explain import format_bytes

CASES = (
    ("data", "data=8,model=1"),
    ("zero3", "data=8,model=1"),
    ("redco", "data=2,model=4"),
    ("zero3+redco", "data=2,model=4"),
)
HEAD_DIM = 128


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled: sizes of the Llama, and for which eight devices."""

    topology: str
    width: int
    layers: int
    scanned: bool
    batch: int
    seq_len: int

    def spec(self) -> models.ModelSpec:
        """The model."""
        return models.get(
            "llama3_8b",
            d_model=self.width,
            num_layers=self.layers,
            num_heads=self.width // HEAD_DIM,
            num_kv_heads=max(4, self.width // HEAD_DIM // 4),
            d_ff=self.width * 7 // 2,
            vocab_size=32768,
            scan_layers=self.scanned,
            remat="full" if self.scanned else "none",
        )


def report(settings: Settings, rules: str, mesh: str) -> CompileReport:
    """A rule set's plan, compiled for the topology."""
    spec = settings.spec()
    compiled: Any = autoshard.compile(
        spec.build(),
        f"{settings.topology} {mesh}",
        batch=spec.example_batch(settings.batch, settings.seq_len),
        rules=rules,
        dtype="bfloat16",
    )
    made: CompileReport = compiled.report
    return made


def line(row: CollectiveRow) -> str:
    """One row of the table."""
    verdict = "differs" if differs(row) else "equal"
    return (
        f"  {verdict:8}{row.kind:19}{row.predicted_count:>6}{row.compiled_count:>6}"
        f"{format_bytes(row.predicted_bytes):>11}{format_bytes(row.compiled_bytes):>11}"
        f"  {row.source}"
    )


def main() -> None:
    """Print a table for each rule set, differing rows first."""
    parser = argparse.ArgumentParser(description="predicted beside compiled collectives")
    parser.add_argument("--topology", default="v5e:2x4", help="eight devices, or cpu:8")
    parser.add_argument("--width", type=int, default=1024, help="of the residual stream")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--unrolled", action="store_true", help="no loop over layers, no remat")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq_len", type=int, default=1024)
    flags = parser.parse_args()
    settings = Settings(
        flags.topology, flags.width, flags.layers, not flags.unrolled, flags.batch, flags.seq_len
    )
    for rules, mesh in CASES:
        rows = report(settings, rules, mesh).collectives
        wrong = [row for row in rows if differs(row)]
        payload = [sum(getattr(r, f"{side}_bytes") for r in rows) for side in _SIDES]
        print(
            f"{rules} on {settings.topology} {mesh}: {len(rows) - len(wrong)} of {len(rows)} rows "
            f"equal; payload predicted {format_bytes(payload[0])}, compiled "
            f"{format_bytes(payload[1])}"
        )
        print(f"  {'':8}{'kind':19}{'count':>12}{'bytes':>22}  source")
        for row in sorted(rows, key=lambda r: not differs(r)):
            print(line(row), flush=True)


_SIDES = ("predicted", "compiled")

if __name__ == "__main__":
    main()
