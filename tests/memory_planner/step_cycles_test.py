"""Cycles and stalls of hand-made schedules: 4,096 bytes take 4,096 cycles of HBM."""

import pytest

from memory_planner.step_cycles import step_cycles
from passes.hlo.errors import HloError
from passes.hlo.parse import parse
from tests.passes.hlo.texts import machine_of, module_of

MACHINE = machine_of()  # 1 GHz, 1 GB/s: a byte a cycle
HEAD = """
p = f32[8,128]{1,0} parameter(0)
q = f32[8,128]{1,0:S(1)} add(p, p), backend_config={"estimated_cycles":"10000"}
"""
START = "c = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]) copy-start(p)"
DONE = "d = f32[8,128]{1,0:S(1)} copy-done(c)"


def fast(name: str, operand: str, cycles: int) -> str:
    """An operation that leaves HBM alone."""
    return (
        f"{name} = f32[8,128]{{1,0:S(1)}} negate({operand}), "
        f'backend_config={{"estimated_cycles":"{cycles}"}}'
    )


def test_a_copy_is_served_while_operations_leave_hbm_alone_and_waited_for_then() -> None:
    module = module_of("\n".join([HEAD, START, fast("a", "q", 1_000), DONE, fast("b", "d", 500)]))
    step = step_cycles(module, MACHINE)
    assert (step.cycles, step.stall_cycles, step.copied_bytes) == (11_500, 3_096, 4_096)
    assert step.total == 14_596
    assert [(r.instruction, r.stall_cycles) for r in step.runs] == [
        ("q", 0),
        ("a", 0),
        ("b", 3_096),
    ]


def test_an_operations_own_traffic_leaves_less_for_copies() -> None:
    # It reads and writes 4,096 bytes each in its 10,000 cycles: 1,808 are left.
    slow = 's = f32[8,128]{1,0} exponential(p), backend_config={"estimated_cycles":"10000"}'
    module = module_of("\n".join([HEAD, START, slow, DONE, fast("b", "d", 500)]))
    assert step_cycles(module, MACHINE).stall_cycles == 4_096 - (10_000 - 2 * 4_096)


def test_a_copy_that_is_done_in_time_costs_nothing() -> None:
    module = module_of("\n".join([HEAD, START, fast("a", "q", 4_096), DONE, fast("b", "d", 500)]))
    assert step_cycles(module, MACHINE).stall_cycles == 0


def test_copies_queue() -> None:
    second = START.replace("c =", "c2 =")
    done = DONE.replace("d =", "d2 =").replace("(c)", "(c2)")
    lines = [HEAD, START, second, fast("a", "q", 1_000), done, fast("b", "d2", 500), DONE]
    step = step_cycles(module_of("\n".join([*lines, fast("e", "d", 500)])), MACHINE)
    # Waiting for the second ends the first.
    assert step.stall_cycles == 2 * 4_096 - 1_000 and step.copied_bytes == 2 * 4_096


def test_a_prefetch_across_steps_and_a_copy_to_the_host_cost_nothing() -> None:
    across = f"{START}, cross_program_prefetch_index=0"
    host = START.replace("S(1)", "S(5)")
    for start in (across, host):
        step = step_cycles(module_of("\n".join([HEAD, start, DONE, fast("b", "d", 500)])), MACHINE)
        assert (step.stall_cycles, step.copied_bytes) == (0, 0)


def loop(config: str) -> tuple[str, str, str]:
    body = f"""
    body
    b = (f32[8,128]{{1,0:S(1)}}) parameter(0)
    x = f32[8,128]{{1,0:S(1)}} get-tuple-element(b), index=0
    {fast("y", "x", 700)}
    ROOT t = (f32[8,128]{{1,0:S(1)}}) tuple(y)
    """
    condition = """
    condition
    k = (f32[8,128]{1,0:S(1)}) parameter(0)
    ROOT go = pred[] constant(true)
    """
    entry = f"""
    {HEAD.strip()}
    t0 = (f32[8,128]{{1,0:S(1)}}) tuple(q)
    w = (f32[8,128]{{1,0:S(1)}}) while(t0), condition=%condition, body=%body{config}
    """
    return "\n".join(line.strip() for line in entry.splitlines()), body, condition


def test_loops_are_multiplied_and_unknown_ones_counted_once() -> None:
    known = module_of(*loop(', backend_config={"known_trip_count":{"n":"5"}}'))
    step = step_cycles(known, MACHINE)
    assert step.cycles == 10_000 + 5 * 700 and step.unknown_loops == 0
    assert [(r.instruction, r.repeats) for r in step.runs] == [("q", 1), ("y", 5)]
    unknown = step_cycles(module_of(*loop("")), MACHINE)
    assert unknown.cycles == 10_700 and unknown.unknown_loops == 1


def test_other_cycles_may_be_given() -> None:
    module = module_of("\n".join([HEAD, fast("a", "q", 1_000)]))
    assert step_cycles(module, MACHINE, lambda m, c, i: 7.0).cycles == 14


def test_a_program_that_is_not_scheduled_is_refused() -> None:
    text = "HloModule x\n\nENTRY main (p: f32[]) -> f32[] {\n  p = f32[] parameter(0)\n}\n"
    with pytest.raises(HloError, match="is not scheduled"):
        step_cycles(parse(text), MACHINE)
