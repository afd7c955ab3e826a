"""The check of every program does look at the programs of tests, and finds what is not known."""

import jax
import jax.numpy as jnp
import pytest

from tests.hlo_checks import every_program_understood, understood

TEXT = """\
HloModule m, is_scheduled=true

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  ROOT %r = f32[2]{0} negate(%x)
}
"""


def test_texts() -> None:
    assert understood(TEXT) == TEXT
    with pytest.raises(AssertionError, match="operation frobnicate"):
        understood(TEXT.replace("negate", "frobnicate"))


def test_programs_of_tests_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(2)).compile()
    text = compiled.as_text()
    assert text is not None
    monkeypatch.setattr(jax.stages.Compiled, "as_text", lambda self: text.replace(" add(", " sum("))
    assert "sum(" in str(compiled.as_text())
    with every_program_understood(), pytest.raises(AssertionError, match="operation sum"):
        compiled.as_text()
    assert "sum(" in str(compiled.as_text())


def test_it_is_on_in_every_test() -> None:
    assert jax.stages.Compiled.as_text.__module__ == "tests.hlo_checks"
