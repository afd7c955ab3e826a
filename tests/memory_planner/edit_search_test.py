"""The search by small changes, on a compiler whose best order is known."""

import itertools

import pytest

from memory_planner.agents.candidates import Candidate
from memory_planner.edit_search import Limits, edit_search
from memory_planner.mapper import Budget, map_memory
from memory_planner.session import open_session
from memory_planner.strategies import STRATEGIES, Settings
from tests.memory_planner.chain_compiler import ChainCompiler, step_cycles_with
from tests.passes.hlo.texts import machine_of

MACHINE = machine_of()


def start(*order: int) -> Candidate:
    return Candidate(order, (0,) * len(order), 0.0)


def test_the_best_order_is_found_from_the_compilers_own() -> None:
    compiler = ChainCompiler()
    session = open_session(compiler, MACHINE)
    trials = edit_search(session, "mine", [], Limits(assignments=12, compiles=3))
    totals = [t.confirmed.total for t in trials if t.confirmed is not None]
    assert min(totals) == step_cycles_with(2, 3)
    assert {t.method for t in trials} == {"mine"}
    assert all(t.options for t in trials)  # the compiler's own is nobody's proposal


@pytest.mark.parametrize(("assignments", "compiles"), [(1, 1), (3, 2), (7, 1), (40, 4)])
def test_budgets_are_kept(assignments: int, compiles: int) -> None:
    compiler = ChainCompiler()
    session = open_session(compiler, MACHINE)
    compiled = compiler.count("compile")
    limits = Limits(assignments, compiles)
    trials = edit_search(session, "mine", [start(3, 2, 1, 0), start(1, 0, 3, 2)], limits)
    assert len(trials) <= assignments and compiler.count("assign") <= assignments
    assert compiler.count("compile") - compiled <= compiles


def test_a_good_start_is_compiled_and_kept() -> None:
    session = open_session(ChainCompiler(), MACHINE)
    trials = edit_search(session, "mine", [start(3, 2, 0, 1)], Limits(4, 1))
    assert trials[0].confirmed is not None
    assert trials[0].confirmed.total == step_cycles_with(2, 3)


def test_a_candidate_that_does_not_compile_does_not_end_the_search() -> None:
    compiler = ChainCompiler(dies_of="v.3")
    session = open_session(compiler, MACHINE)
    trials = edit_search(session, "mine", [start(3, 0, 1, 2)], Limits(60, 30))
    assert any(t.problem == "no code for v.3" for t in trials)
    totals = [t.confirmed.total for t in trials if t.confirmed is not None]
    # Both of the best pair lie in fast memory, but v.2 is placed before v.3.
    assert min(totals) == step_cycles_with(2, 3)


def test_orders_to_start_with_go_on_being_tried_after_the_first() -> None:
    """A quarter of the screens are theirs in any case; the rest has to be drawn."""
    starts = [start(*order) for order in itertools.permutations(range(4))]
    session = open_session(ChainCompiler(), MACHINE)
    trials = edit_search(session, "mine", starts, Limits(16, 1))
    asked = [tuple(session.options(s.order, s.eagerness).items()) for s in starts]
    numbers = [asked.index(t.options) for t in trials if t.options in asked]
    assert {1, 2, 3} <= set(numbers)  # the first is the compiler's own
    assert max(numbers) > 3


def test_the_search_is_the_same_for_a_seed() -> None:
    def found(seed: int) -> list[tuple[tuple[str, str], ...]]:
        session = open_session(ChainCompiler(), MACHINE)
        return [t.options for t in edit_search(session, "mine", [], Limits(9, 2, seed))]

    assert found(1) == found(1)
    assert len({tuple(found(seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize("strategy", ["alphazero", "muzero"])
def test_agents_find_the_best_order_within_their_budget(strategy: str) -> None:
    compiler = ChainCompiler()
    session = open_session(compiler, MACHINE)
    settings = Settings(12, 3, episodes=16, seconds=None, seed=1)
    trials = STRATEGIES[strategy](session, settings)
    assert 1 <= len(trials) <= 12
    assert compiler.count("assign") <= 12
    assert compiler.count("compile") <= 2 + 3
    assert {t.method for t in trials} == {strategy}
    totals = [t.confirmed.total for t in trials if t.confirmed is not None]
    assert min(totals) == step_cycles_with(2, 3)


def test_what_a_search_compiled_counts_against_the_mappers_budget() -> None:
    compiler = ChainCompiler()
    budget = Budget(assignments=12, compiles=3, sweep=(), episodes=16, play_seconds=None)
    mapped = map_memory(compiler, MACHINE, budget)
    assert mapped.method == "alphazero" and mapped.best.total == step_cycles_with(2, 3)
    assert mapped.compiles == compiler.count("compile") <= 2 + budget.compiles
