import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_planner.offsets import (
    Buffer,
    Infeasible,
    Inference,
    LeastHeight,
    OffsetError,
    OffsetProblem,
    OffsetSolution,
    Outcome,
    Progress,
    Proof,
    SearchOptions,
    Section,
    lower_bound_bytes,
    minimize,
    solve,
    validate,
)
from tests.memory_planner.offsets.instances import (
    EXAMPLE,
    TIGHT_BUT_IMPOSSIBLE,
    can_be_packed,
    cut_up,
    problem,
)

# Nothing but the exact search.
SEARCH_ONLY = SearchOptions(climb_steps=0)


def packed(of: OffsetProblem, capacity: int, **arguments: object) -> OffsetSolution:
    """A packing that fits, validated."""
    solution = solve(of, capacity, **arguments)  # type: ignore[arg-type]
    assert isinstance(solution, OffsetSolution) and solution.outcome is Outcome.FITS
    validate(of, solution, capacity)
    return solution


def test_example_fits_its_capacity_and_no_byte_less() -> None:
    assert packed(EXAMPLE, 12).height_bytes == 12
    found = solve(EXAMPLE, 11)
    assert found == Infeasible(11, Proof.LOAD, Section(0, 3, 12, ("b0", "b2", "b4")))


def test_search_proves_what_loads_do_not() -> None:
    assert not can_be_packed(TIGHT_BUT_IMPOSSIBLE, 5)
    assert lower_bound_bytes(TIGHT_BUT_IMPOSSIBLE) == 5
    found = solve(TIGHT_BUT_IMPOSSIBLE, 5)
    assert isinstance(found, Infeasible) and found.proof is Proof.SEARCH
    assert found.binding.load_bytes == 5 and found.nodes > 0
    assert packed(TIGHT_BUT_IMPOSSIBLE, 6).height_bytes == 6


def test_one_impossible_stretch_of_time_is_enough_and_is_the_one_named() -> None:
    easy = [Buffer(f"e{k}", 100 + k, 102 + k, 2) for k in range(20)]
    found = solve(OffsetProblem((*easy, *TIGHT_BUT_IMPOSSIBLE.buffers)), 5)
    assert isinstance(found, Infeasible) and found.proof is Proof.SEARCH
    assert set(found.binding.buffers) <= {b.name for b in TIGHT_BUT_IMPOSSIBLE.buffers}


def test_empty_problem_and_what_occupies_nothing() -> None:
    assert packed(OffsetProblem(()), 0).offsets_bytes == ()
    nothing = OffsetProblem(
        (
            Buffer("no bytes", 0, 9, 0),
            Buffer("no life", 3, 3, 100),
            Buffer("fixed", 0, 9, 0, offset=4),
        )
    )
    solution = packed(nothing, 0)
    assert solution.offsets_bytes == (0, 0, 4) and solution.height_bytes == 0


def test_one_buffer_larger_than_the_capacity() -> None:
    found = solve(OffsetProblem((Buffer("small", 0, 9, 1), Buffer("large", 20, 30, 9))), 8)
    assert found == Infeasible(8, Proof.LOAD, Section(20, 30, 9, ("large",)))


def test_alignment_may_cost_the_packing() -> None:
    a, b = Buffer("a", 0, 9, 3), Buffer("b", 0, 9, 5, alignment=4)
    assert packed(OffsetProblem((a, b)), 8).offsets_bytes == (5, 0)
    both = OffsetProblem((dataclasses.replace(a, alignment=4), b))
    found = solve(both, 8)
    assert isinstance(found, Infeasible) and found.proof is Proof.SEARCH
    assert packed(both, 9).height_bytes == 9


def test_fixed_offsets_are_worked_around() -> None:
    fixed = Buffer("f", 0, 9, 4, offset=4)
    assert packed(OffsetProblem((fixed, Buffer("a", 0, 9, 4))), 8).offsets_bytes == (4, 0)
    found = solve(OffsetProblem((fixed, Buffer("a", 0, 9, 6))), 12)
    assert isinstance(found, Infeasible) and found.proof is Proof.SEARCH


def test_fixed_offsets_in_each_others_way() -> None:
    clash = OffsetProblem(
        (Buffer("f", 0, 5, 4, offset=0), Buffer("g", 3, 9, 4, offset=2), Buffer("h", 0, 9, 1))
    )
    found = solve(clash, 100)
    assert found == Infeasible(100, Proof.FIXED, Section(3, 5, 9, ("f", "g", "h")))
    high = OffsetProblem((Buffer("f", 0, 5, 4, offset=8),))
    assert solve(high, 11) == Infeasible(11, Proof.FIXED, Section(0, 5, 4, ("f",)))
    with pytest.raises(OffsetError, match="fixed offsets overlap"):
        minimize(clash)


def test_gaps_are_filled() -> None:
    a = Buffer("a", 0, 9, 8, gaps=((3, 6),))
    assert packed(OffsetProblem((a, Buffer("b", 3, 6, 8))), 8).height_bytes == 8
    assert isinstance(solve(OffsetProblem((a, Buffer("b", 3, 7, 8))), 8), Infeasible)


buffers = st.builds(
    lambda begin, life, size, alignment, at, gap: Buffer(
        "",
        begin,
        begin + life,
        size,
        alignment,
        None if at is None else at * alignment,
        ((begin + 1, begin + life - 1),) if gap and life > 2 else (),
    ),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 4),
    st.sampled_from([1, 1, 2, 3]),
    st.sampled_from([None, None, None, None, 0, 1]),
    st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(buffers, max_size=7),
    st.integers(-1, 1),
    st.sampled_from([Inference.ALL, Inference(0), *Inference]),
    st.sampled_from([1, 500]),
)
def test_small_problems_are_packed_exactly_if_brute_force_packs_them(
    drawn: list[Buffer], spare: int, inference: Inference, first_slice: int
) -> None:
    of = OffsetProblem(tuple(dataclasses.replace(b, name=f"b{i}") for i, b in enumerate(drawn)))
    capacity = max(lower_bound_bytes(of) + spare, 0)
    options = SearchOptions(inference=inference, first_slice=first_slice, climb_steps=0)
    found = solve(of, capacity, options=options)
    assert isinstance(found, OffsetSolution) == can_be_packed(of, capacity)
    if isinstance(found, OffsetSolution):
        assert found.outcome is Outcome.FITS
        validate(of, found, capacity)


@settings(max_examples=30, deadline=None)
@given(st.lists(buffers.filter(lambda b: b.offset is None), max_size=6))
def test_least_height_is_the_least(drawn: list[Buffer]) -> None:
    of = OffsetProblem(tuple(dataclasses.replace(b, name=f"b{i}") for i, b in enumerate(drawn)))
    least = minimize(of)
    height = least.solution.height_bytes
    validate(of, least.solution, height)
    assert least.is_optimal and can_be_packed(of, height)
    assert height == 0 or not can_be_packed(of, height - 1)


@pytest.mark.parametrize("seed", range(5))
def test_full_memories_are_packed(seed: int) -> None:
    packed(cut_up(60, seed), 256, options=SEARCH_ONLY)


def test_the_same_problem_has_the_same_answer() -> None:
    of = cut_up(60, 3)
    first, again = (packed(of, 256, options=SEARCH_ONLY) for _ in range(2))
    assert first == again and first.nodes > 500


def test_nodes_run_out() -> None:
    of = cut_up(80, 3)
    found = solve(of, 256, node_limit=300, options=SEARCH_ONLY)
    assert isinstance(found, OffsetSolution) and found.outcome is Outcome.BEST_EFFORT
    assert found.nodes == 300 and found.height_bytes > 256
    validate(of, found, found.height_bytes)
    assert found == solve(of, 256, node_limit=300, options=SEARCH_ONLY)


def test_time_runs_out() -> None:
    of = cut_up(80, 3)
    found = solve(of, 256, time_limit_s=0, options=SEARCH_ONLY)
    assert isinstance(found, OffsetSolution) and found.outcome is Outcome.BEST_EFFORT
    validate(of, found, found.height_bytes)


def test_no_time_is_needed_for_what_first_fit_packs_or_loads_rule_out() -> None:
    assert packed(EXAMPLE, 12, time_limit_s=0).nodes == 0
    assert isinstance(solve(EXAMPLE, 11, time_limit_s=0), Infeasible)


def test_best_effort_is_no_higher_than_without_search_and_climbing() -> None:
    of = cut_up(80, 3)
    plain = solve(of, 256, node_limit=0, options=SEARCH_ONLY)
    tried = solve(of, 256, node_limit=2000)
    assert isinstance(plain, OffsetSolution) and isinstance(tried, OffsetSolution)
    assert tried.height_bytes < plain.height_bytes


def test_progress_is_told() -> None:
    told: list[Progress] = []
    solve(cut_up(80, 3), 256, node_limit=3000, options=SEARCH_ONLY, progress=told.append)
    nodes = [progress.nodes for progress in told]
    assert nodes == sorted(nodes) and nodes[-1] == 3000
    assert all(progress.open_partitions == 1 for progress in told)
    assert told[-1].height_bytes <= told[0].height_bytes


def test_least_height_without_proof_says_so() -> None:
    least = minimize(cut_up(80, 3), time_limit_s=0)
    assert least.lower_bound_bytes == 256 < least.solution.height_bytes
    assert not least.is_optimal


def test_least_height_above_the_load() -> None:
    least = minimize(TIGHT_BUT_IMPOSSIBLE)
    assert least == LeastHeight(least.solution, 6) and least.is_optimal


@pytest.mark.parametrize(
    "arguments", [{"capacity_bytes": -1}, {"time_limit_s": -1.0}, {"node_limit": -1}]
)
def test_negative_limits(arguments: dict[str, object]) -> None:
    with pytest.raises(OffsetError, match="none may be negative"):
        solve(EXAMPLE, **({"capacity_bytes": 12} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"orders": (), "restarts": 0}, "search nothing"),
        ({"orders": ("WX",)}, "order 'WX'"),
        ({"first_slice": 0}, "slices of at least 1"),
        ({"growth": 0.5}, "do not shrink"),
    ],
)
def test_senseless_options(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(OffsetError, match=message):
        SearchOptions(**arguments)  # type: ignore[arg-type]


def test_a_thousand_buffers_of_a_long_program() -> None:
    """A chain of layers: each keeps an activation from forward to backward, and has temporaries."""
    layers = 250
    rows = []
    for k in range(layers):
        rows += [(2 * k, 4 * layers - 2 * k, 64), (2 * k, 2 * k + 2, 256 + k % 7)]
        rows += [(4 * layers - 2 * k - 2, 4 * layers - 2 * k, 128), (2 * k + 1, 2 * k + 3, 32)]
    of = problem(*rows)
    packed(of, lower_bound_bytes(of) + 512)
