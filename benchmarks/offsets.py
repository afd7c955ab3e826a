"""MiniMalloc's instances, packed within their capacities and validated, against the C++ solver.

  make bench-offsets        (or: python -m benchmarks.offsets [FILE_OR_FOLDER ...] [--limit_s=60])

The number in a file's name, before `.csv`, is the capacity in bytes (`A.1048576.csv`). Without
arguments: A to F. MiniMalloc (C++, release build) took 46 s for these on a loaded machine with two
cores; the bar is twice that. Compiling, which numba does once for an installation, is timed apart.
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
      status: whether the packing is valid, or why there is none, in words.
      is_packed: whether there is a valid packing within the capacity.
    """

    path: Path
    buffers: int
    capacity_bytes: int
    result: offsets.OffsetSolution | offsets.Infeasible
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
    result = offsets.solve(problem, capacity, time_limit_s=limit_s)
    is_packed, status = False, str(result)
    if isinstance(result, offsets.OffsetSolution):
        is_packed = result.outcome is offsets.Outcome.FITS
        offsets.validate(problem, result, capacity if is_packed else result.height_bytes)
        status = "valid" if is_packed else f"valid, but {result.height_bytes} bytes high"
    return Run(path, len(problem.buffers), capacity, result, status, is_packed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if an instance is not packed, or A to F take longer than the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", help="files or folders of files; A to F by default")
    parser.add_argument("--limit_s", type=float, default=60.0, help="seconds for each instance")
    options = parser.parse_args(arguments)
    try:
        paths = instances(options.paths)
        began = time.monotonic()
        offsets.solve(offsets.OffsetProblem(()), 0)
        print(f"compiling or loading the search took {time.monotonic() - began:.1f} s")
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
        print(f"{'instance':24}{'buffers':>8}{'capacity':>10}{'seconds':>9}{'nodes':>10}  packing")
        total_s, packed = 0.0, 0
        for path in paths:
            row = run(path, options.limit_s)
            total_s, packed = total_s + row.result.seconds, packed + row.is_packed
            print(
                f"{path.name:24}{row.buffers:8}{row.capacity_bytes:10}{row.result.seconds:9.2f}"
                f"{row.result.nodes:10}  {row.status}",
                flush=True,
            )
    except (offsets.OffsetError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{packed} of {len(paths)} packed in {total_s:.1f} s")
    in_time = True
    if not options.paths:
        in_time = total_s <= BAR_S
        print(f"the bar: {BAR_S:.0f} s, twice MiniMalloc's {CPP_S:.0f} s: ", end="")
        print("met" if in_time else "missed")
    return 0 if in_time and packed == len(paths) else 1


if __name__ == "__main__":
    sys.exit(main())
