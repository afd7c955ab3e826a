"""A real program to read: a skip-MLP as libtpu 0.0.42's v5e compiler makes it, and its log.

Twelve products of [4096, 3072] by [3072, 3072], each adding the result of three before; the sum of
all is returned. Stack frames are cut out, and of the log what is not read.
"""

import functools
import gzip
from pathlib import Path

from passes.hlo.module import HloModule
from passes.hlo.parse import parse

FOLDER = Path(__file__).parent / "golden"


@functools.cache
def text(name: str) -> str:
    """`assigned`, `compiled` or `without` (memory-space assignment): HLO; `log`."""
    suffix = "" if name == "log" else ".hlo"
    return gzip.decompress((FOLDER / f"skip_mlp.{name}{suffix}.gz").read_bytes()).decode()


@functools.cache
def module(name: str) -> HloModule:
    """A program of `text`, read."""
    return parse(text(name))
