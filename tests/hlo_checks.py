"""What holds for every optimised program that a test makes: the HLO reader knows all of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from passes.hlo.parse import parse


def understood(text: str) -> str:
    """The text of a compiled program, once it is read without anything unknown."""
    unknown = parse(text).unknown
    assert not unknown, f"passes.hlo does not know all of a compiled program: {unknown}"
    return text


@contextmanager
def every_program_understood() -> Iterator[None]:
    """Within it, every text that `jax.stages.Compiled.as_text` returns is checked."""
    written = jax.stages.Compiled.as_text

    def checked(self: jax.stages.Compiled) -> str | None:
        text = written(self)
        return text if text is None else understood(text)

    stage: Any = jax.stages.Compiled
    stage.as_text = checked
    try:
        yield
    finally:
        stage.as_text = written
