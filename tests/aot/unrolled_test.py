"""Few layers: the program is planned with them rolled and as written, and the quicker is kept."""

import importlib.util

import pytest

import autoshard
from tests.autoshard import cases

pytestmark = [
    pytest.mark.aot,
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
]


@pytest.fixture(scope="module", params=[2, 8])
def planned(request: pytest.FixtureRequest) -> tuple[int, autoshard.CompiledModel]:
    layers = request.param
    spec = cases.small("gpt2", num_layers=layers, scan_layers=False)
    search = autoshard.SearchOptions(max_layouts=20, microbatches=(1,), verify=1)
    compiled = autoshard.compile(
        spec.build(), "v5e:2x2", batch=spec.example_batch(8), passes="auto", search=search
    )
    return layers, compiled


def test_both_are_compiled_where_layers_are_few(
    planned: tuple[int, autoshard.CompiledModel],
) -> None:
    layers, compiled = planned
    rows = compiled.plan.verified
    rolled = ["stack_layers" in row.rules for row in rows]
    assert set(rolled) == ({True, False} if layers == 2 else {True})
    simulated = [row.simulated_s for row in rows if row.simulated_s is not None]
    assert simulated[0] == min(simulated)
    assert [row.verdict for row in rows].count("chosen") == 1 and rows[0].verdict == "chosen"


def test_the_plan_is_of_the_program_that_was_chosen(
    planned: tuple[int, autoshard.CompiledModel],
) -> None:
    _, compiled = planned
    chosen = compiled.plan.verified[0]
    names = [record.name for record in compiled.plan.passes]
    assert ("stack_layers" in names) == ("stack_layers" in chosen.rules)
    assert compiled.report.timeline is not None
    assert compiled.report.timeline.step_s == pytest.approx(chosen.simulated_s)
    # It can be used again as it is.
    spec = cases.small("gpt2", num_layers=planned[0], scan_layers=False)
    again = autoshard.compile(
        spec.build(), "v5e:2x2", batch=spec.example_batch(8), plan=compiled.plan
    )
    assert again.report.timeline is not None
    assert again.report.timeline.step_s == pytest.approx(chosen.simulated_s)
