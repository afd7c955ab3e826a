"""A compiler of one small program, with a fast memory in which only some of its values fit.

Four values of 4 KiB are made one after the other, and then read, v.0 once, v.1 twice, v.2 four
times and v.3 five times, so that all are alive at once:

    time      0  1    2    3    4    5      6      7      8          11     12         16
              p  v.0  v.1  v.2  v.3  r.0.0  r.1.0  r.1.1  r.2.0 ...  r.2.3  r.3.0 ...  r.3.4

Each reading takes 10,000 cycles, 1,000 fewer where the value lies in fast memory. While there is
room, the compiler places values in its own order, 0 to 3, or in that of the option for it.
"""

import dataclasses
import re
from collections.abc import Mapping

from memory_planner.evaluation import NOTHING_FAST, CompilerFailure
from memory_planner.overrides import ORDER_OPTION

SIZE_BYTES = 4096
SLOW_CYCLES = 10_000
SAVED_CYCLES = 1_000
READS = (1, 2, 4, 5)
OPERATIONS = len(READS) + sum(READS)

_OVERRIDE = re.compile(r'instruction_name_regex: "([^"]*)".*?assign_value: (-?\d+)')


@dataclasses.dataclass
class ChainCompiler:
    """A `memory_planner.evaluation.Compiler`.

    Attributes:
      capacity: values that fit.
      heeds: whether it follows an order.
      explains: whether its log can be read.
      roomier: whole-program options -> values that fit under them instead.
      dies_of: a compilation with this value placed first fails; none does with "".
      asked: options of every call, and what was called.
    """

    capacity: int = 2
    heeds: bool = True
    explains: bool = True
    roomier: dict[str, int] = dataclasses.field(default_factory=dict)
    dies_of: str = ""
    asked: list[tuple[str, dict[str, str]]] = dataclasses.field(default_factory=list)

    def assign(self, options: Mapping[str, str], *, with_log: bool) -> tuple[str, str]:
        self.asked.append(("explain" if with_log else "assign", dict(options)))
        order = self.order(options)
        return program(self.fast(options), with_cycles=False), (
            log(order, self.room(options)) if with_log and self.explains else ""
        )

    def compile(self, options: Mapping[str, str]) -> str:
        self.asked.append(("compile", dict(options)))
        if self.dies_of and self.order(options)[0] == self.dies_of:
            raise CompilerFailure(f"no code for {self.dies_of}")
        return program(self.fast(options), with_cycles=True)

    def order(self, options: Mapping[str, str]) -> list[str]:
        """Values, first placed first."""
        values = [f"v.{k}" for k in range(len(READS))]
        if not self.heeds:
            return values
        found = _OVERRIDE.findall(options.get(ORDER_OPTION, ""))
        ranks = {name.replace("\\\\", "").replace("\\", ""): int(value) for name, value in found}
        return sorted(values, key=lambda name: ranks.get(name, 0))

    def fast(self, options: Mapping[str, str]) -> list[str]:
        """Values in fast memory."""
        if NOTHING_FAST.items() <= options.items():
            return []
        return self.order(options)[: self.room(options)]

    def room(self, options: Mapping[str, str]) -> int:
        """Values that fit."""
        return max([self.capacity, *(n for name, n in self.roomier.items() if name in options)])

    def count(self, kind: str) -> int:
        """Calls of a kind: assign, explain or compile."""
        return sum(called == kind for called, _ in self.asked)


def program(fast: list[str], *, with_cycles: bool) -> str:
    """The scheduled program with some values in fast memory."""

    def line(name: str, text: str, cycles: int) -> str:
        written = f', backend_config={{"estimated_cycles":"{cycles}"}}' if with_cycles else ""
        space = "S(1)" if name in fast else ""
        return f"  {name} = f32[8,128]{{1,0:T(8,128){space}}} {text}{written}"

    lines = ["  p = f32[8,128]{1,0:T(8,128)} parameter(0)"]
    lines += [line(f"v.{k}", "add(p, p)", SLOW_CYCLES) for k in range(len(READS))]
    for k, n in _readings():
        cycles = SLOW_CYCLES - (SAVED_CYCLES if f"v.{k}" in fast else 0)
        lines.append(line(f"r.{k}.{n}", f"negate(v.{k})", cycles))
    lines[-1] = f"  ROOT{lines[-1][1:]}"
    body = "\n".join(lines)
    return f"HloModule chain, is_scheduled=true\n\nENTRY main (p: f32[]) -> f32[] {{\n{body}\n}}\n"


def log(order: list[str], capacity: int) -> str:
    """What libtpu would print of it."""
    values = [f"v.{k}" for k in range(len(READS))]
    readers = [f"r.{k}.{n}" for k, n in _readings()]
    names = ["p", *values, *readers]
    lines = [
        "memory_space_assignment_options::Options:",
        f"max_size_in_bytes: {capacity * SIZE_BYTES}",
        "alignment_in_bytes: 1024",
        *(f" {time}: main {name}" for time, name in enumerate(names)),
        "Adding required assignment for parameter value = <90 p> time = 0 space = def",
        "buffer_id,buffer_name,alt_mem_benefit,size,definition_time,use_times,use_names,is_scoped",
    ]
    for name in order:
        k = int(name[-1])
        uses = [reader for reader in readers if reader.startswith(f"r.{k}.")]
        times = ";".join(str(names.index(reader)) for reader in uses)
        operands = ";".join(f"{reader}, operand 0" for reader in uses)
        # Buffers and values are counted apart: v.0's buffer has the number of another's value.
        lines.append(f'{90 + k},"<{k} {name}>",1e-08,{SIZE_BYTES},{1 + k},"{times}","{operands}",0')
    lines.append("buffer_id,size,offset,start_time,end_time")
    for slot, name in enumerate(order[:capacity]):
        k = int(name[-1])
        last = names.index(f"r.{k}.{READS[k] - 1}")
        lines.append(f"{90 + k},{SIZE_BYTES},{slot * SIZE_BYTES},{1 + k},{last}")
    return "\n".join(f"I1124 16:30:49.7 26914 algorithm.cc:1] {line}" for line in lines) + "\n"


def step_cycles_with(*placed: int) -> int:
    """Of the program with some values, by number, in fast memory; nothing is copied."""
    return OPERATIONS * SLOW_CYCLES - SAVED_CYCLES * sum(READS[k] for k in placed)


def _readings() -> list[tuple[int, int]]:
    """(value, number of the reading), in the order of the schedule."""
    return [(k, n) for k, count in enumerate(READS) for n in range(count)]
