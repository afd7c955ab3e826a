"""Trials: what is asked of the compiler, what is remembered, and what the table learns."""

from memory_planner.evaluation import NOTHING_FAST, Evaluator, Trial
from memory_planner.overrides import order_options
from tests.memory_planner.chain_compiler import ChainCompiler, step_cycles_with
from tests.passes.hlo.texts import machine_of

TWO_THREE = order_options((("v.2", -1), ("v.3", -1)))


def evaluator_of(compiler: ChainCompiler) -> Evaluator:
    """One that has seen the default and the program with nothing in fast memory."""
    evaluator = Evaluator(compiler, machine_of())
    evaluator.confirm(Trial((), "default"))
    evaluator.confirm(Trial(tuple(NOTHING_FAST.items()), "without"))
    return evaluator


def test_equal_options_are_asked_once() -> None:
    compiler = ChainCompiler()
    evaluator = evaluator_of(compiler)
    for _ in range(2):
        trial = evaluator.screen(TWO_THREE, "mine")
        trial = evaluator.confirm(trial)
    assert (evaluator.assignments, evaluator.compiles) == (1, 3)
    assert (compiler.count("assign"), compiler.count("compile")) == (1, 3)
    assert trial.confirmed is not None and trial.confirmed.total == step_cycles_with(2, 3)


def test_what_was_compiled_is_screened_exactly_from_then_on() -> None:
    evaluator = evaluator_of(ChainCompiler())
    before = evaluator.screen({}, "default")
    assert before.screened is not None and before.confirmed is not None
    assert before.screened.total == before.confirmed.total == step_cycles_with(0, 1)
    trial = evaluator.screen(TWO_THREE, "mine")
    # A reading of v.2 is equal to one of v.0, which was compiled with either placement.
    assert trial.confirmed is None and trial.screened is not None
    assert trial.screened.total == step_cycles_with(2, 3)
    mixed = evaluator.screen(order_options((("v.1", -1), ("v.3", -1))), "mine")
    assert mixed.screened is not None and mixed.screened.total == step_cycles_with(1, 3)


def test_what_was_not_compiled_is_never_believed_to_be_quicker_than_what_was() -> None:
    evaluator = Evaluator(ChainCompiler(), machine_of())
    evaluator.confirm(Trial(tuple(NOTHING_FAST.items()), "without"))
    trial = evaluator.screen({}, "default")
    assert trial.screened is not None and trial.screened.total == step_cycles_with()
    evaluator.confirm(trial)
    learned = evaluator.reconsidered(trial)
    assert learned.screened is not None and learned.screened.total == step_cycles_with(0, 1)


def test_a_compilation_that_fails_is_remembered() -> None:
    compiler = ChainCompiler(dies_of="v.2")
    evaluator = evaluator_of(compiler)
    for _ in range(2):
        trial = evaluator.confirm(evaluator.screen(TWO_THREE, "mine"))
        assert trial.problem == "no code for v.2" and trial.confirmed is None
    assert compiler.count("compile") == 3


def test_progress_is_said_every_tenth_time() -> None:
    lines: list[str] = []
    evaluator = Evaluator(ChainCompiler(), machine_of(), lines.append)
    for k in range(20):
        evaluator.screen({"xla_option": str(k)}, "mine")
    assert lines == [f"assigning memory, for the {n}th time (mine)" for n in (10, 20)]
