"""From a compiled program and its log of memory-space assignment to a `MemoryProblem`.

program whose memory is assigned -> operations, what each is worth by placement
log -> time, buffers, uses, capacity, the compiler's own mapping
"""

import dataclasses
import math

from memory_planner.assignment_log import AssignmentLog, LoggedBuffer
from memory_planner.cost_table import CostTable, Savings
from memory_planner.problem import Buffer, MemoryMapping, MemoryProblem, Operation, Stay, Use
from memory_planner.signature import FAST_SPACE, placement, positions
from passes.hlo.loops import trip_count
from passes.hlo.machine import MachineModel
from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.opcodes import FREE
from passes.hlo.traffic import hbm_traffic

_NS = 1e9
_MAX_NS = 2**31 - 1
# What operations with a computation of their own cost stands at the operations inside.
_CALLS = frozenset(("while", "conditional", "call"))


@dataclasses.dataclass(frozen=True)
class Extracted:
    """A program's problem, and what its compiler did.

    Attributes:
      problem: the buffers in the order in which the compiler placed them.
      positions: for each buffer, the HLO position that a compiler option names it by: instruction
        and tuple index (-1: the whole).
      mapping: the compiler's own.
    """

    problem: MemoryProblem
    positions: tuple[tuple[str, int], ...]
    mapping: MemoryMapping


def extract(
    module: HloModule, log: AssignmentLog, table: CostTable, machine: MachineModel
) -> Extracted:
    """Make the problem.

    Args:
      module: the program that the log is about, compiled as far as its buffers' places.
      log: of the same compilation.
      table: what operations cost by placement.
      machine: for clock and bandwidth.
    """
    times = _times(module, log, table, machine)
    logged = [b for b in log.buffers if not b.is_scoped and b.size_bytes > 0]
    buffers = tuple(_buffer(b, log, times, machine) for b in logged)
    operations = _without_others(times, logged)
    numbers = {b.number: n for n, b in enumerate(logged)}
    problem = MemoryProblem(
        module.name, operations, buffers, log.capacity_bytes, log.alignment_bytes
    )
    return Extracted(
        problem, tuple(_position(b.name) for b in logged), _mapping(log, numbers, buffers, times)
    )


@dataclasses.dataclass(frozen=True)
class _Time:
    """One time step: the operation, and what it saves by (operand or -1, element of its tuple), and
    which of these lie in fast memory now."""

    operation: Operation
    saved_ns: dict[tuple[int, int], int]
    fast: frozenset[tuple[int, int]] = frozenset()


def _times(
    module: HloModule, log: AssignmentLog, table: CostTable, machine: MachineModel
) -> list[_Time]:
    repeats = computation_repeats(module)
    nothing = Operation("", 0, 0, 0)
    found = []
    for computation, name in log.schedule:
        c = module.computations.get(computation)
        i = c.by_name.get(name) if c is not None else None
        if c is None or i is None or i.opcode in FREE or i.opcode in _CALLS:
            found.append(_Time(dataclasses.replace(nothing, name=name), {}))
            continue
        found.append(_time(module, c, i, table, machine, repeats.get(c.name, 1)))
    return found


def _time(
    module: HloModule, c: Computation, i: Instruction, table: CostTable, machine: MachineModel,
    repeats: int,
) -> _Time:  # fmt: skip
    to_ns = _NS / machine.clock_hz
    savings = _anchored(
        table.savings(module, c, i), placement(module, c, i), table.cycles_of(module, c, i)
    )
    floor_cycles = min(savings.slow_cycles, max(savings.floor_cycles, savings.reached_cycles))
    saved: dict[tuple[int, int], int] = {}
    elements: dict[int, int] = {}
    fast: set[tuple[int, int]] = set()
    for (number, array), cycles in zip(positions(module, c, i), savings.saved_cycles, strict=True):
        element = elements[number] = elements.get(number, -1) + 1
        saved[number, element] = round(cycles * to_ns)
        if array.space == FAST_SPACE:
            fast.add((number, element))
    now_ns = savings.cycles(placement(module, c, i)) * to_ns
    own_ns = hbm_traffic(module, c, i) / machine.hbm_bytes_per_s * _NS
    operation = Operation(
        name=i.name,
        slow_ns=min(_MAX_NS, round(savings.slow_cycles * to_ns)),
        floor_ns=min(_MAX_NS, round(floor_cycles * to_ns)),
        free_ns=max(0, round(now_ns - own_ns)),
        repeats=repeats,
    )
    return _Time(operation, saved, frozenset(fast))


def _anchored(savings: Savings, where: tuple[bool, ...], cycles: float | None) -> Savings:
    """The model made exact for the placement that the program has."""
    if cycles is None:
        return savings
    saved = sum(s for s, fast in zip(savings.saved_cycles, where, strict=True) if fast)
    if not saved:
        floor = min(savings.floor_cycles, cycles)
        return dataclasses.replace(savings, floor_cycles=floor, slow_cycles=cycles)
    if savings.slow_cycles - saved <= savings.floor_cycles:
        slow = max(savings.slow_cycles, cycles)
        return dataclasses.replace(savings, floor_cycles=cycles, slow_cycles=slow)
    factor = (savings.slow_cycles - cycles) / saved
    scaled = tuple(
        max(0.0, s * factor) if fast else s
        for s, fast in zip(savings.saved_cycles, where, strict=True)
    )
    return dataclasses.replace(savings, saved_cycles=scaled)


def _without_others(times: list[_Time], logged: list[LoggedBuffer]) -> tuple[Operation, ...]:
    """The operations, with what lies in fast memory and is no buffer to decide about left there.

    Such are values that the previous step fetches ahead, and constants.
    """
    decided = {(use.time, use.operand, use.element) for b in logged for use in b.uses}
    decided |= {(b.time, -1, max(0, _position(b.name)[1])) for b in logged}
    found = []
    for when, time in enumerate(times):
        others = sum(time.saved_ns[key] for key in time.fast if (when, *key) not in decided)
        slow = max(
            min(time.operation.floor_ns, time.operation.slow_ns), time.operation.slow_ns - others
        )
        found.append(dataclasses.replace(time.operation, slow_ns=slow))
    return tuple(found)


def computation_repeats(module: HloModule) -> dict[str, int]:
    """How often each computation of the schedule runs in a step, loops multiplied."""
    repeats = {module.entry: 1}
    queue = [module.entry]
    while queue:
        c = module.computations[queue.pop()]
        for i in (i for i in c.instructions if i.opcode in _CALLS):
            times = repeats[c.name]
            if i.opcode == "while":
                times *= trip_count(module, c, i) or 1
            for name in i.called:
                if name in module.computations and name not in repeats:
                    repeats[name] = times
                    queue.append(name)
    return repeats


def _buffer(
    b: LoggedBuffer, log: AssignmentLog, times: list[_Time], machine: MachineModel
) -> Buffer:
    uses: dict[int, Use] = {}
    for use in b.uses:
        if use.time < b.time or use.time >= len(times):
            continue
        benefit = times[use.time].saved_ns.get((use.operand, use.element), 0)
        if use.time in uses:
            benefit += uses[use.time].benefit_ns
        uses[use.time] = Use(use.time, benefit, use.operand)
    return Buffer(
        name=b.name,
        size_bytes=b.size_bytes,
        begin=b.time,
        uses=tuple(uses[t] for t in sorted(uses)),
        benefit_ns=times[b.time].saved_ns.get((-1, max(0, _position(b.name)[1])), 0),
        copy_ns=max(1, math.ceil(b.size_bytes / machine.hbm_bytes_per_s * _NS)),
        starts_in_hbm=b.value in log.inputs,
        ends_in_hbm=b.value in log.results,
    )


def _position(name: str) -> tuple[str, int]:
    """`while.3{1}` as instruction and tuple index."""
    instruction, _, index = name.partition("{")
    first = index.rstrip("}").split(",")[0]
    return instruction, int(first) if first.isdecimal() else -1


def _mapping(
    log: AssignmentLog, numbers: dict[int, int], buffers: tuple[Buffer, ...], times: list[_Time]
) -> MemoryMapping:
    stays = []
    for place in log.places:
        number = numbers.get(place.number)
        if number is None:
            continue
        b = buffers[number]
        later = b.starts_in_hbm or place.begin > b.begin
        # The table does not tell when a copy is done, but the operands do.
        served = tuple(
            n
            for n, use in enumerate(b.uses)
            if place.begin + later <= use.time <= place.last
            and _is_fast(times[use.time], use)
            # The end of the program reads its results from HBM.
            and not (b.ends_in_hbm and use.time == len(times) - 1)
        )
        # A stay that begins later and that nothing reads is an update in place, written there.
        stays.append(
            Stay(
                number,
                place.begin,
                place.last + 1,
                place.offset_bytes,
                later and bool(served),
                served,
            )
        )
    return MemoryMapping(tuple(stays))


def _is_fast(time: _Time, use: Use) -> bool:
    """Whether an operand lies in fast memory; of what has no work of its own, yes."""
    return not time.saved_ns or any(number == use.operand for number, _ in time.fast)
