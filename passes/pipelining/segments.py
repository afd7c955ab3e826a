"""A program of one microbatch, cut at its loop over layers.

    shared      what no microbatch changes: parameters, their casts, tables     once a step
    prologue    (shared, rows) -> what enters the first layer                   each microbatch
    layer       (constants, carried, one slice of the stacks) -> carried        L times
    epilogue    (shared, rows, what leaves the last layer) -> outputs           each microbatch

*Carried* is what goes from layer to layer, and so from stage to stage: the loop's own carries, a
buffer for each array that the loop emits layer by layer, and values of the microbatch that layers
or the epilogue read (masks, an encoder's output).
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from passes import ir
from passes.errors import PassError
from passes.inline_calls import inline_calls
from passes.program import Program, Role
from passes.split import BatchSplit


class Source(enum.Enum):
    """Where an operand of the loop comes from."""

    SHARED = "shared"
    CARRIED = "carried"
    LITERAL = "literal"


@dataclasses.dataclass(frozen=True)
class Operand:
    """An operand of the loop.

    Attributes:
      source: what holds it.
      index: its place among the shared values, the stacks or what is carried.
      value: of a literal.
    """

    source: Source
    index: int = -1
    value: Any = None


@dataclasses.dataclass(frozen=True)
class Segments:
    """A cut program.

    Attributes:
      split: the split of the batch.
      layers: L, iterations of the loop.
      shared: (the part's inputs that no microbatch changes) -> (shared values, stacks [L, ...]).
      prologue: (shared values, the microbatch's inputs) -> carries and travelling values. The
        microbatch's inputs are its int32[] index and its rows.
      body: the loop's.
      epilogue: (shared values, the microbatch's inputs, carried) -> the program's outputs.
      constants: the body's constants.
      slices: the body's scanned operands.
      num_carry: carries of the body; the first of what is carried.
      emitted: for each array that the body emits, its buffer's place in what is carried, or None.
      carried: shapes and dtypes of what is carried.
      carried_active: which of it has a gradient.
      shared_specs, stack_specs: shapes and dtypes.
      shared_active, stack_active: which depend on parameters.
      loop: the loop's place among the loops of the flat program, for messages.
      others: loops that stay in the prologue or the epilogue.
    """

    split: BatchSplit
    layers: int
    shared: ir.ClosedJaxpr
    prologue: ir.ClosedJaxpr
    body: ir.ClosedJaxpr
    epilogue: ir.ClosedJaxpr
    constants: tuple[Operand, ...]
    slices: tuple[Operand, ...]
    num_carry: int
    emitted: tuple[int | None, ...]
    carried: tuple[jax.ShapeDtypeStruct, ...]
    carried_active: tuple[bool, ...]
    shared_specs: tuple[jax.ShapeDtypeStruct, ...]
    shared_active: tuple[bool, ...]
    stack_specs: tuple[jax.ShapeDtypeStruct, ...]
    stack_active: tuple[bool, ...]
    loop: int
    others: int

    def enter(self, shared: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """What enters the first layer, of one microbatch; buffers of what layers emit are zero."""
        values = ir.as_function(self.prologue)(*shared, *inputs)
        buffers = [_zeros(self.carried[i]) for i in self.emitted if i is not None]
        return [*values[: self.num_carry], *buffers, *values[self.num_carry :]]

    def leave(self, shared: Sequence[Any], inputs: Sequence[Any], carried: Sequence[Any]) -> Any:
        """The program's outputs, of one microbatch."""
        return ir.as_function(self.epilogue)(*shared, *inputs, *carried)

    def layer(
        self, constants: Sequence[Any], carried: Sequence[Any], slices: Sequence[Any], index: Any
    ) -> list[Any]:
        """One layer.

        Args:
          constants: shared values that the body reads, in the order of `shared_constants`.
          carried: what is carried.
          slices: a slice of each stack.
          index: int32[], the layer.
        """
        given = iter(constants)
        operands = [
            next(given) if x.source is Source.SHARED else self._read(x, carried)
            for x in self.constants
        ]
        scanned = [
            slices[x.index]
            if x.source is Source.SHARED
            else jax.lax.dynamic_index_in_dim(self._read(x, carried), index, 0, keepdims=False)
            for x in self.slices
        ]
        results = ir.as_function(self.body)(*operands, *carried[: self.num_carry], *scanned)
        after = [*results[: self.num_carry], *carried[self.num_carry :]]
        for place, y in zip(self.emitted, results[self.num_carry :], strict=True):
            if place is not None:
                after[place] = jax.lax.dynamic_update_index_in_dim(after[place], y, index, 0)
        return after

    @property
    def shared_constants(self) -> tuple[int, ...]:
        """Places among the shared values of those that the body reads."""
        return tuple(x.index for x in self.constants if x.source is Source.SHARED)

    @property
    def constant_active(self) -> tuple[bool, ...]:
        """Which of these have a gradient."""
        return tuple(self.shared_active[i] for i in self.shared_constants)

    def _read(self, operand: Operand, carried: Sequence[Any]) -> Any:
        return carried[operand.index] if operand.source is Source.CARRIED else operand.value


def _zeros(like: Any) -> Any:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(ir.random_key(like.dtype, 0), like.shape)
    return jnp.zeros(like.shape, like.dtype)


def cut_segments(program: Program, split: BatchSplit) -> Segments:
    """Cut a program's part at its longest loop over stacked parameters.

    Raises:
      PassError: there is no such loop.
    """
    flat = inline_calls(split.part)
    return _Cutter(program, split, flat).cut()


class _Cutter:
    def __init__(self, program: Program, split: BatchSplit, flat: ir.ClosedJaxpr):
        self.program, self.split = program, split
        self.jaxpr, self.consts = ir.closed(flat)
        inputs = self.jaxpr.invars[1 : 1 + len(program.whole_inputs)]
        rows = [var for var, is_cut in zip(inputs, split.cut, strict=True) if is_cut]
        parameters = [
            var
            for var, leaf in zip(inputs, program.whole_inputs, strict=True)
            if leaf.role is Role.PARAMETER
        ]
        self.varying = self._after([self.jaxpr.invars[0], *rows])
        self.active = self._after(parameters)
        # Made from nothing (`iota`, zeros): cheaper made again than kept.
        self.literal_only = {
            var
            for eqn in self.jaxpr.eqns
            if all(ir.is_literal(x) for x in eqn.invars)
            for var in eqn.outvars
        }
        self.shared: dict[ir.Var, int] = {}
        self.stacks: dict[ir.Var, int] = {}

    def _after(self, roots: Sequence[ir.Var]) -> set[ir.Var]:
        """Everything computed from `roots`."""
        found = set(roots)
        for eqn in self.jaxpr.eqns:
            if any(x in found for x in eqn.invars if not ir.is_literal(x)):
                found.update(eqn.outvars)
        return found

    def cut(self) -> Segments:
        loops = [eqn for eqn in self.jaxpr.eqns if eqn.primitive.name == "scan"]
        reasons = [self._refusal(eqn) for eqn in loops]
        chosen = [i for i, reason in enumerate(reasons) if not reason]
        if not chosen:
            found = "; ".join(f"loop {i + 1}: {reason}" for i, reason in enumerate(reasons))
            raise PassError(
                f"{self.program.name} has no loop over stacked parameters that could be cut into "
                f"stages ({found or 'it has no loop at all'}): run stack_layers before, or write "
                "the layers as a scan over stacked parameters"
            )
        best = max(chosen, key=lambda i: (loops[i].params["length"], _stack_bytes(loops[i])))
        return self._cut_at(loops[best], best, len(chosen) - 1)

    def _refusal(self, eqn: ir.JaxprEqn) -> str:
        """Why a loop is not one over layers, or an empty string."""
        constants, carries = ir.scan_counts(eqn)
        carried = eqn.outvars[:carries]
        if not any(self._is_stack(x) for x in eqn.invars[constants + carries :]):
            return "it scans over no parameter"
        if not any(jnp.issubdtype(ir.spec(x).dtype, jnp.inexact) for x in carried):
            return "it carries no activations"
        if not any(x in self.varying for x in carried):
            return "what it carries does not depend on the batch"
        if eqn.params["reverse"]:
            return "it runs from the last layer to the first"
        return ""

    def _is_stack(self, atom: Any) -> bool:
        return not ir.is_literal(atom) and atom in self.active and atom not in self.varying

    def _cut_at(self, eqn: ir.JaxprEqn, place: int, others: int) -> Segments:
        num_consts, num_carry = ir.scan_counts(eqn)
        held = num_consts + num_carry
        initial = eqn.invars[num_consts:held]
        fixed = [*eqn.invars[:num_consts], *eqn.invars[held:]]
        travelling = dict.fromkeys(
            x for x in fixed if not ir.is_literal(x) and x in self.varying
        )  # in order
        prologue = self._slice([*initial, *travelling], lambda var: False)
        made = {var for one in prologue for var in one.outvars if var in self.active}

        leaving = list(eqn.outvars[:num_carry])
        emitted: list[int | None] = []
        for y in eqn.outvars[num_carry:]:
            used = not ir.is_dropped(y) and self._is_read(y)
            emitted.append(len(leaving) if used else None)
            leaving += [y] if used else []
        results = set(leaving)

        def arrives(var: ir.Var) -> bool:
            if var in made:
                travelling.setdefault(var)
            return var in results or var in made

        epilogue = self._slice(self.jaxpr.outvars, arrives)
        places = {x: len(leaving) + i for i, x in enumerate(travelling)}
        constants = tuple(self._operand(x, places, self.shared) for x in eqn.invars[:num_consts])
        slices = tuple(self._operand(x, places, self.stacks) for x in eqn.invars[held:])

        carried = [*leaving, *travelling]
        specs = [ir.spec(x) for x in carried]
        active = [
            jnp.issubdtype(spec.dtype, jnp.inexact) and (i < len(leaving) or x in self.active)
            for i, (x, spec) in enumerate(zip(carried, specs, strict=True))
        ]
        rows = self._rows()
        shared, stacks = list(self.shared), list(self.stacks)
        arrived = [x if x in results or x in made else ir.Var(x.aval) for x in carried]
        return Segments(
            split=self.split,
            layers=eqn.params["length"],
            shared=self._closed(self._whole(), [*shared, *stacks], self.jaxpr.eqns),
            prologue=self._closed([*shared, *rows], [*initial, *travelling], prologue),
            body=ir.ClosedJaxpr(*ir.closed(eqn.params["jaxpr"])),
            epilogue=self._closed([*shared, *rows, *arrived], self.jaxpr.outvars, epilogue),
            constants=constants,
            slices=slices,
            num_carry=num_carry,
            emitted=tuple(emitted),
            carried=tuple(specs),
            carried_active=tuple(active),
            shared_specs=tuple(ir.spec(x) for x in shared),
            shared_active=tuple(self._is_active(x) for x in shared),
            stack_specs=tuple(ir.spec(x) for x in stacks),
            stack_active=tuple(self._is_active(x) for x in stacks),
            loop=place,
            others=others,
        )

    def _operand(self, atom: Any, places: dict[ir.Var, int], table: dict[ir.Var, int]) -> Operand:
        if ir.is_literal(atom):
            return Operand(Source.LITERAL, value=atom.val)
        if atom in self.varying:
            return Operand(Source.CARRIED, places[atom])
        return Operand(Source.SHARED, table.setdefault(atom, len(table)))

    def _is_active(self, var: ir.Var) -> bool:
        return var in self.active and bool(jnp.issubdtype(ir.spec(var).dtype, jnp.inexact))

    def _is_read(self, var: ir.Var) -> bool:
        reads = (x for eqn in self.jaxpr.eqns for x in eqn.invars)
        return any(x is var for x in (*reads, *self.jaxpr.outvars))

    def _rows(self) -> list[ir.Var]:
        """The part's inputs that a microbatch changes."""
        return [x for x in self.jaxpr.invars if x in self.varying]

    def _whole(self) -> list[ir.Var]:
        """The part's inputs that all microbatches share."""
        return [x for x in self.jaxpr.invars if x not in self.varying]

    def _slice(self, targets: Sequence[Any], stop: Callable[[ir.Var], bool]) -> list[ir.JaxprEqn]:
        """The equations behind `targets`, back to shared values and variables that `stop`."""
        needed: set[ir.Var] = set()
        inputs = {*self.jaxpr.invars, *self.jaxpr.constvars}

        def need(atom: Any) -> None:
            if ir.is_literal(atom) or atom in self.jaxpr.constvars or stop(atom):
                return
            if atom not in self.varying and atom not in self.literal_only:
                self.shared.setdefault(atom, len(self.shared))
            elif atom not in inputs:
                needed.add(atom)

        for atom in targets:
            need(atom)
        kept = []
        for eqn in reversed(self.jaxpr.eqns):
            if any(x in needed for x in eqn.outvars):
                kept.append(eqn)
                for atom in eqn.invars:
                    need(atom)
        return kept[::-1]

    def _closed(
        self, inputs: Sequence[ir.Var], results: Sequence[Any], eqns: Sequence[ir.JaxprEqn]
    ) -> ir.ClosedJaxpr:
        jaxpr = self.jaxpr.replace(invars=list(inputs), outvars=list(results), eqns=list(eqns))
        return ir.ClosedJaxpr(ir.live(jaxpr), self.consts)


def _stack_bytes(eqn: ir.JaxprEqn) -> int:
    constants, carries = ir.scan_counts(eqn)
    specs = [ir.spec(x) for x in eqn.invars[constants + carries :]]
    return sum(x.size * x.dtype.itemsize for x in specs)
