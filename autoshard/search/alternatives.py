"""What else was considered, as a plan keeps it."""

from autoshard.plan import Alternative
from autoshard.search.answer import Answer
from autoshard.search.evaluate import Evaluated

_LISTED = 16
_FRONT = "best for its memory"


def alternatives(answer: Answer, chosen: Evaluated) -> tuple[Alternative, ...]:
    """The best layouts, those that nothing beats in both time and memory, and what is impossible.

    One layout alone was not chosen among others: then there are none.
    """
    ranked, limit = answer.ranked, answer.record.limit_bytes
    if len(ranked) == 1:
        return ()
    possible = [one for one in ranked if one.cost is not None]
    front = pareto(possible)
    listed = possible[:_LISTED] + [one for one in front if one not in possible[:_LISTED]]
    if chosen not in listed:
        listed.insert(0, chosen)
    impossible = [one for one in ranked if one.cost is None]
    rows = []
    for one in listed:
        verdict = "chosen" if one is chosen else ("" if one.fits(limit) else "does not fit")
        rows.append(_row(one, verdict or (_FRONT if one in front else "")))
    reasons = {str(one.error).split(":")[0]: one for one in reversed(impossible)}
    rows += [_row(one, f"impossible: {reason}") for reason, one in reasons.items()]
    return tuple(rows)


def pareto(possible: list[Evaluated]) -> list[Evaluated]:
    """Those than which no other is both quicker and smaller, by memory."""
    front: list[Evaluated] = []
    best_s = float("inf")
    for one in sorted(possible, key=lambda e: (_bytes(e), _seconds(e))):
        if _seconds(one) < best_s:
            front.append(one)
            best_s = _seconds(one)
    return front


def _bytes(one: Evaluated) -> int:
    assert one.cost is not None
    return one.cost.memory.total_bytes


def _seconds(one: Evaluated) -> float:
    assert one.cost is not None
    return one.cost.time.total_s


def _row(one: Evaluated, verdict: str) -> Alternative:
    names = tuple(rule.name for rule in one.rules)
    shape, kept = str(one.decision.shape), str(one.decision.memory)
    if one.cost is None:
        return Alternative(names, shape, None, None, None, verdict, kept)
    cost = one.cost
    return Alternative(
        names, shape, cost.score_s, cost.memory.total_bytes, cost.moved_bytes, verdict, kept
    )
