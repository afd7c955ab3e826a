"""The tests' own reading of collectives and that of `passes.hlo` agree on a compiled program."""

import collections

from passes.hlo.collectives import collective_of
from passes.hlo.parse import parse
from tests.autoshard import cases
from tests.autoshard.hlo import hlo_of, moved_arrays


def test_collectives_of_a_train_step() -> None:
    """By kind, array and bytes: the CPU compiler writes them all synchronous and in the open."""
    text = hlo_of(
        cases.compile_case(
            cases.small("llama", num_layers=1), "data=2,model=4", "zero3+redco"
        ).lower()
    )
    module = parse(text)
    found: collections.Counter[tuple[str, int]] = collections.Counter()
    for computation in module.computations.values():
        for instruction in computation.instructions:
            collective = collective_of(module, computation, instruction)
            if collective is not None:
                found.update((collective.kind, size) for size in collective.array_bytes)
    expected = collections.Counter((moved.kind, moved.size_bytes) for moved in moved_arrays(text))
    assert found == expected
    assert {kind for kind, _ in found} >= {"all-gather", "all-reduce"}
