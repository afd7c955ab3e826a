"""No layout fits: the answer names the least memory, what fills it, and changes that would do."""

import re
from typing import Any

import optax
import pytest

import autoshard
import models


def refused(limit_bytes: int, **settings: Any) -> str:
    spec = models.get("gpt2_tiny", num_layers=4, scan_layers=True)
    with pytest.raises(autoshard.PlanError) as caught:
        autoshard.compile(
            spec.build(), "data=8,model=1", batch=spec.example_batch(64, 64),
            optimizer=optax.adam(1e-3), memory_limit_bytes=limit_bytes, **settings,
        )  # fmt: skip
    return str(caught.value)


def least_bytes(message: str) -> int:
    found = re.search(r"an estimated (\d+) bytes", message)
    assert found is not None
    return int(found[1])


def test_the_least_memory_is_named_with_what_fills_it() -> None:
    message = refused(1_000_000)
    assert "no layout of GPT2 fits 1000000 bytes" in message
    assert "of which activations are" in message
    assert least_bytes(message) > 1_000_000


def test_a_little_too_little_is_mended_by_recomputing_or_a_smaller_batch() -> None:
    least = least_bytes(refused(1_000_000))
    message = refused(int(0.9 * least))
    assert re.search(r"remat policy 'full' .*step time\)", message)
    assert re.search(r"2 microbatches \(.* [+-]\d+% step time\)", message)
    assert re.search(r"a batch of 32 \(.*1/2 of the rows", message)
    assert re.search(r"16 devices \(.*2x the chips\)", message)


def test_what_no_single_change_mends_is_said() -> None:
    assert "No single change" in refused(1000)


def test_what_is_named_as_a_way_out_is_one() -> None:
    """Recomputing was named: with it the same limit is met."""
    least = least_bytes(refused(1_000_000))
    spec = models.get("gpt2_tiny", num_layers=4, scan_layers=True)
    plan = autoshard.compile(
        spec.build(), "data=8,model=1", batch=spec.example_batch(64, 64),
        optimizer=optax.adam(1e-3), memory_limit_bytes=int(0.9 * least), passes="auto",
    ).plan  # fmt: skip
    assert plan.cost.memory.total_bytes <= 0.9 * least
    assert plan.passes
