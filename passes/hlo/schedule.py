"""From a scheduled program and a machine to a `Timeline`."""

import dataclasses
from collections.abc import Iterator

from passes.hlo.errors import HloError
from passes.hlo.liveness import memory_curve
from passes.hlo.machine import MachineModel
from passes.hlo.module import HloModule
from passes.hlo.simulate import COMPUTE, Event, Simulator, Walk
from passes.hlo.timeline import Basis, CollectiveCost, OperationCost, Span, Timeline

WAIT = "wait"


@dataclasses.dataclass(frozen=True)
class _Placed:
    """An event at its place in the step: when its first execution begins, how often it runs.

    Each execution of an asynchronous collective is waited for `waited_s`.
    """

    event: Event
    offset_s: float
    repeats: int
    depth: int
    waited_s: float


def _place(walk: Walk, offset_s: float, repeats: int, depth: int) -> Iterator[_Placed]:
    waited = {name: seconds for name, seconds, is_collective in walk.waits if is_collective}
    for event in walk.events:
        waited_s = waited.get(event.instruction.name, 0.0)
        yield _Placed(event, offset_s, repeats, depth, waited_s)
        if event.loop is not None:
            inner = depth + (event.instruction.opcode == "while")
            begin = offset_s + event.start_s
            yield from _place(event.loop, begin, repeats * event.trips, inner)


def _copies_waited_s(walk: Walk) -> float:
    """Seconds for which the cores wait for copies."""
    own = sum(seconds for _, seconds, is_collective in walk.waits if not is_collective)
    inner = (_copies_waited_s(e.loop) * e.trips for e in walk.events if e.loop is not None)
    return own + sum(inner)


def simulate(module: HloModule, machine: MachineModel) -> Timeline:
    """Simulate one step of a scheduled program on one device.

    Args:
      module: the program after compilation.
      machine: the model; its coordinates are in the order of the program's devices.

    Raises:
      HloError: the program is not scheduled, or its computations call each other in a circle.
    """
    if not module.is_scheduled:
        raise HloError(
            f"program {module.name!r} is not scheduled, so it has no times: pass the text of the "
            "compiled program, not of the lowered one"
        )
    simulator = Simulator(module, machine)
    walk = simulator.walk(module.entry)
    placed = list(_place(walk, 0.0, 1, 0))
    collectives = _collectives(module, placed)
    operations = _operations(module, placed)
    for what, count in module.unknown:
        simulator.unmodelled[what] += count
    return Timeline(
        machine=machine.name,
        step_s=walk.seconds,
        compute_s=sum(o.seconds for o in operations if o.basis is not Basis.COPY),
        exposed_communication_s=sum(c.exposed_s for c in collectives),
        exposed_copy_s=_copies_waited_s(walk),
        flops=sum(o.flops for o in operations),
        spans=tuple(_span(module, p) for p in sorted(placed, key=_begin)),
        operations=operations,
        collectives=collectives,
        memory=memory_curve(module, walk),
        unmodelled=tuple(sorted(simulator.unmodelled.items())),
    )


def _begin(placed: _Placed) -> float:
    return placed.offset_s + placed.event.start_s


def _kind(event: Event) -> str:
    if event.collective is not None:
        return event.collective.kind
    if event.loop is not None:
        return "loop" if event.instruction.opcode == "while" else "call"
    return event.time.kind if event.time is not None else WAIT


def _span(module: HloModule, placed: _Placed) -> Span:
    event = placed.event
    return Span(
        name=event.instruction.name,
        kind=_kind(event),
        stream=event.stream,
        start_s=placed.offset_s + event.start_s,
        end_s=placed.offset_s + event.end_s,
        source=module.source(event.instruction),
        op_name=event.instruction.op_name,
        repeats=placed.repeats,
        depth=placed.depth,
    )


def _operations(module: HloModule, placed: list[_Placed]) -> tuple[OperationCost, ...]:
    found = [
        OperationCost(
            name=p.event.instruction.name,
            kind=p.event.time.kind,
            source=module.source(p.event.instruction),
            op_name=p.event.instruction.op_name,
            repeats=p.repeats,
            seconds=p.event.time.seconds * p.repeats,
            flops=p.event.time.flops * p.repeats,
            hbm_bytes=p.event.time.hbm_bytes * p.repeats,
            basis=p.event.time.basis,
        )
        for p in placed
        if p.event.time is not None
    ]
    return tuple(sorted(found, key=lambda o: -o.seconds))


def _collectives(module: HloModule, placed: list[_Placed]) -> tuple[CollectiveCost, ...]:
    found = []
    for p in placed:
        event, collective = p.event, p.event.collective
        if collective is None:
            continue
        found.append(
            CollectiveCost(
                name=event.instruction.name,
                kind=collective.kind,
                source=module.source(event.instruction),
                op_name=_op_name(module, event),
                repeats=p.repeats,
                payload_bytes=collective.payload_bytes,
                group_size=max((len(g) for g in collective.groups), default=0),
                axes=event.axes,
                seconds=(event.end_s - event.start_s) * p.repeats,
                exposed_s=(event.exposed_s + p.waited_s) * p.repeats,
            )
        )
    return tuple(sorted(found, key=lambda c: -c.seconds))


def _op_name(module: HloModule, event: Event) -> str:
    """The operation's name; of the collective inside where a fusion has none."""
    if event.instruction.op_name or not event.instruction.called:
        return event.instruction.op_name
    inner = module.computations.get(event.instruction.called[0])
    names = (i.op_name for i in inner.instructions if i.op_name) if inner else iter(())
    return next(names, "")


def streams(timeline: Timeline) -> tuple[str, ...]:
    """Streams of a timeline, the cores first."""
    names = dict.fromkeys(span.stream for span in timeline.spans)
    return (COMPUTE, *(name for name in names if name != COMPUTE))
