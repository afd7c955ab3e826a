"""MiniMalloc's instances, packed within their capacities and validated, against the C++ solver.

  make bench-offsets        (or: python -m benchmarks.offsets [FILE_OR_FOLDER ...] [--limit_s=60])

The number in a file's name, before `.csv`, is the capacity in bytes (`A.1048576.csv`). Without
arguments: A to F. MiniMalloc (C++, release build) took 46 s for these on a loaded machine with two
cores; the bar is twice that, and judged whenever all six are there. Compiling, which numba does
once for an installation, is timed apart. "cpu" is the processor time of this process alone.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from memory_planner import offsets

FOLDER = Path(__file__).parent / "minimalloc"
NAMED = ("A", "B", "C", "D", "E", "F")
CPP_S = 46.0
BAR_S = 2 * CPP_S


@dataclasses.dataclass(frozen=True)
class Run:
    """One instance, solved.

    Attributes:
      path: of its file.
      result: of `solve`.
      cpu_s: of it.
      status: whether the packing is valid, or why there is none, in words.
      is_packed: whether there is a valid packing within the capacity.
    """

    path: Path
    buffers: int
    capacity_bytes: int
    result: offsets.OffsetSolution | offsets.Infeasible
    cpu_s: float
    status: str
    is_packed: bool


def capacity_in_name(path: Path) -> int:
    """Bytes, from a name like `A.1048576.csv`.

    Raises:
      OffsetError: the name says no capacity.
    """
    number = path.name.removesuffix(".csv").rpartition(".")[2]
    if not number.isdecimal():
        raise offsets.OffsetError(f"{path}: its name says no capacity, as in NAME.1048576.csv")
    return int(number)


def instances(paths: Iterable[str]) -> list[Path]:
    """The files named, and those of the folders named; without any, A to F.

    Raises:
      OffsetError: nothing there.
    """
    found = []
    for path in map(Path, paths):
        files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise offsets.OffsetError(f"{path}: no such file, or no .csv file in it")
        found += files
    return found or [path for name in NAMED for path in sorted(FOLDER.glob(f"{name}.*.csv"))]


def run(path: Path, limit_s: float) -> Run:
    """Solve and validate one instance."""
    problem, capacity = offsets.read_csv(path), capacity_in_name(path)
    began = time.process_time()
    result = offsets.solve(problem, capacity, time_limit_s=limit_s)
    cpu_s = time.process_time() - began
    is_packed, status = False, str(result)
    if isinstance(result, offsets.OffsetSolution):
        is_packed = result.outcome is offsets.Outcome.FITS
        offsets.validate(problem, result, capacity if is_packed else result.height_bytes)
        status = "valid" if is_packed else f"valid, but {result.height_bytes} bytes high"
    return Run(path, len(problem.buffers), capacity, result, cpu_s, status, is_packed)


def _print_table(paths: Sequence[Path], limit_s: float) -> list[Run]:
    began = time.monotonic()
    offsets.solve(offsets.OffsetProblem(()), 0)
    print(f"compiling or loading the search took {time.monotonic() - began:.1f} s")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    titles = ("buffers", "capacity", "seconds", "cpu", "nodes")
    print(f"{'instance':20}" + "".join(f"{title:>9}" for title in titles) + "  packing")
    runs = []
    for path in paths:
        row = run(path, limit_s)
        print(
            f"{path.name:20}{row.buffers:9}{row.capacity_bytes:9}{row.result.seconds:9.2f}"
            f"{row.cpu_s:9.2f}{row.result.nodes:9}  {row.status}",
            flush=True,
        )
        runs.append(row)
    return runs


def _meets_the_bar(runs: Sequence[Run]) -> bool:
    """Print how A to F compare with MiniMalloc; true where they are not all there."""
    six = [row for row in runs if row.path.name in {f"{name}.1048576.csv" for name in NAMED}]
    if len(six) != len(NAMED):
        return True
    seconds = sum(row.result.seconds for row in six)
    met = seconds <= BAR_S and all(row.is_packed for row in six)
    verdict = "met" if met else "missed"
    print(f"A to F: {seconds:.1f} s; the bar is {BAR_S:.0f} s, twice MiniMalloc's: {verdict}")
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if an instance is not packed, or A to F miss the bar; 2 for bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", help="files or folders of files; A to F by default")
    parser.add_argument("--limit_s", type=float, default=60.0, help="seconds for each instance")
    options = parser.parse_args(arguments)
    try:
        runs = _print_table(instances(options.paths), options.limit_s)
    except (offsets.OffsetError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    packed = sum(row.is_packed for row in runs)
    total_s, cpu_s = sum(row.result.seconds for row in runs), sum(row.cpu_s for row in runs)
    print(f"\n{packed} of {len(runs)} packed in {total_s:.1f} s ({cpu_s:.1f} s of cpu)")
    return 0 if _meets_the_bar(runs) and packed == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
