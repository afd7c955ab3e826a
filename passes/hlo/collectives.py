"""The collectives of a program, wherever the compiler has put them.

all-gather(...)                          synchronous: nothing else runs
all-gather-start / -done                 an asynchronous pair
fusion calling AsyncCollectiveStart      the TPU compiler's form of a start; a fusion calling
                                         AsyncCollectiveDone ends it
fusion calling all-reduce + slice        a reduce-scatter (`all-reduce-scatter` fusions)
send / recv with a megascale type        a collective between slices, over the datacentre
"""

import dataclasses
import enum
import re

from passes.hlo.errors import HloError
from passes.hlo.module import Computation, HloModule, Instruction
from passes.hlo.opcodes import COLLECTIVES
from passes.hlo.replica_groups import Groups, groups_of
from passes.hlo.shapes import total_bytes

SEND_RECV = "send-recv"
_STARTS = {f"{kind}-start": kind for kind in COLLECTIVES}
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_TRANSFER_KINDS = {
    "ALL_REDUCE": "all-reduce", "ALL_GATHER": "all-gather", "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all", "ONE_TO_ONE": "collective-permute",
}  # fmt: skip


class Phase(enum.Enum):
    """How an instruction takes part: the whole collective, its start, or its end."""

    WHOLE = "whole"
    START = "start"
    DONE = "done"


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective that an instruction runs, starts or ends.

    Attributes:
      kind: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all`, `collective-permute`, ...
      phase: whole, start or done.
      key: pairs starts with their ends; for `-done` operations the start's name.
      payload_bytes: a device's data: the gathered result, the input of a reduction.
      arrays: how many arrays it moves at once.
      groups: logical devices that take part together; (source, target) pairs of a permute.
      between_slices: over the datacentre network, by the host.
      array_bytes: the payload of each array.
    """

    kind: str
    phase: Phase
    key: str
    payload_bytes: int
    arrays: int
    groups: Groups
    between_slices: bool = False
    array_bytes: tuple[int, ...] = ()


def collective_of(module: HloModule, c: Computation, i: Instruction) -> Collective | None:
    """What an instruction has to do with a collective; None if nothing.

    A fusion that computes while a collective goes on inside it (an async collective fusion) is
    computation: None.

    Raises:
      HloError: its replica groups cannot be read.
    """
    if i.opcode in COLLECTIVES:
        return _plain(module, c, i, i.opcode, Phase.WHOLE)
    if i.opcode in _STARTS:
        # GPU compilers write pairs, too, where nothing shall run beside them.
        together = '"is_sync":true' in i.attributes.get("backend_config", "")
        phase = Phase.WHOLE if together else Phase.START
        return _plain(module, c, i, _STARTS[i.opcode], phase)
    if i.opcode.endswith("-done") and i.opcode.removesuffix("-done") in COLLECTIVES:
        key = i.operands[0] if i.operands else i.name
        return Collective(i.opcode.removesuffix("-done"), Phase.DONE, key, 0, 0, ())
    if i.opcode in ("send", "recv", "send-done", "recv-done"):
        return _transfer(module, c, i)
    if i.opcode == "fusion":
        return _fused(module, i)
    if i.opcode in ("async-start", "async-done", "call-start"):
        return _wrapped(module, i)
    return None


def _payloads(
    module: HloModule, c: Computation, i: Instruction, kind: str, groups: Groups
) -> tuple[int, ...]:
    """Bytes of each array that a collective moves."""
    given = [total_bytes(module.shape_of(c, name)) for name in i.operands]
    width = max(map(len, groups), default=1) if kind == "all-gather" else 1
    return tuple(size * width for size in given)


def _plain(
    module: HloModule, c: Computation, i: Instruction, kind: str, phase: Phase
) -> Collective:
    groups = groups_of(i, module.device_count)
    payloads = _payloads(module, c, i, kind, groups)
    return Collective(
        kind, phase, i.name, sum(payloads), len(payloads), groups, array_bytes=payloads
    )


def _inner(module: HloModule, i: Instruction) -> tuple[Computation, Instruction] | None:
    """The collective inside the computation that `i` calls."""
    computation = module.computations.get(i.called[0]) if i.called else None
    if computation is None:
        return None
    found = next((j for j in computation.instructions if j.opcode in COLLECTIVES), None)
    return None if found is None else (computation, found)


def _fused(module: HloModule, i: Instruction) -> Collective | None:
    inner = _inner(module, i)
    if inner is None:
        return None
    computation, operation = inner
    targets = {j.attributes.get("custom_call_target", "") for j in computation.instructions}
    key = _channel(operation) or i.name
    if '"AsyncCollectiveStart"' in targets:
        plain = _plain(module, computation, operation, operation.opcode, Phase.START)
        return dataclasses.replace(plain, key=key)
    if '"AsyncCollectiveDone"' in targets:
        return Collective(operation.opcode, Phase.DONE, key, 0, 0, ())
    busy = any(j.opcode in ("convolution", "dot") for j in computation.instructions)
    if busy or "continuation_config" in i.attributes.get("backend_config", ""):
        return None
    sliced = any(j.opcode == "dynamic-slice" for j in computation.instructions)
    kind = "reduce-scatter" if operation.opcode == "all-reduce" and sliced else operation.opcode
    return _plain(module, computation, operation, kind, Phase.WHOLE)


def _channel(operation: Instruction) -> str:
    """A key that the fusions of one asynchronous collective share."""
    chain = re.search(r'chain_id="(\w+)"', operation.attributes.get("frontend_attributes", ""))
    return f"channel {operation.attributes.get('channel_id', '')} {chain[1] if chain else ''}"


def _wrapped(module: HloModule, i: Instruction) -> Collective | None:
    if i.opcode == "async-done":
        return Collective("async", Phase.DONE, i.operands[0] if i.operands else i.name, 0, 0, ())
    inner = _inner(module, i)
    if inner is None:
        return None
    plain = _plain(module, inner[0], inner[1], inner[1].opcode, Phase.START)
    return dataclasses.replace(plain, key=i.name)


def _transfer(module: HloModule, c: Computation, i: Instruction) -> Collective | None:
    attributes = i.attributes.get("frontend_attributes", "")
    rendezvous = _RENDEZVOUS.search(attributes)
    if i.opcode.endswith("-done"):
        start = c.by_name.get(i.operands[0]) if i.operands else None
        if start is None:
            return None
        rendezvous = _RENDEZVOUS.search(start.attributes.get("frontend_attributes", ""))
        key = _base(rendezvous[1]) if rendezvous else start.name
        return Collective(SEND_RECV, Phase.DONE, key, 0, 0, (), between_slices=True)
    transfer = _TRANSFER.search(attributes)
    if i.opcode == "recv" or transfer is None:
        return None
    kind = _TRANSFER_KINDS.get(transfer[1], SEND_RECV)
    data = module.shape_of(c, i.operands[0]) if i.operands else i.shape
    key = _base(rendezvous[1]) if rendezvous else i.name
    size = total_bytes(data)
    return Collective(kind, Phase.START, key, size, 1, (), between_slices=True, array_bytes=(size,))


def _base(rendezvous: str) -> str:
    return f"rendezvous {rendezvous.split(',')[0]}"


def safe_collective_of(
    module: HloModule, c: Computation, i: Instruction
) -> tuple[Collective | None, str]:
    """`collective_of`, and instead of an error its message."""
    try:
        return collective_of(module, c, i), ""
    except HloError as error:
        return None, str(error)
