"""Every inference, every order and the restarts pay: some problem takes fewer nodes with it."""

import pytest

from memory_planner.offsets import (
    Buffer,
    Inference,
    OffsetProblem,
    OffsetSolution,
    Outcome,
    SearchOptions,
    solve,
)
from memory_planner.offsets.orders import ORDERS
from tests.memory_planner.offsets.instances import TIGHT_BUT_IMPOSSIBLE, cut_up

LIMIT = 5_000


def nodes(
    of: OffsetProblem,
    capacity: int,
    orders: tuple[str, ...],
    inference: Inference = Inference.ALL,
    restarts: int = 0,
) -> int:
    """Nodes to a packing or a proof; more than `LIMIT` if there is neither by then."""
    options = SearchOptions(inference, orders, restarts, climb_steps=0)
    found = solve(of, capacity, node_limit=LIMIT, options=options)
    unfinished = isinstance(found, OffsetSolution) and found.outcome is Outcome.BEST_EFFORT
    return LIMIT + 1 if unfinished else found.nodes


# Many packings at first and none later; one buffer lives through both.
APART = OffsetProblem(
    (
        Buffer("long", 0, 20, 1),
        *(Buffer(f"early{k}", k, k + 3, 1) for k in range(7)),
        *(
            Buffer(b.name, b.begin + 12, b.end + 12, b.size_bytes)
            for b in TIGHT_BUT_IMPOSSIBLE.buffers
        ),
    )
)

# Seven equal buffers of 3 bytes take 27, on multiples of 4.
EQUAL = OffsetProblem(tuple(Buffer(f"b{k}", 0, 9, 3, alignment=4) for k in range(7)))


@pytest.mark.parametrize(
    ("inference", "of", "capacity", "factor"),
    [
        (Inference.DOMINANCE, cut_up(60, 11), 256, 3.0),
        (Inference.DECOMPOSE, APART, 6, 1.5),
        (Inference.RELEASE, cut_up(60, 11), 256, 1.3),
        (Inference.STUCK, APART, 6, 3.0),
        (Inference.TWINS, EQUAL, 24, 100.0),
    ],
)
def test_inference_pays(
    inference: Inference, of: OffsetProblem, capacity: int, factor: float
) -> None:
    with_it = nodes(of, capacity, ("TAW",))
    without = nodes(of, capacity, ("TAW",), Inference.ALL & ~inference)
    assert 0 < with_it * factor < without


@pytest.mark.parametrize(
    ("order", "of"),
    [
        ("WAT", cut_up(70, 1, left_out=6)),
        ("TAW", cut_up(60, 1, left_out=4)),
        ("TWA", cut_up(100, 9, left_out=10)),
        ("AWT", cut_up(60, 11, left_out=4)),
    ],
)
def test_order_pays(order: str, of: OffsetProblem) -> None:
    others = [nodes(of, 256, (other,)) for other in ORDERS if other != order]
    assert 0 < 2 * nodes(of, 256, (order,)) < min(others)


def test_restarts_pay() -> None:
    of = cut_up(60, 7)
    assert min(nodes(of, 256, (order,)) for order in ORDERS) > LIMIT
    assert nodes(of, 256, ORDERS, restarts=8) < LIMIT
