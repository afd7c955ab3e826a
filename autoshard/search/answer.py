"""What a search found, and how good it is."""

import dataclasses

from autoshard.search.decision import AS_WRITTEN, MemoryChoice
from autoshard.search.evaluate import Evaluated
from autoshard.search_record import RunnerUp, SearchRecord

_FAR = 1.6  # times the best, by the estimate: not worth compiling
_LESS = 0.5  # of the memory of the best
_LATER = 3  # places that each further choice of one layout stands behind its rank


@dataclasses.dataclass(frozen=True)
class Answer:
    """The layouts found, best first.

    Attributes:
      ranked: all that was costed, best first; the first fits.
      record: how it was found.
      notes: what the user should know.
    """

    ranked: tuple[Evaluated, ...]
    record: SearchRecord
    notes: tuple[str, ...] = ()

    def record_for(self, chosen: Evaluated) -> SearchRecord:
        """The record of a layout that need not be the best by the estimate."""
        assert chosen.cost is not None
        record, total_s = self.record, chosen.cost.time.total_s
        return dataclasses.replace(
            record,
            gap=total_s / record.bound_s - 1 if record.bound_s else 0.0,
            runner_ups=runner_ups(self.ranked, chosen, record.limit_bytes),
        )

    @property
    def best(self) -> Evaluated:
        """The best."""
        return self.ranked[0]

    def finalists(self, count: int) -> tuple[Evaluated, ...]:
        """The best `count` that fit and differ in what the estimate can tell apart.

        What is compiled to be compared should differ, and the estimate is least sure of what the
        compiler makes of what is saved, and of what it hides. So after the best come the best that
        saves what the model was written to save; if they are not far behind, the best that saves
        something else and takes half of the memory, and the best that stores otherwise (sharded or
        whole); and a layout's further choices of what is saved stand behind other layouts.
        """
        distinct = self._distinct()
        first = distinct[:1]
        for differs in (_as_written, _saves_less, _stored_otherwise):
            found = next((x for x in distinct if first and differs(x, first[0])), None)
            if found is not None and found not in first:
                first.append(found)
        turns: dict[object, int] = {}
        later: list[tuple[int, int, Evaluated]] = []
        for place, one in enumerate(distinct):
            turn = turns[_layout(one)] = turns.get(_layout(one), -1) + 1
            if one not in first:
                later.append((place + _LATER * turn, place, one))
        rest = [one for _, _, one in sorted(later, key=lambda x: x[:2])]
        return tuple([*first, *rest][:count])

    def _distinct(self) -> list[Evaluated]:
        seen: set[object] = set()
        found = []
        for one in self.ranked:
            if one.layout is None or not one.fits(self.record.limit_bytes):
                continue
            assert one.cost is not None
            keys = {(_layout(one), one.decision.memory), (one.cost.time, one.cost.memory)}
            if not keys & seen:
                found.append(one)
            seen |= keys
        return found


def _as_written(one: Evaluated, best: Evaluated) -> bool:
    del best
    return one.decision.memory.remat == AS_WRITTEN


def _saves_less(one: Evaluated, best: Evaluated) -> bool:
    """Whether it saves something and needs half of the memory."""
    assert one.cost is not None
    assert best.cost is not None
    mine, others = one.decision.memory, best.decision.memory
    return (
        mine.microbatches == others.microbatches
        and mine.remat not in (AS_WRITTEN, "full", others.remat)
        and one.cost.memory.total_bytes <= _LESS * best.cost.memory.total_bytes
        and one.cost.time.total_s <= _FAR * best.cost.time.total_s
    )


def _stored_otherwise(one: Evaluated, best: Evaluated) -> bool:
    assert one.cost is not None
    assert best.cost is not None
    near = one.cost.time.total_s <= _FAR * best.cost.time.total_s
    otherwise = (one.decision.zero == 0) != (best.decision.zero == 0)
    return near and otherwise and one.decision.memory == MemoryChoice()


def _layout(one: Evaluated) -> object:
    """What tells two layouts apart."""
    assert one.layout is not None
    arrays = tuple((a.compute, a.param, a.grad, a.opt) for a in one.layout.arrays)
    return one.layout.mesh.shape, arrays


def runner_ups(
    ranked: tuple[Evaluated, ...], chosen: Evaluated, limit_bytes: float | None
) -> tuple[RunnerUp, ...]:
    """For each choice of a layout, the best of what was costed that has another one."""
    assert chosen.cost is not None
    others = [(one, _aspects(one)) for one in ranked if one is not chosen and one.cost is not None]
    found = []
    for choice, own in _aspects(chosen).items():
        for one, aspects in others:
            if aspects.get(choice, "nothing") != own and one.cost is not None:
                found.append(
                    RunnerUp(
                        choice,
                        own,
                        aspects.get(choice, "nothing"),
                        one.cost.time.total_s - chosen.cost.time.total_s,
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
        "remat": decision.memory.remat,
        "microbatches": str(decision.memory.microbatches),
    }
    words.update({f"{label} over": axis for label, axis in decision.uses})
    return words
