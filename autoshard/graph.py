"""`OpGraph`: a program with every call inlined, as flat operations on numbered values.

Calls (`jit`, remat, custom derivatives) are instantiated once per call site: JAX caches and shares
the callee's jaxpr between call sites, and analysing the shared object would merge unrelated layers.
Control flow keeps its meaning through four pseudo-operations that have sharding rules like others:

    scan_xs  [L, ...] -> [...]     one iteration's slice of a scanned operand
    scan_ys  [...] -> [L, ...]     the stack of what iterations emit
    tie      [...], [...] -> ()    both values must be laid out alike (carries, branches)
    alias    [...] -> [...]        the same array under another name (carries, results of loops)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autoshard.errors import PlanError
from passes import ir
from passes.program import Program

SCAN_XS = "scan_xs"
SCAN_YS = "scan_ys"
TIE = "tie"
ALIAS = "alias"


@dataclasses.dataclass(frozen=True)
class Value:
    """An array in the graph: its shape and the name of its dtype."""

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
      primitive: name of the JAX primitive or of a pseudo-operation above.
      inputs: value numbers; literals have values of their own.
      outputs: value numbers.
      params: the primitive's parameters.
      repeats: how often one step of the program executes it (product of enclosing scan lengths;
        a `while` with an unknown trip count counts once).
      eqn: the equation it came from, for source lines; None for pseudo-operations.
      calls: the calls around it, innermost first: what a library's jitted function makes knows no
        line of the user's.
    """

    primitive: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: Mapping[str, Any] = dataclasses.field(compare=False)
    repeats: int
    eqn: ir.JaxprEqn | None = dataclasses.field(compare=False, repr=False, default=None)
    calls: tuple[ir.JaxprEqn, ...] = dataclasses.field(compare=False, repr=False, default=())

    @property
    def source(self) -> str:
        """`file.py:line (function)` of the user's code; empty if unknown."""
        eqns = (*(() if self.eqn is None else (self.eqn,)), *self.calls)
        return next((line for line in map(ir.source_line, eqns) if line), "")


@dataclasses.dataclass(frozen=True)
class Loop:
    """The operations of a loop, its entry and exit included: numbers, half-open."""

    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class OpGraph:
    """The flat program: `inputs` and `outputs` are value numbers in the program's own order.

    `of_variable` gives a value for each variable of the program, nested ones included; where JAX
    shares a callee between call sites, that of the last.

    Loops come in the order of their end: those inside another before it.
    """

    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    loops: tuple[Loop, ...] = ()
    of_variable: Mapping[ir.Var, int] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def in_loop(self, index: int) -> bool:
        """Whether an operation is inside a loop."""
        return any(loop.begin <= index < loop.end for loop in self.loops)

    def shape(self, value: int) -> tuple[int, ...]:
        """The shape of a value."""
        return self.values[value].shape


class _Builder:
    def __init__(self) -> None:
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.loops: list[Loop] = []
        self.calls: tuple[ir.JaxprEqn, ...] = ()
        self.of_variable: dict[ir.Var, int] = {}
        self.handlers: dict[str, Callable[[ir.JaxprEqn, list[int], int], list[int]]] = {
            "scan": self._scan,
            "while": self._while,
            "cond": self._cond,
        }

    def value(self, aval: Any) -> int:
        self.values.append(Value(tuple(aval.shape), str(aval.dtype)))
        return len(self.values) - 1

    def like(self, value: int) -> int:
        self.values.append(self.values[value])
        return len(self.values) - 1

    def emit(
        self,
        primitive: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        repeats: int,
        **params: Any,
    ) -> None:
        self.ops.append(Op(primitive, tuple(inputs), tuple(outputs), params, repeats))

    def tie(self, first: int, second: int, repeats: int) -> None:
        self.emit(TIE, (first, second), (), repeats)

    def inline(
        self, jaxpr: ir.Jaxpr, consts: Sequence[Any], args: Sequence[int], repeats: int
    ) -> list[int]:
        """Append the operations of `jaxpr` applied to `args`; returns the values of its results."""
        env: dict[ir.Var, int] = {var: self.value(var.aval) for var in jaxpr.constvars}
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(operand: Any) -> int:
            return self.value(operand.aval) if ir.is_literal(operand) else env[operand]

        for eqn in jaxpr.eqns:
            operands = [read(x) for x in eqn.invars]
            env.update(zip(eqn.outvars, self._equation(eqn, operands, repeats), strict=True))
        self.of_variable.update(env)
        return [read(x) for x in jaxpr.outvars]

    def _equation(self, eqn: ir.JaxprEqn, operands: list[int], repeats: int) -> list[int]:
        called = ir.callee(eqn)
        if called is not None and len(called[0].invars) == len(operands):
            outside, self.calls = self.calls, (eqn, *self.calls)
            results = self.inline(*called, operands, repeats)
            self.calls = outside
            return results
        handler = self.handlers.get(eqn.primitive.name)
        if handler is not None:
            begin = len(self.ops)
            results = handler(eqn, operands, repeats)
            if eqn.primitive.name != "cond":
                self.loops.append(Loop(begin, len(self.ops)))
            return results
        outputs = [self.value(x.aval) for x in eqn.outvars]
        self.ops.append(
            Op(
                eqn.primitive.name, tuple(operands), tuple(outputs), eqn.params, repeats, eqn,
                self.calls,
            )
        )  # fmt: skip
        return outputs

    def _scan(self, eqn: ir.JaxprEqn, operands: list[int], repeats: int) -> list[int]:
        body, consts = ir.closed(eqn.params["jaxpr"])
        length = eqn.params["length"]
        num_consts, num_carry = ir.scan_counts(eqn)
        shared, inits = operands[:num_consts], operands[num_consts : num_consts + num_carry]
        carries = [self.like(x) for x in inits]
        for init, carry in zip(inits, carries, strict=True):
            self.emit(ALIAS, (init,), (carry,), repeats)
        slices = []
        for xs, var in zip(
            operands[num_consts + num_carry :], body.invars[num_consts + num_carry :], strict=True
        ):
            slices.append(self.value(var.aval))
            self.emit(SCAN_XS, (xs,), (slices[-1],), repeats * length, length=length)
        results = self.inline(body, consts, [*shared, *carries, *slices], repeats * length)
        outputs = []
        for carry, result in zip(carries, results[:num_carry], strict=True):
            self.tie(result, carry, repeats * length)
            outputs.append(self.like(result))
            self.emit(ALIAS, (result,), (outputs[-1],), repeats)
        for y, var in zip(results[num_carry:], eqn.outvars[num_carry:], strict=True):
            outputs.append(self.value(var.aval))
            self.emit(SCAN_YS, (y,), (outputs[-1],), repeats * length, length=length)
        return outputs

    def _while(self, eqn: ir.JaxprEqn, operands: list[int], repeats: int) -> list[int]:
        cond, cond_constants = ir.closed(eqn.params["cond_jaxpr"])
        body, body_constants = ir.closed(eqn.params["body_jaxpr"])
        num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        carries = []
        for init in operands[num_cond + num_body :]:
            carries.append(self.like(init))
            self.emit(ALIAS, (init,), (carries[-1],), repeats)
        self.inline(cond, cond_constants, [*operands[:num_cond], *carries], repeats)
        shared = operands[num_cond : num_cond + num_body]
        results = self.inline(body, body_constants, [*shared, *carries], repeats)
        outputs = []
        for carry, result in zip(carries, results, strict=True):
            self.tie(result, carry, repeats)
            outputs.append(self.like(result))
            self.emit(ALIAS, (result,), (outputs[-1],), repeats)
        return outputs

    def _cond(self, eqn: ir.JaxprEqn, operands: list[int], repeats: int) -> list[int]:
        outputs: list[int] = []
        for branch in eqn.params["branches"]:
            results = self.inline(*ir.closed(branch), operands[1:], repeats)
            if not outputs:
                outputs = [self.like(x) for x in results]
                for result, output in zip(results, outputs, strict=True):
                    self.emit(ALIAS, (result,), (output,), repeats)
            else:
                for result, output in zip(results, outputs, strict=True):
                    self.tie(result, output, repeats)
        return outputs


def build_graph(program: Program, ties: Sequence[tuple[int, int]] = ()) -> OpGraph:
    """Flatten `program`.

    Args:
      program: the traced program.
      ties: pairs (output position, input position) that must be laid out alike, such as a
        gradient and its parameter.

    Raises:
      PlanError: a tie pairs arrays of different shapes.
    """
    builder = _Builder()
    jaxpr, consts = ir.closed(program.jaxpr)
    inputs = [builder.value(var.aval) for var in jaxpr.invars]
    outputs = builder.inline(jaxpr, consts, inputs, 1)
    for out_position, in_position in ties:
        out, into = outputs[out_position], inputs[in_position]
        if builder.values[out].shape != builder.values[into].shape:
            raise PlanError(
                f"cannot tie output {program.outputs[out_position]!r} of shape "
                f"{builder.values[out].shape} to input {program.inputs[in_position].path!r} of "
                f"shape {builder.values[into].shape}"
            )
        builder.tie(out, into, 1)
    return OpGraph(
        tuple(builder.values),
        tuple(builder.ops),
        tuple(inputs),
        tuple(outputs),
        tuple(builder.loops),
        builder.of_variable,
    )
