"""What is to be decided for a loop's body: which values to keep for the backward pass, and how.

The backward pass of one iteration *needs* some values. A value is there if it is saved on the
device, kept on the host, or made again by its equation from values that are there in turn
(Jain et al., "Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization", 2020;
here each body is one problem, since all iterations are alike and each is one segment of the
backward pass).
"""

import dataclasses

_MADE_FOR_THE_STACK = 3  # times that a value crosses to or from memory


@dataclasses.dataclass(frozen=True)
class Value:
    """A value that an iteration computes or is given.

    Attributes:
      name: unique among all blocks; empty where it cannot be kept.
      size_bytes: of one iteration on one device.
      maker: index of the equation that makes it; None for what an iteration is given.
      free: whether it is there in the backward pass at no cost (parameters, constants).
    """

    name: str
    size_bytes: float
    maker: int | None
    free: bool


@dataclasses.dataclass(frozen=True)
class Step:
    """An equation of the forward pass that could run again.

    Attributes:
      reads: indices of values.
      seconds: of one execution on one device.
      flops: of its matrix products.
    """

    reads: tuple[int, ...]
    seconds: float
    flops: float


@dataclasses.dataclass(frozen=True)
class BlockProblem:
    """One loop.

    Attributes:
      label: for messages.
      length: iterations.
      values: all values.
      steps: all equations, in order.
      needed: indices of the values that the backward pass reads.
    """

    label: str
    length: int
    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    needed: tuple[int, ...]

    @property
    def forward_s(self) -> float:
        """Seconds of one iteration's forward pass."""
        return sum(step.seconds for step in self.steps)

    @property
    def forward_flops(self) -> float:
        """FLOPs of one iteration's forward pass."""
        return sum(step.flops for step in self.steps)

    @property
    def nameable(self) -> tuple[int, ...]:
        """Indices of the values that can be kept."""
        return tuple(i for i, value in enumerate(self.values) if value.name)


@dataclasses.dataclass(frozen=True)
class Rates:
    """What keeping a value costs on a machine.

    Attributes:
      hbm_bytes_per_s: of `kept_traffic_bytes`.
      host_bytes_per_s: one way.
      offload: whether values may be kept on the host at all.
      hidden: whether transfers of an iteration must fit in the time of its forward pass.
    """

    hbm_bytes_per_s: float
    host_bytes_per_s: float
    offload: bool = False
    hidden: bool = True


@dataclasses.dataclass(frozen=True)
class BlockChoice:
    """The decision for one block.

    Attributes:
      saved: indices of values saved on the device.
      offloaded: indices of values kept on the host.
      repeated: indices of equations that run again.
    """

    saved: frozenset[int]
    offloaded: frozenset[int]
    repeated: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The decision for all blocks of a program.

    Attributes:
      blocks: one decision a block.
      seconds: the objective: repeated equations and traffic of what is kept, all iterations.
      proved: whether the solver proved that no other choice is better.
    """

    blocks: tuple[BlockChoice, ...]
    seconds: float
    proved: bool


def repeated_steps(block: BlockProblem, kept: frozenset[int]) -> frozenset[int] | None:
    """The equations that must run again where some values are kept; None if one cannot."""
    repeated: set[int] = set()
    queue = list(block.needed)
    seen: set[int] = set()
    while queue:
        i = queue.pop()
        value = block.values[i]
        if i in seen or i in kept or value.free:
            continue
        seen.add(i)
        if value.maker is None:
            return None
        if value.maker not in repeated:
            repeated.add(value.maker)
            queue.extend(block.steps[value.maker].reads)
    return frozenset(repeated)


def kept_bytes(block: BlockProblem, indices: frozenset[int]) -> float:
    """Bytes on one device of some values of all iterations."""
    return block.length * sum(block.values[i].size_bytes for i in indices)


def kept_traffic_bytes(block: BlockProblem, index: int) -> float:
    """What keeping a value of one iteration adds to memory traffic.

    A product writes its result into the stack at once, and only the backward pass reads it once
    more. What elementwise operations make is fused into what reads it, so that for the stack it is
    made from memory and written (read off schedules of the TPU compiler), and read in the end.
    """
    value = block.values[index]
    by_product = value.maker is not None and block.steps[value.maker].flops > 0
    return value.size_bytes * (1 if by_product else _MADE_FOR_THE_STACK)


def block_seconds(block: BlockProblem, choice: BlockChoice, rates: Rates) -> float:
    """What a decision costs in all iterations."""
    again = sum(block.steps[e].seconds for e in choice.repeated)
    kept = sum(kept_traffic_bytes(block, i) for i in (*choice.saved, *choice.offloaded))
    return block.length * (again + kept / rates.hbm_bytes_per_s)
