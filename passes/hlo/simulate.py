"""Walks a schedule on a machine model.

The cores execute the schedule in order. Copies, collectives and host transfers that are started
asynchronously run on streams of their own (HBM copies, each axis of the interconnect, the host
link), one after the other on each; the cores wait where the schedule has the operation that ends
them. A loop is walked once and multiplied.
"""

import collections
import dataclasses

from passes.hlo.collective_time import CollectiveTime, collective_time, slices_time
from passes.hlo.collectives import Collective, Phase, safe_collective_of
from passes.hlo.errors import HloError
from passes.hlo.loops import trip_count
from passes.hlo.machine import MachineModel
from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.opcodes import COPY_STARTS
from passes.hlo.operation_time import OperationTime, operation_time
from passes.hlo.timeline import Basis
from passes.hlo.traffic import copied

COMPUTE, COPIES, HOST = "compute", "HBM copies", "host link"
_MAX_DEPTH = 24
_MOST_INSTRUCTIONS = 2_000_000


@dataclasses.dataclass(frozen=True)
class Event:
    """One instruction's stay on a stream, relative to the begin of its computation.

    Attributes:
      instruction: which.
      stream: where.
      start_s, end_s: half-open.
      time: its cost; None for waits, loops and collectives.
      collective: set for collectives.
      axes: of a collective.
      exposed_s: while nothing was computed: a synchronous collective's whole time.
      loop: for a loop, the walk of its body.
      trips: how often the body runs.
    """

    instruction: Instruction
    stream: str
    start_s: float
    end_s: float
    time: OperationTime | None = None
    collective: Collective | None = None
    axes: tuple[str, ...] = ()
    exposed_s: float = 0.0
    loop: "Walk | None" = None
    trips: int = 1


@dataclasses.dataclass(frozen=True)
class Walk:
    """A computation walked once.

    Attributes:
      computation: which.
      seconds: from its begin to its end.
      events: in the order of their begin.
      waits: (name of what was waited for, seconds, whether it was a collective).
      starts_s: for each instruction, when the cores came to it.
    """

    computation: Computation
    seconds: float
    events: tuple[Event, ...]
    waits: tuple[tuple[str, float, bool], ...]
    starts_s: tuple[float, ...]


def _stream(time: CollectiveTime) -> str:
    """Where a collective is shown: `x, y` where it takes both directions, `x+` where only one."""
    if len(time.links) == 1:
        return time.links[0]
    return ", ".join(time.axes) or "interconnect"


@dataclasses.dataclass
class _Pending:
    end_s: float
    name: str
    is_collective: bool


class Simulator:
    """Walks the computations of one module.

    Attributes:
      unmodelled: what got no time, with how often it occurs in the text.
    """

    def __init__(self, module: HloModule, machine: MachineModel) -> None:
        self.module = module
        self.machine = machine
        self.unmodelled: collections.Counter[str] = collections.Counter()
        self._walks: dict[str, Walk] = {}
        self._open: list[str] = []
        self._sizes: dict[str, int] = {}

    def walk(self, name: str) -> Walk:
        """Walk a computation; a second call returns the first one's result.

        Raises:
          HloError: computations call each other in a circle, nest too deep or are too many.
        """
        if name in self._walks:
            return self._walks[name]
        computation = self.module.computations.get(name)
        if computation is None:
            raise HloError(f"computation {name!r} is called and not in the text: it was cut off")
        if name in self._open or len(self._open) > _MAX_DEPTH:
            raise HloError(f"computation {name!r} calls itself or nests deeper than {_MAX_DEPTH}")
        self._open.append(name)
        walk = _Walker(self, computation).run()
        self._open.pop()
        inner = (e.loop.computation.name for e in walk.events if e.loop is not None)
        self._sizes[name] = len(computation.instructions) + sum(self._sizes[n] for n in inner)
        if self._sizes[name] > _MOST_INSTRUCTIONS:
            raise HloError(
                f"computation {name!r} executes more than {_MOST_INSTRUCTIONS} instructions, each "
                "call counted: the text is damaged, or the program far larger than compilers take"
            )
        self._walks[name] = walk
        return walk


class _Walker:
    def __init__(self, simulator: Simulator, computation: Computation) -> None:
        self.simulator = simulator
        self.module, self.machine = simulator.module, simulator.machine
        self.computation = computation
        self.now = 0.0
        self.free: dict[str, float] = {}
        self.pending: dict[str, _Pending] = {}
        self.events: list[Event] = []
        self.waits: list[tuple[str, float, bool]] = []
        self.starts: list[float] = []

    def run(self) -> Walk:
        for instruction in self.computation.instructions:
            self.starts.append(self.now)
            self._execute(instruction)
        for key in sorted(self.pending, key=lambda key: self.pending[key].end_s):
            self._wait(key)  # no end in the text: it ends with the computation
        events = tuple(sorted(self.events, key=lambda e: e.start_s))
        return Walk(self.computation, self.now, events, tuple(self.waits), tuple(self.starts))

    def _execute(self, i: Instruction) -> None:
        collective, problem = safe_collective_of(self.module, self.computation, i)
        if problem:
            self.simulator.unmodelled[problem[:80]] += 1
        elif collective is not None:
            self._collective(i, collective)
        elif i.opcode in COPY_STARTS:
            self._copy(i)
        elif i.opcode.endswith("-done"):
            self._wait(i.operands[0] if i.operands else "")
        elif i.opcode == "while":
            self._loop(i)
        elif i.opcode == "conditional":
            self._conditional(i)
        elif i.opcode in ("call", "async-start", "call-start"):
            self._call(i)
        else:
            self._compute(i)

    def _compute(self, i: Instruction) -> None:
        time = operation_time(self.machine, self.module, self.computation, i)
        if time.basis is Basis.UNKNOWN:
            self.simulator.unmodelled[f"kernel {i.name.split('.')[0]}"] += 1
        if time.seconds:
            self.events.append(Event(i, COMPUTE, self.now, self.now + time.seconds, time))
            self.now += time.seconds

    def _start(self, streams: tuple[str, ...], seconds: float) -> tuple[float, float]:
        begin = max([self.now, *(self.free.get(stream, 0.0) for stream in streams)])
        for stream in streams:
            self.free[stream] = begin + seconds
        return begin, begin + seconds

    def _collective(self, i: Instruction, collective: Collective) -> None:
        if collective.phase is Phase.DONE:
            self._wait(collective.key)
            return
        time = self._collective_time(collective)
        begin, end = self._start(time.links, time.seconds)
        whole = collective.phase is Phase.WHOLE
        event = Event(
            i, _stream(time), begin, end, collective=collective, axes=time.axes,
            exposed_s=end - self.now if whole else 0.0,
        )  # fmt: skip
        self.events.append(event)
        if whole:
            self.now = end
        else:
            self.pending[collective.key] = _Pending(end, i.name, True)

    def _collective_time(self, collective: Collective) -> CollectiveTime:
        if collective.between_slices:
            return slices_time(self.machine, collective.kind, collective.payload_bytes)
        return collective_time(
            self.machine, collective.kind, collective.payload_bytes, collective.groups
        )

    def _copy(self, i: Instruction) -> None:
        size, host = copied(self.module, self.computation, i)
        rate = self.machine.host_bytes_per_s if host else self.machine.hbm_bytes_per_s
        stream = HOST if host else COPIES
        seconds = size / rate
        begin, end = self._start((stream,), seconds)
        cost = OperationTime("copy", seconds, 0.0, 0.0 if host else float(size), Basis.COPY)
        self.events.append(Event(i, stream, begin, end, cost))
        self.pending[i.name] = _Pending(end, i.name, False)

    def _wait(self, key: str) -> None:
        pending = self.pending.pop(key, None)
        if pending is None or pending.end_s <= self.now:
            return
        self.waits.append((pending.name, pending.end_s - self.now, pending.is_collective))
        self.now = pending.end_s

    def _loop(self, i: Instruction) -> None:
        trips = trip_count(self.module, self.computation, i)
        if trips is None:
            self.simulator.unmodelled["loop whose trip count is unknown, counted once"] += 1
        name = i.attributes.get("body", "").lstrip("%")
        walk = self.simulator.walk(name)
        self._enter(i, walk, 1 if trips is None else trips)

    def _enter(self, i: Instruction, walk: Walk, trips: int) -> None:
        end = self.now + walk.seconds * trips
        if trips:
            self.events.append(Event(i, COMPUTE, self.now, end, loop=walk, trips=trips))
        self.now = end

    def _conditional(self, i: Instruction) -> None:
        walks = [self.simulator.walk(name) for name in i.called]
        if walks:
            self._enter(i, max(walks, key=lambda walk: walk.seconds), 1)

    def _call(self, i: Instruction) -> None:
        """A call; on CPU and GPU an asynchronous computation is executed where it starts."""
        if i.called and i.called[0] in self.module.computations:
            self._enter(i, self.simulator.walk(i.called[0]), 1)
