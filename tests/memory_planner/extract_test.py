"""From a compiler's log to a problem, and the replay of what the compiler decided."""

import pytest

from autoshard.machine import machine_model
from autoshard.topology import Topology
from memory_planner.assignment_log import AssignmentLogError, read_log
from memory_planner.cost_table import CostTable
from memory_planner.extract import extract
from memory_planner.problem import Buffer, MemoryMapping, MemoryProblem, Operation, Stay, Use
from memory_planner.replay import replay
from memory_planner.step_cycles import step_cycles
from passes.hlo.parse import parse
from tests.memory_planner import golden
from tests.memory_planner.chain_compiler import (
    OPERATIONS,
    READS,
    SIZE_BYTES,
    ChainCompiler,
    log,
    program,
    step_cycles_with,
)
from tests.passes.hlo.texts import machine_of

V5E = machine_model(Topology.parse("v5e:1x1"))


def test_the_log_of_a_small_program() -> None:
    read = read_log(log(["v.2", "v.0", "v.1", "v.3"], 2))
    assert (read.capacity_bytes, read.alignment_bytes) == (2 * SIZE_BYTES, 1024)
    assert (
        read.schedule[:2] == (("main", "p"), ("main", "v.0"))
        and len(read.schedule) == 1 + OPERATIONS
    )
    assert [b.name for b in read.buffers] == ["v.2", "v.0", "v.1", "v.3"]
    assert read.buffers[0].uses[0].operation == "r.2.0" and read.buffers[0].uses[3].time == 11
    assert [(p.number, p.offset_bytes, p.begin, p.last) for p in read.places] == [
        (92, 0, 3, 11),
        (90, SIZE_BYTES, 1, 5),
    ]
    assert [(b.number, b.value) for b in read.buffers][:2] == [(92, 2), (90, 0)]
    assert read.inputs == frozenset((90,)) and read.results == frozenset()


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("Options:", "holds no memory-space assignment"),
        ("max_size_in_bytes", "lacks max_size_in_bytes"),
        ("alignment_in_bytes", "lacks alignment_in_bytes"),
        (": main ", "lacks the flattened schedule"),
        ("buffer_id,buffer_name", "lacks the table of buffers"),
        ("buffer_id,size", "lacks the table of places"),
        (" 4: main", "not as expected"),
    ],
)
def test_what_a_log_lacks_is_named(lost: str, message: str) -> None:
    lines = [line for line in log(["v.0"], 1).splitlines() if lost not in line]
    with pytest.raises(AssignmentLogError, match=message):
        read_log("\n".join(lines))


def test_a_text_that_is_no_log() -> None:
    with pytest.raises(AssignmentLogError, match="holds no memory-space assignment"):
        read_log("")


def test_a_small_problem_is_what_was_made() -> None:
    compiler, machine = ChainCompiler(), machine_of()
    table = CostTable(machine)
    table.learn(parse(program(["v.0", "v.1"], with_cycles=True)))
    table.learn(parse(program([], with_cycles=True)))
    text, log_text = compiler.assign({}, with_log=True)
    found = extract(parse(text), read_log(log_text), table, machine)
    problem = found.problem
    assert len(problem.operations) == 1 + OPERATIONS and problem.use_count == sum(READS)
    first = problem.buffers[0]
    assert (first.name, first.size_bytes, first.begin, first.end) == ("v.0", SIZE_BYTES, 1, 6)
    assert first.copy_ns == SIZE_BYTES and not first.starts_in_hbm
    assert first.uses[0].benefit_ns == pytest.approx(1_000, rel=0.2)
    # What the compiler did costs what it says; so does nothing in fast memory.
    assert replay(problem, found.mapping).total_ns == step_cycles_with(0, 1)
    assert [(s.buffer, s.begin, s.end, s.uses) for s in found.mapping.stays] == [
        (0, 1, 6, (0,)),
        (1, 2, 8, (0, 1)),
    ]
    # An operation with nothing in fast memory may still win something there.
    reader = problem.operations[8]
    assert (reader.name, reader.slow_ns, reader.floor_ns) == ("r.2.0", 10_000, 9_000)


def test_a_real_program_is_replayed_to_two_percent() -> None:
    table = CostTable(V5E)
    table.learn(golden.module("without"))
    table.learn(golden.module("compiled"))
    found = extract(golden.module("assigned"), read_log(golden.text("log")), table, V5E)
    problem = found.problem
    assert len(problem.buffers) == 24 and problem.capacity_bytes == 112 << 20
    real = step_cycles(golden.module("compiled"), V5E)
    replayed = replay(problem, found.mapping).total_ns * V5E.clock_hz / 1e9
    assert replayed == pytest.approx(real.total, rel=0.02)
    # From the table alone, without the compiler's code, it is as near.
    screened = step_cycles(golden.module("assigned"), V5E, table.cycles_of)
    assert screened.total == pytest.approx(real.total, rel=0.02)
    assert step_cycles(golden.module("without"), V5E).total > 1.3 * real.total
    # The compiler leaves x in HBM without a word; the weights are the other inputs.
    assert sum(b.starts_in_hbm for b in problem.buffers) == 12


_REPEATS = (("a", 1), ("b", 2), ("c", 1))


def small(copy_ns: int, *stays: Stay) -> tuple[MemoryProblem, MemoryMapping]:
    """Three operations of 100 ns with 40 ns of HBM to spare; a buffer that is read by the last."""
    operations = tuple(Operation(name, 100, 10, 40, repeats) for name, repeats in _REPEATS)
    buffers = (Buffer("x", 4, 0, (Use(2, 30),), 0, copy_ns, starts_in_hbm=True),)
    return MemoryProblem("small", operations, buffers, 8), MemoryMapping(stays)


@pytest.mark.parametrize(("copy_ns", "stall_ns"), [(60, 0.0), (80, 0.0), (95, 15.0)])
def test_replay_counts_waits(copy_ns: int, stall_ns: float) -> None:
    # Begun before the first operation, served in 40 ns of each of two, needed by the third.
    replayed = replay(*small(copy_ns, Stay(0, 0, 3, 0, True, (0,))))
    assert (replayed.busy_ns, replayed.stall_ns) == (400 - 30, stall_ns)
    assert replayed.total_ns == 370 + stall_ns


def test_replay_of_nothing() -> None:
    assert replay(*small(60)).total_ns == 400
