"""Where values of a gradient program come from and go to: what holds under every layout."""

import dataclasses
from collections.abc import Mapping, Sequence

from autoshard import graph as graphs
from autoshard.graph import Op, OpGraph
from autoshard.named_dims import Analysis
from passes.ir import CHECKPOINTS, PRODUCTS
from passes.program import Leaf, Program, Role

# What a parameter goes through before it is gathered (`passes.lazy_inputs` gathers at the first
# equation that does something else with it), and a gradient before it is kept.
VIEWS = frozenset(
    "convert_element_type transpose reshape squeeze broadcast_in_dim copy name".split()
)
_GRADIENT_STEPS = (VIEWS - {"broadcast_in_dim"}) | {
    graphs.SCAN_YS,
    graphs.ALIAS,
    "add_any",
    "add",
    "scatter-add",
}


@dataclasses.dataclass(frozen=True)
class ParameterUse:
    """A place at which a parameter is needed whole.

    Attributes:
      forward: in the forward pass; else in the backward pass, recomputation included.
      slices: how many slices of it one after the other are used: those of a stack that is scanned
        over.
      itemsize_bytes: of an element after the narrowing casts on the way.
      op: number of the operation.
      until: number of the last operation for which a copy made for this one is kept.
    """

    forward: bool
    slices: int
    itemsize_bytes: int
    op: int
    until: int


@dataclasses.dataclass(frozen=True)
class ProgramFlow:
    """Facts of a gradient (or forward) program.

    Attributes:
      forward: for each operation, whether the loss depends on it.
      users: for each value, the numbers of the operations that read it; -1 is the program's result.
      gradient_of: values that become the gradient of a parameter and nothing else: its position.
      uses: for each position of a parameter, where it is needed.
    """

    forward: tuple[bool, ...]
    users: tuple[tuple[int, ...], ...]
    gradient_of: Mapping[int, int]
    uses: Mapping[int, tuple[ParameterUse, ...]]


def program_flow(analysis: Analysis) -> ProgramFlow:
    """Trace a program's values; its first output is the loss (or the result), then gradients."""
    graph = analysis.graph
    users: list[list[int]] = [[] for _ in graph.values]
    for index, op in enumerate(graph.ops):
        if op.primitive != graphs.TIE:
            for value in op.inputs:
                users[value].append(index)
    for value in graph.outputs:
        users[value].append(-1)
    forward = _forward(graph)
    frozen = tuple(tuple(u) for u in users)
    uses = {
        position: _uses(graph, frozen, forward, position, leaf)
        for position, leaf in enumerate(analysis.program.inputs)
        if leaf.role is Role.PARAMETER
    }
    return ProgramFlow(
        forward=forward,
        users=frozen,
        gradient_of=_gradients(analysis.program, graph, frozen),
        uses=_with_kept(graph, uses),
    )


def _forward(graph: OpGraph) -> tuple[bool, ...]:
    """Which operations the first output depends on; carries feed back through their ties."""
    needed = set(graph.outputs[:1])
    inputs = set(graph.inputs)
    found = [False] * len(graph.ops)
    size = -1
    while size != len(needed):
        size = len(needed)
        for index in range(len(graph.ops) - 1, -1, -1):
            op = graph.ops[index]
            if op.primitive == graphs.TIE:
                result, carry = op.inputs
                if carry in needed and carry not in inputs:  # else: a gradient and its parameter
                    needed.add(result)
            elif not found[index] and not needed.isdisjoint(op.outputs):
                found[index] = True
                needed.update(op.inputs)
    return tuple(found)


def _gradients(
    program: Program, graph: OpGraph, users: Sequence[tuple[int, ...]]
) -> dict[int, int]:
    parameters = program.with_role(Role.PARAMETER)
    marked = dict(zip(graph.outputs[1:], parameters, strict=False))
    if len(graph.outputs) != 1 + len(parameters):  # a forward program
        return {}
    for op in reversed(graph.ops):
        if op.primitive not in _GRADIENT_STEPS or op.outputs[0] not in marked:
            continue
        for value in op.inputs:
            if len(users[value]) == 1:
                marked.setdefault(value, marked[op.outputs[0]])
    return marked


def _uses(
    graph: OpGraph,
    users: Sequence[tuple[int, ...]],
    forward: Sequence[bool],
    position: int,
    leaf: Leaf,
) -> list[ParameterUse]:
    """Uses of a parameter: one for each pass and source line, however many operations are there.

    A forward pass gathers once for all of its uses in one loop: equal gathers are merged (lookups
    stand apart: they may do without). In the backward pass an operation and its recomputation share
    the gather of their region.
    """
    found: dict[tuple[bool, bool, int, str], ParameterUse] = {}
    open_values = [(graph.inputs[position], 1, leaf.itemsize_bytes)]
    seen = {graph.inputs[position]}
    while open_values:
        value, slices, itemsize = open_values.pop()
        for index in users[value]:
            op = graph.ops[index] if index >= 0 else None
            if op is not None and op.primitive in (*VIEWS, graphs.SCAN_XS, graphs.SCAN_YS):
                out = op.outputs[0]
                if out not in seen:
                    seen.add(out)
                    open_values.append((out, _slices(op, slices), min(itemsize, _size(graph, out))))
                continue
            in_forward = index >= 0 and forward[index]
            line = "" if in_forward or op is None else op.source
            if op is not None:
                use = ParameterUse(in_forward, slices, itemsize, index, index)
                looks_up = in_forward and op.primitive == "gather"
                found.setdefault((in_forward, looks_up, slices, line), use)
    return list(found.values())


def _with_kept(
    graph: OpGraph, uses: Mapping[int, Sequence[ParameterUse]]
) -> dict[int, tuple[ParameterUse, ...]]:
    """Uses, where the copies of the last product are kept for the backward pass.

    It begins with them (`passes.lazy_inputs`). What comes after that product is a bias or a scale.
    """
    in_forward = [use.op for found in uses.values() for use in found if use.forward]
    products = [index for index in in_forward if graph.ops[index].primitive in PRODUCTS]
    end = max(products or in_forward, default=0)
    if graph.in_loop(end):
        return {position: tuple(found) for position, found in uses.items()}
    return {position: _kept(graph, found, end) for position, found in uses.items()}


def _kept(graph: OpGraph, uses: Sequence[ParameterUse], end: int) -> tuple[ParameterUse, ...]:
    kept = next((u for u in uses if u.forward and u.op >= end and not graph.in_loop(u.op)), None)
    if kept is None:
        return tuple(uses)
    later = [
        use
        for use in uses
        if not use.forward
        and not graph.in_loop(use.op)
        and not any(call.primitive.name in CHECKPOINTS for call in graph.ops[use.op].calls)
    ]
    until = max((use.op for use in later), default=kept.until)
    kept_longer = dataclasses.replace(kept, until=until)
    return tuple(kept_longer if use is kept else use for use in uses if use not in later)


def _slices(op: Op, slices: int) -> int:
    if op.primitive == graphs.SCAN_XS:
        return slices * int(op.params["length"])
    if op.primitive == graphs.SCAN_YS:
        return max(1, slices // int(op.params["length"]))
    return slices


def _size(graph: OpGraph, value: int) -> int:
    return Leaf("", Role.CONSTANT, (), graph.values[value].dtype).itemsize_bytes
