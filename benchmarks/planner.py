"""The planner against rule sets and what experts configure, compiled for machines not here.

  make bench-planner       (or: python -m benchmarks.planner [--cells=SUBSTRING] [--again])

18 cells: nine models on two machines each. Columns: data parallelism; ZeRO-3; Redco's rules on an
axis of 8; fully sharded times tensor parallelism of 2, 4 and 8 (with 1 it is ZeRO-3); and the
planner's search, which chooses mesh, layout, microbatches and what is saved. All others keep the
model's own rematerialisation. Every layout is compiled by the target's compiler; its step time is
simulated from the schedule, nothing was run. What the metric leaves out: input pipeline and
stragglers; and the GPU compiler gives no times, so those are a roofline of ours.

Results are kept in `runs/bench_planner.jsonl`; a cold run takes hours on two cores.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import autoshard
import models
from autoshard.compile_report import CompileReport
from autoshard.errors import AutoshardError
from benchmarks.planner_cells import CELLS, EXPERT, SEARCH, SINGLE, Cell, Column

RESULTS = pathlib.Path("runs/bench_planner.jsonl")
TOLERANCE, BETTER, MEMORY_BAR = 0.01, 0.10, 0.10
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Result:
    """One layout, compiled.

    Attributes:
      cell, column: which.
      step_s: simulated; None where it does not fit, or was refused.
      exposed_s: of it, waiting for other devices.
      memory_bytes: compiled, of a device; 0 where it was refused.
      estimated_bytes: before compiling.
      planning_s: seconds from the model to the plan, compilations of candidates included.
      compile_s: of those, in the compiler (of all candidates; cached ones too).
      what: mesh, rules and passes, or why there is nothing.
    """

    cell: str
    column: str
    step_s: float | None
    exposed_s: float
    memory_bytes: int
    estimated_bytes: int
    planning_s: float
    compile_s: float
    what: str


def measure(cell: Cell, column: Column) -> Result:
    """Plan and compile one layout."""
    spec = models.get(cell.model, dtype="bfloat16", **dict(cell.overrides))
    begin = time.monotonic()
    try:
        compiled: Any = autoshard.compile(
            spec.build(),
            column.target(cell),
            batch=spec.example_batch(cell.batch_size, cell.seq_len),
            rules=column.rules,
            dtype="bfloat16",
            passes="auto" if column is SEARCH else None,
            search=autoshard.SearchOptions(progress=_say) if column is SEARCH else None,
        )
        planned = time.monotonic() - begin
        report: CompileReport = compiled.report
    except AutoshardError as error:
        return Result(str(cell), column.name, None, 0.0, 0, 0, 0.0, 0.0, str(error)[:400])
    plan, timeline = report.plan, report.timeline
    what = f"{plan.mesh.shape} {' '.join(plan.rules)} {' '.join(map(str, plan.passes))}".strip()
    if report.memory is not None:
        memory = report.memory.needed_bytes
    else:
        assert report.out_of_memory is not None
        memory = report.out_of_memory.needed_bytes
    return Result(
        cell=str(cell),
        column=column.name,
        step_s=None if timeline is None else timeline.step_s,
        exposed_s=0.0 if timeline is None else timeline.exposed_communication_s,
        memory_bytes=memory,
        estimated_bytes=plan.cost.memory.total_bytes,
        planning_s=planned,
        compile_s=report.compile_s,
        what=what,
    )


def _say(line: str) -> None:
    print(f"    {line}", flush=True)


def load(path: pathlib.Path) -> dict[tuple[str, str], Result]:
    """Results of earlier runs."""
    if not path.is_file():
        return {}
    rows = [Result(**json.loads(line)) for line in path.read_text().splitlines() if line]
    return {(row.cell, row.column): row for row in rows}


def results_of(cell: Cell, known: dict[tuple[str, str], Result], again: bool) -> list[Result]:
    """All columns of a cell, those that are missing measured."""
    found = []
    for column in (*SINGLE, *EXPERT, SEARCH):
        key = (str(cell), column.name)
        if key not in known or (again and column is SEARCH):
            known[key] = measure(cell, column)
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(known[key])) + "\n")
        found.append(known[key])
        print(f"  {row(known[key])}", flush=True)
    return found


def row(result: Result) -> str:
    """One line of the table."""
    step = "does not fit" if result.step_s is None else f"{result.step_s * 1e3:10.1f} ms"
    if not result.memory_bytes:
        step = "impossible"
    return (
        f"{result.column:>16} {step:>13} {result.exposed_s * 1e3:9.1f} ms exposed "
        f"{result.memory_bytes / _GIB:8.2f} GiB (estimated {result.estimated_bytes / _GIB:7.2f}) "
        f"{result.planning_s:7.1f} s  {result.what[:150]}"
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The search of a cell against its other columns.

    Attributes:
      cell: which.
      against_best: search over the best other column, minus 1; None without either.
      against_single: over the best single rule set.
    """

    cell: str
    against_best: float | None
    against_single: float | None

    @property
    def holds(self) -> bool:
        """Whether the search is no worse than the best other, or alone fits."""
        return self.against_best is None or self.against_best <= TOLERANCE


def verdict(results: list[Result]) -> Verdict:
    """Judge a cell."""
    steps = {r.column: r.step_s for r in results if r.step_s is not None}
    own = steps.get("search")
    others = [s for name, s in steps.items() if name != "search"]
    singles = [steps[c.name] for c in SINGLE if c.name in steps]
    if own is None:
        return Verdict(results[0].cell, float("inf"), None)
    return Verdict(
        results[0].cell,
        own / min(others) - 1 if others else None,
        own / min(singles) - 1 if singles else None,
    )


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="", help="only those whose name contains this")
    parser.add_argument("--again", action="store_true", help="search again, keep the others")
    options = parser.parse_args()
    known = load(RESULTS)
    verdicts, rows = [], []
    for cell in CELLS:
        if options.cells in str(cell):
            print(cell, flush=True)
            results = results_of(cell, known, options.again)
            rows += results
            verdicts.append(verdict(results))
    _summary(verdicts, rows)


def _summary(verdicts: list[Verdict], rows: list[Result]) -> None:
    print("\nsearch against the best other column, and against the best single rule set")
    for one in verdicts:
        shares = (one.against_best, one.against_single)
        words = ["alone fits" if s is None else f"{s:+.1%}" for s in shares]
        print(f"{'ok' if one.holds else 'WORSE':>6} {words[0]:>11} {words[1]:>11}  {one.cell}")
    much = [v for v in verdicts if v.against_single is None or v.against_single <= -BETTER]
    close = [
        r for r in rows
        if r.memory_bytes and abs(r.estimated_bytes / r.memory_bytes - 1) <= MEMORY_BAR
    ]  # fmt: skip
    measured = [r for r in rows if r.memory_bytes]
    print(f"10% better than the best single rule set: {len(much)} of {len(verdicts)} cells")
    print(f"estimated memory within 10% of compiled: {len(close)} of {len(measured)} layouts")
    if not all(v.holds for v in verdicts) or 3 * len(much) < len(verdicts):
        raise SystemExit("a bar is missed")


if __name__ == "__main__":
    main()
