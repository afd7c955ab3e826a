"""The package without numba, in a process where it cannot be imported."""

import subprocess
import sys

from memory_planner.offsets import OffsetSolution, SearchOptions, solve
from tests.memory_planner.offsets.instances import cut_up

SCRIPT = """
import sys, warnings
sys.modules["numba"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from memory_planner.offsets import Infeasible, SearchOptions, solve, validate
(warning,) = [w for w in caught if "numba" in str(w.message)]
assert "pip install numba" in str(warning.message), warning.message
from tests.memory_planner.offsets.instances import TIGHT_BUT_IMPOSSIBLE, cut_up
of = cut_up(45, 1)
solution = solve(of, 256, options=SearchOptions(orders=("TAW",), restarts=0, climb_steps=0))
validate(of, solution, 256)
assert isinstance(solve(TIGHT_BUT_IMPOSSIBLE, 5), Infeasible)
print(solution.nodes, *solution.offsets_bytes)
"""


def test_without_numba_the_answers_are_the_same_and_a_warning_says_so() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    solution = solve(
        cut_up(45, 1), 256, options=SearchOptions(orders=("TAW",), restarts=0, climb_steps=0)
    )
    assert isinstance(solution, OffsetSolution)
    assert run.stdout.split() == [str(n) for n in (solution.nodes, *solution.offsets_bytes)]
