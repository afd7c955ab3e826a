"""What a search found, and how good it is."""

import dataclasses

from autoshard.search.evaluate import Evaluated
from autoshard.search_record import RunnerUp, SearchRecord


@dataclasses.dataclass(frozen=True)
class Answer:
    """The layouts found, best first.

    Attributes:
      ranked: all that was costed, best first; the first fits.
      record: how it was found.
    """

    ranked: tuple[Evaluated, ...]
    record: SearchRecord

    @property
    def best(self) -> Evaluated:
        """The best."""
        return self.ranked[0]

    def finalists(self, count: int) -> tuple[Evaluated, ...]:
        """The best `count` that differ in what the estimate can tell apart."""
        seen: set[object] = set()
        chosen = []
        for one in self.ranked:
            if one.cost is None or one.layout is None or not one.fits(self.record.limit_bytes):
                continue
            arrays = tuple((a.compute, a.param, a.grad, a.opt) for a in one.layout.arrays)
            key = (one.layout.mesh, arrays, one.decision.memory)
            if key not in seen:
                seen.add(key)
                chosen.append(one)
            if len(chosen) == count:
                break
        return tuple(chosen)


def runner_ups(ranked: tuple[Evaluated, ...], limit_bytes: float | None) -> tuple[RunnerUp, ...]:
    """For each choice of the best, the best of what was costed that has another one."""
    best = ranked[0]
    aspects = [_aspects(one) for one in ranked]
    found = []
    for choice, chosen in aspects[0].items():
        for one, other in zip(ranked[1:], aspects[1:], strict=True):
            if one.cost is not None and other.get(choice, chosen) != chosen:
                assert best.cost is not None
                found.append(
                    RunnerUp(
                        choice,
                        chosen,
                        other[choice],
                        one.cost.time.total_s - best.cost.time.total_s,
                        one.cost.memory.total_bytes,
                        one.fits(limit_bytes),
                    )
                )
                break
    return tuple(found)


def _aspects(one: Evaluated) -> dict[str, str]:
    """The choices of a decision, in words."""
    decision = one.decision
    over = f" over {','.join(decision.zero_axes)}" if decision.zero_axes else ""
    words = {
        "mesh": str(decision.shape),
        "storage": (f"ZeRO stage {decision.zero}{over}" if decision.zero else "as used"),
        "remat": dataclasses.replace(decision.memory, microbatches=1).__str__(),
        "microbatches": str(decision.memory.microbatches),
    }
    used = dict(decision.uses)
    labels = used.keys() | {"*"}
    words.update({f"{label} over": used[label] for label in sorted(labels - {"*"})})
    return words
