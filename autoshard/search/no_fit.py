"""What to say when no layout fits: the least memory, what fills it, and the ways out."""

import dataclasses

from autoshard.errors import AutoshardError, NoFitError
from autoshard.explain import format_bytes
from autoshard.memory import MemoryEstimate
from autoshard.search.decision import MemoryChoice
from autoshard.search.evaluate import Evaluated, Evaluator
from autoshard.search.question import Question
from passes.program import Role

_PARTS = {
    "parameters_bytes": "parameters",
    "optimizer_bytes": "optimizer state",
    "gradients_bytes": "gradients",
    "gathered_bytes": "parameters gathered for use",
    "other_bytes": "batch, cache and model state",
    "activations_bytes": "activations",
}


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A change, the memory that it leaves, and what it costs.

    Attributes:
      change: what to do.
      memory_bytes: estimated, of a device.
      price: in words.
    """

    change: str
    memory_bytes: int
    price: str


def check_fits(question: Question, ranked: tuple[Evaluated, ...]) -> None:
    """Raises NoFitError, with the ways out, unless the best of all layouts fits."""
    limit = question.memory_limit_bytes
    if ranked[0].fits(limit):
        return
    assert limit is not None
    least = min(
        (one for one in ranked if one.cost is not None),
        key=lambda one: one.cost.memory.total_bytes if one.cost else 0,
    )
    assert least.cost is not None
    memory = least.cost.memory
    part, size = max(
        ((name, getattr(memory, field)) for field, name in _PARTS.items()), key=lambda x: x[1]
    )
    rules = "+".join(rule.name for rule in least.rules)
    ways = [w for w in remedies(question, least) if w.memory_bytes <= limit]
    advice = "; ".join(f"{w.change} ({format_bytes(w.memory_bytes)}, {w.price})" for w in ways)
    raise NoFitError(
        f"no layout of {question.subject.analysis.program.name} fits {limit} bytes "
        f"({format_bytes(limit)}) a device: the least is an estimated {memory.total_bytes} bytes "
        f"({format_bytes(memory.total_bytes)}) with rules {rules} on mesh "
        f"({least.decision.shape}), of which {part} are {format_bytes(size)}. "
        + (f"What would fit: {advice}" if advice else _nothing(question, limit))
    )


def _nothing(question: Question, limit: int) -> str:
    if not question.trains:
        return f"Use more devices, a smaller batch, or a higher memory_limit_bytes than {limit}"
    return (
        "No single change of remat, microbatches, offload or batch is enough: use several, more "
        f"devices, or a higher memory_limit_bytes than {limit}"
    )


def remedies(question: Question, least: Evaluated) -> tuple[Remedy, ...]:
    """The ways out, one change each."""
    assert least.cost is not None
    found = []
    if question.trains:
        found += _recomputing(question, least)
        found.append(_offloading(question, least))
    found += _more_devices(question, least)
    found += _smaller_batch(question, least)
    return tuple(found)


def _recomputing(question: Question, least: Evaluated) -> list[Remedy]:
    assert least.layout is not None and least.cost is not None
    evaluator = Evaluator(question, {})
    now = least.decision.memory
    choices = [
        (f"{count} microbatches" if count > 1 else "", policy, count)
        for count in question.options.microbatches
        for policy in dict.fromkeys((now.remat if now.remat != "auto" else "full", "full"))
        if (policy, count) != (now.remat, now.microbatches) and count >= now.microbatches
    ]
    found = []
    for words, policy, count in choices:
        try:
            cost = evaluator.cost(least.layout, MemoryChoice(policy, count))
        except AutoshardError:
            continue
        change = " and ".join(
            x for x in (f"remat policy {policy!r}" * (policy != now.remat), words) if x
        )
        slower = cost.time.total_s / least.cost.time.total_s - 1
        found.append(Remedy(change, cost.memory.total_bytes, f"{slower:+.0%} step time"))
    return found


def _offloading(question: Question, least: Evaluated) -> Remedy:
    assert least.cost is not None
    memory = least.cost.memory
    machine = question.machine(least.decision.shape)
    seconds = 2 * memory.optimizer_bytes / machine.host_bytes_per_s
    return Remedy(
        "offload='optimizer'",
        memory.total_bytes - memory.optimizer_bytes,
        f"up to {seconds:.3g} s a step over the link to the host",
    )


def _more_devices(question: Question, least: Evaluated) -> list[Remedy]:
    """Storage that is sharded falls with the devices; so does the batch's share."""
    assert least.cost is not None and least.layout is not None
    memory, found = least.cost.memory, []
    sharded = least.layout.zero_stage
    for times in (2, 4, 8):
        kept = MemoryEstimate(
            memory.parameters_bytes // (times if sharded >= 3 else 1),
            memory.optimizer_bytes // (times if sharded >= 1 else 1),
            memory.gradients_bytes // (times if sharded >= 2 else 1),
            memory.gathered_bytes,
            memory.other_bytes // times,
            memory.activations_bytes // times,
        )
        count = times * least.decision.shape.device_count
        found.append(Remedy(f"{count} devices", kept.total_bytes, f"{times}x the chips"))
    return found


def _smaller_batch(question: Question, least: Evaluated) -> list[Remedy]:
    assert least.cost is not None
    memory, found = least.cost.memory, []
    program = question.subject.analysis.program
    rows = next(
        (leaf.shape[0] for leaf in program.inputs if leaf.role is Role.BATCH and leaf.shape), 1
    )
    for parts in (2, 4):
        share = memory.activations_bytes + memory.other_bytes
        if rows % parts == 0:
            size = memory.total_bytes - share + share // parts
            found.append(
                Remedy(f"a batch of {rows // parts}", size, f"1/{parts} of the rows a step")
            )
    return found
