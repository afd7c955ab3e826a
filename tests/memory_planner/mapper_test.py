"""Sessions, strategies and the mapper, on a compiler whose best order is known."""

import dataclasses
import re

import numpy as np
import pytest

from memory_planner import mapper, strategies
from memory_planner.errors import MemoryPlannerError
from memory_planner.evaluation import CompilerFailure, Trial
from memory_planner.mapper import Budget, confirmed_best, map_memory, search
from memory_planner.overrides import ORDER_OPTION, PREFETCH_OPTION
from memory_planner.session import (
    CannotMapError,
    NoContentionError,
    follows_options,
    open_session,
)
from memory_planner.strategies import STRATEGIES, Settings
from tests.memory_planner.chain_compiler import SIZE_BYTES, ChainCompiler, step_cycles_with
from tests.passes.hlo.texts import machine_of

MACHINE = machine_of()
ASKING = ("fixed orders", "random", "hill climbing", "evolution")


def test_opening_compiles_twice_and_reads_the_log_once() -> None:
    compiler = ChainCompiler()
    session = open_session(compiler, MACHINE)
    assert [kind for kind, _ in compiler.asked] == ["compile", "compile", "explain"]
    assert session.default.confirmed is not None and session.without is not None
    assert session.default.confirmed.total == step_cycles_with(0, 1)
    assert session.without.confirmed is not None
    assert session.without.confirmed.total == step_cycles_with()
    problem = session.extracted.problem
    assert session.count == 4 and problem.capacity_bytes == 2 * SIZE_BYTES
    assert session.extracted.positions == tuple((f"v.{k}", -1) for k in range(4))
    assert [(s.buffer, s.offset_bytes) for s in session.extracted.mapping.stays] == [
        (0, 0),
        (1, SIZE_BYTES),
    ]


def test_options_rank_buffers_and_delay_or_hasten_their_copies() -> None:
    session = open_session(ChainCompiler(), MACHINE)
    options = session.options((2, 0, 3, 1), (0, 1, 2, 0))
    # 0 and 3 stay as the compiler has them; 2 comes before all others, 1 behind.
    values = re.findall(
        r'"v\\\\\.(\d)" \} override_options \{ assign_value: (-?\d) ', options[ORDER_OPTION]
    )
    assert values == [("2", "-1"), ("1", "1")]
    # Buffer 1 as early as can be, 2 as late; those at 0 as the compiler likes.
    assert options[PREFETCH_OPTION].count("overrides {") == 2 + 4  # one for each reading
    assert (
        '"r\\\\.2\\\\.3" operand_number: 0 } override_options { prefetch_eagerness: 1 }'
        in (options[PREFETCH_OPTION])
    )
    assert (
        '"r\\\\.1\\\\.0" operand_number: 0 } override_options { prefetch_eagerness: 0 }'
        in (options[PREFETCH_OPTION])
    )
    assert PREFETCH_OPTION not in session.options((0, 1, 2, 3), (0, 0, 0, 0))


@pytest.mark.parametrize("strategy", ASKING)
def test_every_strategy_keeps_to_its_budget(strategy: str) -> None:
    for assignments in (1, 3, 12):
        compiler = ChainCompiler()
        session = open_session(compiler, MACHINE)
        trials = STRATEGIES[strategy](session, Settings(assignments=assignments, seed=1))
        assert 1 <= len(trials) <= assignments
        assert compiler.count("assign") <= assignments
        assert {trial.method for trial in trials} == {strategy}
        assert all(trial.screened is not None for trial in trials)


@pytest.mark.parametrize("strategy", ASKING)
def test_the_best_order_is_found_and_only_what_was_compiled_is_reported(strategy: str) -> None:
    compiler, lines = ChainCompiler(), list[str]()
    budget = Budget(assignments=24, compiles=6, sweep=(), strategy=strategy)
    mapped = map_memory(compiler, MACHINE, budget, lines.append)
    assert mapped.best.total == step_cycles_with(2, 3)
    assert mapped.default.total == step_cycles_with(0, 1)
    assert mapped.gain == pytest.approx(6_000 / step_cycles_with(0, 1))
    assert mapped.method == strategy
    assert sorted(compiler.fast(dict(mapped.options))) == ["v.2", "v.3"]
    assert mapped.trials[0].confirmed == mapped.best
    assert mapped.compiles == compiler.count("compile") <= 2 + budget.compiles
    assert mapped.assignments == compiler.count("assign")
    # The picture of the best is of its own log.
    assert mapped.best_extracted is not None
    names = {mapped.best_extracted.problem.buffers[s.buffer].name
             for s in mapped.best_extracted.mapping.stays}  # fmt: skip
    assert names == {"v.2", "v.3"}
    assert any("confirmed" in line for line in lines)


def test_nothing_better_leaves_the_default() -> None:
    session = open_session(ChainCompiler(), MACHINE)
    # One order alone is screened, by size: all are equal, so it is the compiler's own.
    mapped = search(session, Budget(assignments=1, compiles=1, strategy="fixed orders"))
    worse = [t for t in mapped.trials if t.confirmed and t.confirmed.total > mapped.default.total]
    assert mapped.best.total <= mapped.default.total
    assert mapped.best == mapped.default or not worse
    only = dataclasses.replace(session.default, method="default")
    assert confirmed_best(session, [only], 3, lambda _: None) == [only]


def test_default_stays_where_all_candidates_are_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    def worst(session: mapper.Session, settings: Settings) -> list[Trial]:
        trials: list[Trial] = []
        session.score("worst", trials)(
            np.array([[0, 1, 2, 3]], np.int32), np.zeros((1, 4), np.int32)
        )
        return trials

    monkeypatch.setitem(STRATEGIES, "random", worst)
    session = open_session(ChainCompiler(), MACHINE)
    mapped = search(session, Budget(strategy="random"))
    assert (mapped.options, mapped.method, mapped.gain) == ((), "default", 0.0)
    assert mapped.best_extracted is session.extracted


def test_a_candidate_that_does_not_compile_is_passed_over() -> None:
    lines: list[str] = []
    compiler = ChainCompiler(dies_of="v.3")
    budget = Budget(assignments=24, compiles=8, sweep=(), strategy="random")
    mapped = map_memory(compiler, MACHINE, budget, lines.append)
    assert mapped.best.total == step_cycles_with(2, 3)
    assert compiler.order(dict(mapped.options))[0] == "v.2"
    failed = [t for t in mapped.trials if t.problem]
    assert all(t.confirmed is None and t.problem == "no code for v.3" for t in failed)


def test_a_program_that_does_not_compile_at_all() -> None:
    with pytest.raises(CompilerFailure, match=r"no code for v\.0"):
        open_session(ChainCompiler(dies_of="v.0"), MACHINE)


def test_a_compiler_that_does_not_follow_is_told_from_one_that_has_nothing_to_gain() -> None:
    with pytest.raises(CannotMapError, match="does not follow xla_tpu_msa_sort_order_overrides"):
        map_memory(ChainCompiler(heeds=False), MACHINE)
    # Where there is room for all the reverse order costs as much, but the log shows it.
    for heeds in (True, False):
        session = open_session(ChainCompiler(heeds=heeds), MACHINE)
        session.evaluator.compiler = ChainCompiler(capacity=4, heeds=heeds)
        assert follows_options(session) == heeds


def test_a_compiler_that_does_not_explain_itself() -> None:
    with pytest.raises(CannotMapError, match=r"log holds no memory-space assignment.* stays"):
        map_memory(ChainCompiler(explains=False), MACHINE)


def test_without_contention_there_is_nothing_to_search() -> None:
    compiler = ChainCompiler(capacity=4)
    with pytest.raises(
        NoContentionError, match=r"no contention .*: of 148000 cycles .*, 0 could be saved"
    ):
        map_memory(compiler, MACHINE)
    assert compiler.count("assign") == 0


def test_a_sweep_that_does_not_help_leaves_no_trace() -> None:
    alone = map_memory(ChainCompiler(), MACHINE, Budget(sweep=(), strategy="fixed orders"))
    swept = map_memory(
        ChainCompiler(), MACHINE, Budget(sweep=({"xla_no": "1"},), strategy="fixed orders")
    )
    assert swept.best == alone.best and swept.options == alone.options
    assert swept.compiles == alone.compiles + 1
    assert [t.method for t in swept.trials].count("option sweep") == 1


def test_the_search_goes_on_under_options_that_help() -> None:
    compiler = ChainCompiler(roomier={"xla_room": 3})
    budget = Budget(assignments=24, compiles=8, sweep=({"xla_room": "9"},), strategy="random")
    mapped = map_memory(compiler, MACHINE, budget)
    assert mapped.default.total == step_cycles_with(0, 1)
    assert mapped.best.total == step_cycles_with(1, 2, 3)
    options = dict(mapped.options)
    assert options["xla_room"] == "9" and sorted(compiler.fast(options)) == ["v.1", "v.2", "v.3"]
    assert mapped.method == "random" and mapped.trials[0].confirmed == mapped.best
    assert mapped.compiles == compiler.count("compile")
    # Before: the program as it was; after: under the best options.
    assert mapped.extracted.problem.capacity_bytes == 2 * SIZE_BYTES
    assert len(mapped.extracted.mapping.stays) == 2
    assert mapped.best_extracted is not None and len(mapped.best_extracted.mapping.stays) == 3


def test_options_that_end_contention_are_the_answer() -> None:
    compiler, lines = ChainCompiler(roomier={"xla_room": 4}), list[str]()
    budget = Budget(sweep=({"xla_room": "9"},), strategy="fixed orders")
    mapped = map_memory(compiler, MACHINE, budget, lines.append)
    assert mapped.options == (("xla_room", "9"),) and mapped.method == "option sweep"
    assert mapped.best.total == step_cycles_with(0, 1, 2, 3)
    assert mapped.best_extracted is not None and len(mapped.best_extracted.mapping.stays) == 4
    assert any(line.startswith("no search under option sweep: chain has no") for line in lines)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "luck"}, "strategy 'luck' is none of alphazero, evolution"),
        ({"assignments": 0}, "assignments=0 must be at least 1"),
        ({"compiles": 0}, "compiles=0 must be at least 1"),
        ({"episodes": -1}, "episodes=-1 must be at least 1"),
        ({"play_seconds": 0.0}, "play_seconds=0.0 must be above 0, or None"),
    ],
)
def test_budgets_that_cannot_work(values: dict[str, object], message: str) -> None:
    with pytest.raises(MemoryPlannerError, match=message):
        Budget(**values)  # type: ignore[arg-type]


def test_the_default_strategy_is_there() -> None:
    assert mapper.DEFAULT_STRATEGY in STRATEGIES
    assert strategies.alphazero is STRATEGIES["alphazero"]
