"""`HloModule`: a program after compilation, as data.

HloModule
  Computation ...            the entry, loop bodies, fusions' insides, reductions
    Instruction ...          in schedule order where the module is scheduled
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from passes.hlo.shapes import Array, Shape

INT64_MAX = 2**63 - 1
# Where the compiler has no estimate it writes INT64_MAX, sometimes divided or a little less.
_SENTINEL = 1 << 60

CALLING_ATTRIBUTES = (
    "calls", "to_apply", "body", "condition", "branch_computations", "true_computation",
    "false_computation", "called_computations", "select", "scatter",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
      name: unique in its module, without `%`.
      opcode: `fusion`, `all-gather-start`, ...
      shape: of its result.
      operands: names of the instructions that it reads.
      literal: what stands in its parentheses where that is no operand (constants, parameters).
      attributes: everything behind the parentheses, as text, by name.
      op_name: JAX's name of the operation.
      frame: number of its source frame in the module, 0 if none; or a `file:line` text.
      is_root: whether it is its computation's result.
      line: where it stands in the text, from 1.
    """

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    literal: str
    attributes: Mapping[str, str] = dataclasses.field(compare=False)
    op_name: str
    frame: int | str
    is_root: bool
    line: int

    @property
    def backend_config(self) -> Mapping[str, Any]:
        """The compiler's notes, empty where there are none or they are no JSON object."""
        return _json(self.attributes.get("backend_config", ""))

    @property
    def estimated_cycles(self) -> int | None:
        """The TPU compiler's estimate for one execution; None where it has none."""
        return _cycles(self.attributes.get("backend_config", ""))

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, in the order of `CALLING_ATTRIBUTES`."""
        names: list[str] = []
        for attribute in CALLING_ATTRIBUTES:
            text = self.attributes.get(attribute)
            if text:
                names += [n.strip().lstrip("%") for n in text.strip("{}").split(",") if n.strip()]
        return tuple(names)

    @property
    def number(self) -> int | None:
        """Of a parameter; None for everything else and where it cannot be read."""
        is_number = self.opcode == "parameter" and self.literal.isdecimal()
        return int(self.literal) if is_number and len(self.literal) < 10 else None

    def ints(self, attribute: str) -> tuple[int, ...]:
        """`{1,0}` as numbers; empty where the attribute is absent."""
        return tuple(int(n) for n in re.findall(r"\d{1,18}", self.attributes.get(attribute, "")))


@functools.lru_cache(maxsize=4096)
def _json(text: str) -> Mapping[str, Any]:
    if not text.startswith("{"):
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


_CYCLES = re.compile(r'"estimated_cycles":"?(\d{1,19})\b')


def _cycles(text: str) -> int | None:
    match = _CYCLES.search(text)
    if match is None:
        return None
    cycles = int(match[1])
    return None if cycles >= _SENTINEL else cycles


@dataclasses.dataclass(frozen=True)
class Computation:
    """A sequence of instructions with parameters and a result.

    Attributes:
      name: without `%`.
      instructions: in the text's order.
      is_entry: whether the program begins here.
    """

    name: str
    instructions: tuple[Instruction, ...]
    is_entry: bool = False

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Its instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """The result: the instruction marked ROOT, else the last."""
        marked = (i for i in self.instructions if i.is_root)
        return next(marked, self.instructions[-1])

    @functools.cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        """Its parameters by number."""
        return {i.number: i for i in self.instructions if i.number is not None}


@dataclasses.dataclass(frozen=True)
class HloModule:
    """A whole program.

    Attributes:
      name: the module's name.
      attributes: of its first line, as text.
      computations: by name.
      entry: name of the entry computation.
      sources: for each frame number, `file.py:line (function)` of the innermost frame that is the
        user's.
      unknown: (construct, how often): what the reader did not know.
    """

    name: str
    attributes: Mapping[str, str] = dataclasses.field(compare=False)
    computations: Mapping[str, Computation]
    entry: str
    sources: Mapping[int, str] = dataclasses.field(compare=False)
    unknown: tuple[tuple[str, int], ...]

    @property
    def entry_computation(self) -> Computation:
        """Where the program begins."""
        return self.computations[self.entry]

    @property
    def is_scheduled(self) -> bool:
        """Whether the order of instructions is the compiler's schedule."""
        return self.attributes.get("is_scheduled") == "true"

    @property
    def device_count(self) -> int:
        """Devices that the program runs on (partitions times replicas)."""
        counts = [self.attributes.get(key, "1") for key in ("num_partitions", "replica_count")]
        product = 1
        for count in counts:
            product *= int(count) if count.isdecimal() and len(count) < 10 else 1
        return max(1, product)

    def source(self, instruction: Instruction) -> str:
        """`file.py:line (function)` where an instruction comes from; empty if unknown."""
        if isinstance(instruction.frame, str):
            return instruction.frame
        return self.sources.get(instruction.frame, "")

    def shape_of(self, computation: Computation, operand: str) -> Shape:
        """Shape of an operand within its computation; an empty array where it is missing."""
        instruction = computation.by_name.get(operand)
        return instruction.shape if instruction is not None else Array("opaque", ())
