"""Packing buffers with known lifetimes into one memory: `solve(problem, capacity_bytes)`.

In the order in which data flows:

  problem       Buffer, OffsetProblem, OffsetSolution, Infeasible
  csv_files     MiniMalloc's files, read and written
  sections      stretches of time with one set of live buffers; partitions
  orders        static orders of buffers
  first_fit     packings at once, and hill climbing on their order
  search_state, propagate, depth_first
                the exact search, compiled by numba
  stretch       one partition's searches, in turns
  solver        solve, minimize
  validate      by brute force, apart from the rest
"""

from memory_planner.offsets.csv_files import (
    format_csv,
    parse_csv,
    read_csv,
    write_csv,
)
from memory_planner.offsets.options import Progress, SearchOptions
from memory_planner.offsets.problem import (
    Buffer,
    Infeasible,
    OffsetError,
    OffsetProblem,
    OffsetSolution,
    Outcome,
    Proof,
    Section,
)
from memory_planner.offsets.search_state import Inference
from memory_planner.offsets.sections import lower_bound_bytes
from memory_planner.offsets.solver import LeastHeight, minimize, solve
from memory_planner.offsets.validate import InvalidPackingError, validate

__all__ = [
    "Buffer",
    "Infeasible",
    "Inference",
    "InvalidPackingError",
    "LeastHeight",
    "OffsetError",
    "OffsetProblem",
    "OffsetSolution",
    "Outcome",
    "Progress",
    "Proof",
    "SearchOptions",
    "Section",
    "format_csv",
    "lower_bound_bytes",
    "minimize",
    "parse_csv",
    "read_csv",
    "solve",
    "validate",
    "write_csv",
]
