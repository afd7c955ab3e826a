"""The solver against the oracle: the best of all decisions, on random programs and meshes."""

import dataclasses
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoshard import planning
from autoshard.machine import reference_machine
from autoshard.rule_sets import AUTO
from autoshard.search import Question, SearchOptions, space_of
from autoshard.search.decision import Decision
from autoshard.search.evaluate import Evaluator
from autoshard.search.oracle import exhaustive
from autoshard.search.solver import best_first
from autoshard.search.space import Space, open_shapes
from autoshard.search.variants import Variants
from passes.program import Program
from tests.autoshard.search.random_programs import Layers, layers

DEVICES = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Found:
    """Both answers to one question: seconds, and how many layouts were costed."""

    best_s: float
    found_s: float
    all_costed: int
    costed: int


def question(program: Program, devices: int, limit_bytes: int | None = None) -> Question:
    machine = reference_machine(devices)
    return Question(
        subject=planning.examine(program),
        variants=Variants(program, True, "tpu"),
        shapes=open_shapes(devices, 1, ("model",), ()),
        rules=(AUTO,),
        optimizer_bytes=lambda layout: 0,
        machine=lambda shape: machine,
        options=SearchOptions(),
        memory_limit_bytes=limit_bytes,
    )


def both(asked: Question) -> Found:
    space: Space = space_of(asked)
    limit = asked.memory_limit_bytes
    everything = Evaluator(asked, space.by_label)
    best = exhaustive(space.everything(), everything.of, limit)
    some = Evaluator(asked, space.by_label)
    found = best_first(space.seeds(), space.neighbours, some.of, limit, 600)[0]
    assert best.cost is not None
    assert found.cost is not None
    assert found.fits(limit) == best.fits(limit)
    seconds = (best.cost.time.total_s, found.cost.time.total_s)
    return Found(*seconds, len(everything.known), len(some.known))


# More on request: SEARCH_EXAMPLES=67 makes 200 programs of the three meshes, and more.
EXAMPLES = int(os.environ.get("SEARCH_EXAMPLES", "15"))


@pytest.mark.parametrize("devices", DEVICES)
def test_the_best_of_all_decisions_is_found(devices: int) -> None:
    """With memory to spare, and with less than data parallelism takes."""
    results: list[Found] = []

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(layers(), st.sampled_from([None, 0.3, 0.7]))
    def check(program: Layers, share: float | None) -> None:
        forward = program.program()
        limit = None if share is None else int(share * data_parallel_bytes(forward, devices))
        results.append(both(question(forward, devices, limit)))
        assert results[-1].found_s <= 1.05 * results[-1].best_s

    check()
    equal = [r for r in results if r.found_s <= r.best_s * (1 + 1e-5)]
    costed = sum(r.costed for r in results), sum(r.all_costed for r in results)
    print(f"{devices} devices: {len(equal)} of {len(results)} optimal, {costed[0]} layouts costed "
          f"of {costed[1]}")  # fmt: skip
    assert len(equal) >= 0.95 * len(results)
    assert costed[0] <= costed[1]


def data_parallel_bytes(program: Program, devices: int) -> int:
    asked = question(program, devices)
    plain = Evaluator(asked, {}).of(Decision(asked.shapes[0]))
    assert plain.cost is not None
    return plain.cost.memory.total_bytes


def test_the_search_takes_what_is_slower_where_memory_is_short() -> None:
    """Big weights and few rows: whole weights on every device do not fit half of their bytes."""
    wide = Layers(512, (4096, 16384, 4096), (False, False), shared=False, lookup=False)
    whole = both(question(wide.program(), 8))
    least = both(question(wide.program(), 8, 4 * 2 * 4096 * 16384 // 2))
    assert least.found_s == least.best_s
    assert least.found_s >= whole.found_s


def test_an_axis_inside_of_data_stands_beside_it() -> None:
    """Alone it would be data by another name, and be costed and compiled twice."""
    shapes = {str(shape) for shape in open_shapes(8, 1, ("fsdp", "model"), ())}
    assert "data=2,fsdp=4,model=1" in shapes
    assert not any(shape.startswith("data=1,fsdp") for shape in shapes)
