"""Random problems are sound, of the size that was asked for, repeatable, and contended."""

import numpy as np
import pytest

from memory_planner.padding import PaddedShape, pad
from memory_planner.problems_random import RandomShape, random_problem


@pytest.mark.parametrize("buffers", [1, 2, 7, 40, 128])
def test_size_is_what_was_asked_for(buffers: int) -> None:
    rng = np.random.default_rng(buffers)
    shape = PaddedShape(buffers, buffers + 1, uses=3, decisions=3 * buffers, units=64)
    for _ in range(50):
        found = random_problem(rng, RandomShape(buffers, uses=3))
        padded = pad(found, shape)  # which checks lives and sums
        assert padded.is_buffer.all()
        assert len(found.buffers) == buffers


def test_the_same_seed_gives_the_same_problem() -> None:
    one, again = (random_problem(np.random.default_rng(5), RandomShape(20)) for _ in range(2))
    assert one == again
    assert one != random_problem(np.random.default_rng(6), RandomShape(20))


def test_there_is_something_to_decide() -> None:
    rng = np.random.default_rng(7)
    found = [random_problem(rng, RandomShape(40)) for _ in range(50)]
    buffers = [b for p in found for b in p.buffers]
    assert 0.2 < np.mean([b.starts_in_hbm for b in buffers]) < 0.5
    assert 0.05 < np.mean([b.ends_in_hbm for b in buffers]) < 0.3
    assert np.mean([len(b.uses) > 1 for b in buffers]) > 0.2
    for problem in found:
        padded = pad(problem)
        assert padded.demand_units.max() > padded.limit_units.max()
        assert 0 < padded.possible_ns < problem.slow_ns
