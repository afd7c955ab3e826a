"""What operations cost by where their operands and results lie, learned from whole compilations.

Only code generation tells the compiler's estimate of an operation's cycles, so a program whose
memory is assigned and that has no code yet gets its cycles from here: exactly where an equal
operation has been compiled with the same placement, otherwise from a model fitted to what has been,

    cycles = max(floor, all in HBM - sum of what each operand or result in fast memory saves)
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from memory_planner.signature import likeness, placement, positions, signature
from passes.hlo.flops import product_dtype, product_flops
from passes.hlo.machine import MachineModel
from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.opcodes import FREE
from passes.hlo.operation_time import operation_time

_FIT_STEPS = 300
# How strongly the fit holds to savings in proportion to bytes, where compilations do not tell.
_PRIOR = 0.05
# A product whose operands are both in HBM reads each of them several times, tile by tile, so that
# either of them in fast memory brings it down to what the matrix unit needs; what only takes part
# elementwise is still read about this often.
_ELEMENTWISE_READS = 2.5
# A product this near to what the matrix unit needs has reached its floor: the rest is ramps.
_NEAR_FLOOR = 1.15
_PRODUCTS = frozenset(("dot", "convolution"))


@dataclasses.dataclass(frozen=True)
class Savings:
    """The fitted model of one kind of operation.

    Attributes:
      slow_cycles: with everything in HBM.
      floor_cycles: the least, by what the matrix unit needs or by what has been compiled.
      reached_cycles: the least that has been compiled.
      saved_cycles: for each position of `signature.positions`.
    """

    slow_cycles: float
    floor_cycles: float
    reached_cycles: float
    saved_cycles: tuple[float, ...]

    def cycles(self, where: tuple[bool, ...]) -> float:
        """With some positions in fast memory."""
        saved = sum(s for s, fast in zip(self.saved_cycles, where, strict=True) if fast)
        return max(self.floor_cycles, self.slow_cycles - saved)


class CostTable:
    """Cycles of operations by signature and placement.

    Attributes:
      hits, misses: cycles that were found exactly, or estimated.
    """

    def __init__(self, machine: MachineModel) -> None:
        self.machine = machine
        self.hits = self.misses = 0
        self._known: dict[str, dict[tuple[bool, ...], float]] = {}
        self._alike: dict[str, dict[tuple[bool, ...], float]] = {}
        self._fits: dict[str, Savings] = {}

    def learn(self, module: HloModule) -> None:
        """Take over the cycles of a compiled program."""
        self._fits.clear()
        for c, i in _operations(module):
            if i.estimated_cycles:
                key, where = signature(module, c, i), placement(module, c, i)
                cycles = float(i.estimated_cycles)
                self._known.setdefault(key, {})[where] = cycles
                self._alike.setdefault(likeness(module, c, i), {})[where] = cycles

    def cycles_of(self, module: HloModule, c: Computation, i: Instruction) -> float | None:
        """Cycles of an operation, rather too many; None where nothing equal has been compiled."""
        return self._estimated(module, c, i, _cautious)

    def hoped_cycles_of(self, module: HloModule, c: Computation, i: Instruction) -> float | None:
        """Cycles of an operation, rather too few; None where nothing equal has been compiled."""
        return self._estimated(module, c, i, _hopeful)

    def _estimated(
        self, module: HloModule, c: Computation, i: Instruction, guess: "_Guess"
    ) -> float | None:
        key = signature(module, c, i)
        if key not in self._known:
            return None
        where = placement(module, c, i)
        known: _Known = self._known[key]
        if where not in known:
            known = self._compiled(key, module, c, i)
        if where in known:
            self.hits += 1
            return known[where]
        self.misses += 1
        moved = _moved(self.machine, module, c, i)
        return guess(self._savings(key, module, c, i), known, where, moved)

    def savings(self, module: HloModule, c: Computation, i: Instruction) -> Savings:
        """The model of an operation; by roofline where nothing equal has been compiled."""
        return self._savings(signature(module, c, i), module, c, i)

    def _savings(self, key: str, module: HloModule, c: Computation, i: Instruction) -> Savings:
        if key not in self._fits:
            self._fits[key] = self._fit(module, c, i, self._compiled(key, module, c, i))
        return self._fits[key]

    def _compiled(self, key: str, module: HloModule, c: Computation, i: Instruction) -> "_Known":
        """Cycles by placement: of equal operations, else of those that are alike."""
        known = self._known.get(key, {})
        return {**self._alike.get(likeness(module, c, i), {}), **known} if known else known

    def _fit(
        self,
        module: HloModule,
        c: Computation,
        i: Instruction,
        known: "_Known",
    ) -> Savings:
        flops = product_flops(module, c, i)
        busy = 0.0
        if flops:
            rate = self.machine.flops_per_s(product_dtype(module, c, i))
            busy = flops / rate * self.machine.clock_hz
        moved = _moved(self.machine, module, c, i)
        if not known:
            seconds = operation_time(self.machine, module, c, i).seconds
            slow = max(seconds * self.machine.clock_hz, busy, float(moved.sum()) if flops else 0.0)
            return Savings(slow, busy, busy, tuple(np.minimum(moved, slow)))
        slow, floor = max(known.values()), min(known.values())
        slowest = max(known, key=lambda w: known[w])
        nothing = tuple(False for _ in moved)
        slow = known.get(nothing, slow + float(moved[np.array(slowest, bool)].sum()))
        reached = floor
        if floor > _NEAR_FLOOR * busy:  # nothing compiled so far has come near the matrix unit's
            floor = min(floor, max(busy, slow - _ELEMENTWISE_READS * float(moved.sum())))
        prior = _prior(module, c, i, moved, slow - floor)
        where = np.array(list(known), np.float64)
        cycles = np.array(list(known.values()), np.float64)
        return Savings(slow, floor, reached, tuple(_fitted(slow, floor, prior, where, cycles)))


_Known = Mapping[tuple[bool, ...], float]
_Guess = Callable[[Savings, _Known, tuple[bool, ...], np.ndarray], float]


def _cautious(savings: Savings, known: _Known, where: tuple[bool, ...], moved: np.ndarray) -> float:
    """Cycles of a placement that has not been compiled.

    A search picks what is estimated too well, so the model only tells the difference to the most
    similar placement that has been compiled, nothing beyond the best of them is believed, and what
    is read or written in HBM in addition takes its time.

    Args:
      moved: cycles to move each position once over HBM.
    """
    nearest = _nearest(known, where, moved)
    change = savings.cycles(where) - savings.cycles(nearest)
    slower = np.array(nearest) & ~np.array(where)
    if slower.any():
        quicker = ~np.array(nearest) & np.array(where)
        saved = np.array(savings.saved_cycles)
        change = max(change, float(moved[slower].sum() - saved[quicker].sum()))
    return max(savings.reached_cycles, known[nearest] + change)


def _hopeful(savings: Savings, known: _Known, where: tuple[bool, ...], moved: np.ndarray) -> float:
    """The same as the model alone has it, which forgives what another operand in VMEM makes up."""
    nearest = _nearest(known, where, moved)
    change = savings.cycles(where) - savings.cycles(nearest)
    return max(savings.floor_cycles, known[nearest] + change)


def _nearest(known: _Known, where: tuple[bool, ...], moved: np.ndarray) -> tuple[bool, ...]:
    """The placement that has been compiled and differs in the fewest bytes."""

    def distance(other: tuple[bool, ...]) -> tuple[float, tuple[bool, ...]]:
        return float(moved[np.array(other) != np.array(where)].sum()), other

    return min(known, key=distance)


def _moved(machine: MachineModel, module: HloModule, c: Computation, i: Instruction) -> np.ndarray:
    """Cycles to move each position of an operation once over HBM."""
    sizes = np.array([a.padded_bytes for _, a in positions(module, c, i)], np.float64)
    return sizes * machine.clock_hz / machine.hbm_bytes_per_s


def _prior(
    module: HloModule, c: Computation, i: Instruction, moved: np.ndarray, most: float
) -> np.ndarray:
    """What each position may be expected to save, before any compilation tells.

    Args:
      moved: cycles to move each position once over HBM.
      most: cycles between everything in HBM and the floor.
    """
    factors = operands_of_products(module, i)
    numbers = [number for number, _ in positions(module, c, i)]
    times = np.array([1.0 if n < 0 else _ELEMENTWISE_READS for n in numbers])
    prior = np.minimum(times * moved, most)
    return np.where([n in factors for n in numbers], most, prior)


def operands_of_products(module: HloModule, i: Instruction) -> frozenset[int]:
    """Numbers of a fusion's operands that a matrix product inside it is made of."""
    inner = module.computations.get(i.called[0]) if i.opcode == "fusion" and i.called else None
    if inner is None:
        return frozenset(range(len(i.operands))) if i.opcode in _PRODUCTS else frozenset()
    found: set[int] = set()
    products = [j for j in inner.instructions if j.opcode in _PRODUCTS]
    queue = [name for j in products for name in j.operands]
    seen = {j.name for j in products}
    while queue:
        name = queue.pop()
        source = inner.by_name.get(name)
        if source is None or name in seen:
            continue
        seen.add(name)
        queue += source.operands
        if source.number is not None:
            found.add(source.number)
    return frozenset(found)


def _fitted(
    slow: float, least: float, prior: np.ndarray, where: np.ndarray, cycles: np.ndarray
) -> np.ndarray:
    """Savings near the prior that explain what has been compiled, none negative.

    What has reached the floor says that the savings add up to at least the difference.
    """
    saved = prior.copy()
    scale = 1.0 / (1.0 + where.shape[1])
    at_floor = cycles <= least * 1.005
    for _ in range(_FIT_STEPS):
        error = (slow - where @ saved) - cycles
        error = np.where(at_floor, np.maximum(error, 0.0), error)
        saved += scale * (where.T @ error) / max(1, len(cycles)) - _PRIOR * scale * (saved - prior)
        saved = np.maximum(saved, 0.0)
    return saved


def _operations(module: HloModule) -> Iterable[tuple[Computation, Instruction]]:
    inner = {
        name
        for c in module.computations.values()
        for i in c.instructions
        if i.opcode == "fusion"
        for name in i.called
    }
    for c in module.computations.values():
        if c.name not in inner:
            yield from ((c, i) for i in c.instructions if i.opcode not in FREE)
