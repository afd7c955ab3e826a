"""The integer program finds what trying every choice finds."""

import itertools
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from passes.errors import PassError
from passes.remat_problem import (
    BlockChoice,
    BlockProblem,
    Rates,
    Step,
    Value,
    block_seconds,
    kept_bytes,
    repeated_steps,
)
from passes.remat_solver import saved_bytes, solve, solve_any, trimmed

HBM = 1e3


def chain(seconds: tuple[float, ...], sizes: tuple[float, ...], length: int = 1) -> BlockProblem:
    """carry -> v0 -> v1 -> ...; the backward pass needs every value."""
    values = [Value("carry", 1.0, None, False)]
    values += [Value(f"v{i}", size, i, False) for i, size in enumerate(sizes)]
    steps = [Step((i,), s, s) for i, s in enumerate(seconds)]
    return BlockProblem("chain", length, tuple(values), tuple(steps), tuple(range(len(values))))


def drawn(seed: int, label: str) -> BlockProblem:
    """A random block of up to six values that can be kept."""
    rng = random.Random(seed)
    values = [Value("", 3.0, None, True), Value(f"{label}/carry", 2.0, None, False)]
    steps = []
    for e in range(rng.randint(1, 5)):
        reads = rng.sample(range(len(values)), rng.randint(1, min(3, len(values))))
        steps.append(Step(tuple(reads), rng.choice([0.0, 0.5, 1.0, 2.0, 3.5]), 1.0))
        for _ in range(rng.randint(1, 2)):
            named = rng.random() < 0.7
            name = f"{label}/{len(values)}" if named else ""
            values.append(Value(name, rng.choice([1.0, 2.0, 4.0]), e, False))
    needed = tuple(sorted(rng.sample(range(len(values)), rng.randint(1, len(values)))))
    return BlockProblem(label, rng.randint(1, 3), tuple(values), tuple(steps), needed)


def best_by_trying(blocks: list[BlockProblem], budget: float, rates: Rates) -> float | None:
    """The least seconds of all choices that fit, or None."""
    options = []
    for block in blocks:
        found = []
        places = (0, 1, 2) if rates.offload else (0, 1)
        for where in itertools.product(places, repeat=len(block.nameable)):
            saved = frozenset(v for v, w in zip(block.nameable, where, strict=True) if w == 1)
            host = frozenset(v for v, w in zip(block.nameable, where, strict=True) if w == 2)
            moved = sum(block.values[v].size_bytes for v in host) / rates.host_bytes_per_s
            repeated = repeated_steps(block, saved | host)
            if repeated is None or (rates.hidden and moved > block.forward_s + 1e-9):
                continue
            choice = BlockChoice(saved, host, repeated)
            found.append((kept_bytes(block, saved), block_seconds(block, choice, rates)))
        options.append(found)
    fitting = [
        sum(seconds for _, seconds in pick)
        for pick in itertools.product(*options)
        if sum(size for size, _ in pick) <= budget + 1e-9
    ]
    return min(fitting, default=None)


@settings(max_examples=60, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=2),
    budget=st.sampled_from([0.0, 2.0, 5.0, 9.0, 14.0, 100.0]),
    offload=st.booleans(),
    hidden=st.booleans(),
)
def test_equals_trying_every_choice(
    seeds: list[int], budget: float, offload: bool, hidden: bool
) -> None:
    blocks = [drawn(seed, f"b{i}") for i, seed in enumerate(seeds)]
    if offload and sum(len(block.nameable) for block in blocks) > 8:
        blocks = blocks[:1]
    rates = Rates(HBM, 2.0, offload, hidden)
    expected = best_by_trying(blocks, budget, rates)
    if expected is None:
        with pytest.raises(PassError, match="raise budget_bytes"):
            solve(blocks, budget, rates)
        return
    choice = solve(blocks, budget, rates)
    assert choice.proved
    assert saved_bytes(blocks, choice) <= budget + 1e-9
    scale = sum(block.length * block.forward_s for block in blocks) + 1.0
    assert choice.seconds == pytest.approx(expected, abs=1e-3 * scale)


def test_saves_what_is_dear_to_make() -> None:
    block = chain((5.0, 1.0, 4.0), (2.0, 2.0, 2.0), length=10)
    choice = solve([block], 10 * (1.0 + 4.0), Rates(HBM, 1.0))
    kept = {block.values[i].name for i in choice.blocks[0].saved}
    assert kept == {"carry", "v0", "v2"}
    assert choice.blocks[0].repeated == {1}
    # The carry, which no product makes, crosses to or from memory three times.
    assert choice.seconds == pytest.approx(10 * (1.0 + (3 * 1.0 + 4.0) / HBM))


def test_more_budget_is_never_slower() -> None:
    blocks = [chain((5.0, 1.0, 4.0), (2.0, 3.0, 5.0)), chain((2.0, 9.0), (4.0, 4.0), length=2)]
    times = [solve(blocks, budget, Rates(HBM, 1.0)).seconds for budget in range(4, 40, 3)]
    assert all(a >= b - 1e-3 for a, b in itertools.pairwise(times)), times
    assert times[0] > times[-1]


def test_a_hidden_transfer_fits_in_the_forward_pass() -> None:
    block = chain((1.0, 1.0), (4.0, 4.0))
    budget = 1.0
    limited = solve([block], budget, Rates(HBM, 3.0, offload=True, hidden=True)).blocks[0]
    assert sum(block.values[i].size_bytes for i in limited.offloaded) <= 2.0 * 3.0
    free = solve([block], budget, Rates(HBM, 3.0, offload=True, hidden=False)).blocks[0]
    assert {block.values[i].name for i in free.offloaded} >= {"v0", "v1"}
    assert not free.repeated


def test_too_small_a_budget_says_how_much_is_needed() -> None:
    block = chain((1.0,), (4.0,), length=2**20)
    with pytest.raises(PassError, match=r"0\.5 MiB .* 1\.0 MiB"):
        solve([block], 2**19, Rates(HBM, 1.0))


def test_nothing_that_is_not_read_is_kept() -> None:
    block = chain((1.0, 1.0), (1.0, 1.0))
    kept = frozenset((0, 1, 2))
    assert trimmed(block, kept, frozenset()).saved == kept
    shorter = BlockProblem("short", 1, block.values, block.steps, (2,))
    assert trimmed(shorter, kept, frozenset()).saved == {2}
    with pytest.raises(PassError, match="carries"):
        trimmed(block, frozenset((1, 2)), frozenset())


def in_groups(block: BlockProblem, share: float, whole: frozenset[int]) -> BlockProblem:
    """A block whose tokens are in two groups, but for some steps; a fiftieth more work."""
    values: list[Value] = []
    steps: list[Step] = []
    places: list[list[int]] = []  # of each old value, its groups' or the whole one's
    for old in block.values:
        if old.maker is None:
            places.append([len(values)])
            values.append(old)
            continue
        step = block.steps[old.maker]
        parts = [1.0] if old.maker in whole else [share, 1 - share]
        first = next(k for k, x in enumerate(block.values) if x.maker == old.maker)
        if block.values[first] is old:
            for g, part in enumerate(parts):
                reads = [r for u in step.reads for r in _of_group(places[u], g, len(parts))]
                work = part * step.seconds * (1.02 if len(parts) > 1 else 1.0)
                steps.append(Step(tuple(reads), work, part * step.flops))
            makers = list(range(len(steps) - len(parts), len(steps)))
        else:
            makers = [values[k].maker for k in places[first]]  # type: ignore[misc]
        places.append(list(range(len(values), len(values) + len(parts))))
        for g, (part, maker) in enumerate(zip(parts, makers, strict=True)):
            name = f"{old.name}/{g}" if old.name else ""
            values.append(Value(name, part * old.size_bytes, maker, False))
    needed = tuple(k for v in block.needed for k in places[v])
    return BlockProblem(block.label, block.length, tuple(values), tuple(steps), needed)


def _of_group(places: list[int], group: int, groups: int) -> list[int]:
    return places if len(places) == 1 or groups == 1 else [places[group]]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    whole=st.frozensets(st.integers(0, 4)),
    budget=st.sampled_from([0.0, 2.0, 3.5, 5.0, 7.25, 9.0]),
    offload=st.booleans(),
)
def test_shares_of_tokens_equal_trying_every_choice_and_are_never_worse(
    seed: int, whole: frozenset[int], budget: float, offload: bool
) -> None:
    block = drawn(seed, "b")
    candidates = [[block], *([in_groups(block, s, whole)] for s in (0.125, 0.25, 0.5))]
    assume(len(candidates[1][0].nameable) <= (6 if offload else 9))
    rates = Rates(HBM, 2.0, offload, hidden=True)
    trials = []
    for blocks in candidates:
        found = best_by_trying(blocks, budget, rates)
        longer = 6 * block.length * (blocks[0].forward_s - block.forward_s)
        trials.append(None if found is None else found + longer)
    fitting = [x for x in trials if x is not None]
    if not fitting:
        with pytest.raises(PassError, match="raise budget_bytes"):
            solve_any(candidates, budget, rates)
        return
    which, choice = solve_any(candidates, budget, rates)
    assert saved_bytes(candidates[which], choice) <= budget + 1e-9
    tolerance = 2e-3 * (block.length * block.forward_s + 1.0)
    assert choice.seconds == pytest.approx(min(fitting), abs=tolerance)
    reached = trials[which]
    assert reached is not None and choice.seconds == pytest.approx(reached, abs=tolerance)
    if trials[0] is not None:
        assert choice.seconds <= solve([block], budget, rates).seconds


def test_a_share_is_kept_where_the_whole_does_not_fit() -> None:
    block = chain((0.0, 8.0), (0.0, 4.0), length=2)
    halves = in_groups(block, 0.25, frozenset((0,)))
    budget = 2 * (1.0 + 3.0)  # what is carried, and three quarters of v1
    whole, choice = (
        solve([block], budget, Rates(HBM, 1.0)),
        solve_any([[block], [halves]], budget, Rates(HBM, 1.0)),
    )
    assert whole.blocks[0].repeated == {0, 1} or whole.blocks[0].repeated == {1}
    assert choice[0] == 1
    kept = {halves.values[i].name for i in choice[1].blocks[0].saved}
    assert "v1/1" in kept and "v1/0" not in kept
    again = 2 * 0.25 * 8.0 * 1.02
    longer = 6 * 2 * 8.0 * 0.02
    # The carry, which no product makes, crosses to or from memory three times.
    assert choice[1].seconds == pytest.approx(again + longer + 2 * (4.0 + 2 * 1.0) / HBM)
