"""Collectives of compiled HLO, read independently of the package under test."""

import dataclasses
import math
import re
from typing import Any

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_LINE = re.compile(rf"= (?P<type>.*?) (?P<kind>{_KINDS})(-start)?\(")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d+)\[(?P<shape>[\d,]*)\]")
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "f16": 2, "pred": 1}


@dataclasses.dataclass(frozen=True)
class Moved:
    """One array moved by a collective (an operation combines several): per-device result shape."""

    kind: str
    shape: tuple[int, ...]
    size_bytes: int
    source: str


def hlo_of(lowered: Any) -> str:
    """The optimised HLO of a `jax.stages.Lowered`."""
    return str(lowered.compile().as_text())


def moved_arrays(text: str) -> list[Moved]:
    """Every array moved by every collective of an HLO module."""
    found = []
    for line in text.splitlines():
        match = _LINE.search(line)
        if match is None:
            continue
        source = re.search(r'op_name="([^"]*)"', line)
        for array in _ARRAY.finditer(match["type"]):
            shape = tuple(int(x) for x in array["shape"].split(",") if x)
            size = math.prod(shape) * _BYTES[array["dtype"]]
            found.append(Moved(match["kind"], shape, size, source[1] if source else ""))
    return found
