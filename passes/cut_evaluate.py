"""Evaluates a program for one part of the batch, equation by equation, by the rules of `cut_rules`.

plain equation      its rule; without cut operands or sums as it is
jit and the like    equation by equation
checkpoint          a region again, with the same policy
custom derivative   the rule that JAX traces for it, forward and backward evaluated for the part
scan                a scan again; which carries are cut is found by iteration
cond                as it is, if every row takes the same branch
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from passes import ir
from passes.cut_rules import TABLE, CannotCut, bind, linear_of_sum
from passes.cut_values import Cut, Value
from passes.errors import PassError

# What makes a sum whole: given the variable of a sum that depends on no parameter.
Total = Callable[[ir.Var], Any]

_ELEMENTWISE_MAKES = frozenset(
    "convert_element_type lt gt le ge eq ne add sub mul div max min and or not xor neg"
    " shift_right_logical bitcast_convert_type select_n copy".split()
)


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluation of a program for one part.

    Attributes:
      batch: the split.
      total: the whole of a sum that depends on no parameter, known before the parts run; None
        inside loops and regions, where it is not known.
      derives: whether results will be differentiated; not inside a custom derivative's rule.
    """

    batch: Cut
    total: Total | None = None
    derives: bool = True

    def run(self, jaxpr: ir.Jaxpr, consts: Sequence[Any], operands: Sequence[Value]) -> list[Value]:
        """The results of a program in this part.

        Raises:
          PassError: rows of the batch meet in a way that parts cannot compute alone.
        """
        env: dict[Any, Value] = {
            var: Value(x) for var, x in zip(jaxpr.constvars, consts, strict=True)
        }
        env.update(zip(jaxpr.invars, operands, strict=True))
        for eqn in jaxpr.eqns:
            values = [self._read(env, x) for x in eqn.invars]
            results = self.equation(eqn, values)
            for var, value in zip(eqn.outvars, results, strict=True):
                if value.summed and value.free and self.total is not None:
                    value = Value(self.total(var))
                env[var] = value
        return [self._read(env, x) for x in jaxpr.outvars]

    def _read(self, env: dict[Any, Value], atom: Any) -> Value:
        return Value(atom.val) if ir.is_literal(atom) else env[atom]

    def equation(self, eqn: ir.JaxprEqn, values: Sequence[Value]) -> Sequence[Value]:
        """The results of an equation in this part.

        Raises:
          PassError: rows of the batch meet in a way that parts cannot compute alone.
        """
        name = eqn.primitive.name
        try:
            called = ir.callee(eqn)
            if called is not None and (
                name in ir.PLAIN_CALLS or (name in ir.CUSTOM_DERIVATIVES and not self.derives)
            ):
                return self.run(ir.inlined(called[0], eqn), called[1], values)
            if all(x.is_whole for x in values) and not has_random_bits(eqn):
                return self._whole(eqn, values)
            if name == "scan":
                return self._scan(eqn, values)
            if called is not None and name in ir.CHECKPOINTS:
                return self._checkpoint(eqn, *called, values)
            if name in ir.CUSTOM_DERIVATIVES:
                return self._custom(eqn, values)
            if all(x.is_whole for x in values):
                return self._whole(eqn, values)
            if any(x.summed for x in values):
                return linear_of_sum(eqn, values, self.batch)
            if name not in TABLE:
                raise CannotCut(f"there is no rule for {name}")
            return TABLE[name](eqn, values, self.batch)
        except CannotCut as error:
            line = ir.source_line(eqn)
            raise PassError(
                f"the batch cannot be computed in {self.batch.count} parts: {error}"
                f"{f' (at {line})' if line else ''}. Use microbatches=1, or compute it for each "
                "row on its own"
            ) from error

    def _whole(self, eqn: ir.JaxprEqn, values: Sequence[Value]) -> list[Value]:
        results = ir.alone(eqn)(*(x.array for x in values))
        free = all(x.free for x in values)
        makers = self._makers(eqn, values, len(results))
        return [
            Value(r, free=free, smaller=maker) for r, maker in zip(results, makers, strict=True)
        ]

    def _makers(
        self, eqn: ir.JaxprEqn, values: Sequence[Value], count: int
    ) -> Sequence[Callable[[int], Any] | None]:
        """How the results are made for the part alone, where that is cheaper than picking."""
        name, batch = eqn.primitive.name, self.batch
        if name == "broadcast_in_dim":
            dims, shape = eqn.params["broadcast_dimensions"], eqn.params["shape"]

            def broadcast(dim: int) -> Any:
                smaller = [batch.share(s) if d == dim else s for d, s in enumerate(shape)]
                source = list(dims).index(dim) if dim in dims else None
                x = values[0].array if source is None else values[0].cut(source, batch)
                return bind(eqn, [x], shape=tuple(smaller))[0]

            return [broadcast]
        if name == "random_bits":

            def draw(dim: int) -> Any:
                # Other bits than those of the whole array's rows, as independent as they are.
                shape = list(eqn.params["shape"])
                shape[dim] = batch.share(shape[dim])
                folded = jax.random.fold_in(values[0].array, batch.index)
                return bind(eqn, [folded], shape=tuple(shape))[0]

            return [draw] if not values[0].shape else [None]
        if name in _ELEMENTWISE_MAKES and any(x.smaller for x in values):

            def again(dim: int) -> Any:
                arrays = [x.cut(dim, batch) if len(x.shape) > dim else x.array for x in values]
                return bind(eqn, arrays)[0]

            return [again]
        return [None] * count

    def _checkpoint(
        self, eqn: ir.JaxprEqn, jaxpr: ir.Jaxpr, consts: Sequence[Any], values: Sequence[Value]
    ) -> list[Value]:
        inside = dataclasses.replace(self, total=None)
        shapes: list[Value] = []

        def region(*arrays: Any) -> list[Any]:
            results = inside.run(jaxpr, consts, _bound(values, arrays))
            shapes[:] = [_bare(x) for x in results]
            return [x.array for x in results]

        arrays = jax.checkpoint(
            region, policy=eqn.params["policy"], prevent_cse=eqn.params["prevent_cse"]
        )(*(x.array for x in values))
        return _bound(shapes, arrays)

    def _custom(self, eqn: ir.JaxprEqn, values: Sequence[Value]) -> list[Value]:
        forward, backward = ir.reverse_rule(eqn)
        inside = dataclasses.replace(self, total=None, derives=False)
        count = len(eqn.outvars)
        shapes: list[Value] = []
        differentiable = [jnp.issubdtype(ir.spec(x).dtype, jnp.inexact) for x in eqn.invars]

        def run_forward(*arrays: Any) -> tuple[list[Any], list[Any]]:
            jaxpr, consts = ir.closed(forward)
            results = inside.run(jaxpr, consts, _bound(values, arrays))
            shapes[:] = [_bare(x) for x in results]
            return [x.array for x in results[:count]], [x.array for x in results[count:]]

        @jax.custom_vjp
        def function(*arrays: Any) -> list[Any]:
            return run_forward(*arrays)[0]

        def run_backward(residuals: list[Any], cotangents: list[Any]) -> tuple[Any, ...]:
            jaxpr, consts = ir.closed(backward)
            operands = [*_bound(shapes[count:], residuals), *_bound(shapes[:count], cotangents)]
            wanted = jaxpr.replace(
                outvars=[
                    x for x, is_float in zip(jaxpr.outvars, differentiable, strict=True) if is_float
                ]
            )
            found = iter(inside.run(ir.live(wanted), consts, operands))
            return tuple(
                _cotangent(next(found), values[i], self.batch) if is_float else None
                for i, is_float in enumerate(differentiable)
            )

        function.defvjp(run_forward, run_backward)
        arrays = function(*(x.array for x in values))
        return _bound(shapes[:count], arrays)

    def _scan(self, eqn: ir.JaxprEqn, values: Sequence[Value]) -> list[Value]:
        body, consts = ir.closed(eqn.params["jaxpr"])
        num_consts, num_carry = ir.scan_counts(eqn)
        held = num_consts + num_carry
        inside = dataclasses.replace(self, total=None)
        slices = [
            _sliced(x, atom) for x, atom in zip(values[held:], eqn.invars[held:], strict=True)
        ]
        carries = [_bare(x) for x in values[num_consts:held]]
        emitted: list[Value] = []

        def once(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
            operands = [*values[:num_consts], *_bound(carries, carry), *_bound(slices, xs)]
            results = inside.run(body, consts, operands)
            emitted[:] = [_bare(x) for x in results]
            return [x.array for x in results[:num_carry]], [x.array for x in results[num_carry:]]

        initial = self._settled(once, carries, emitted, values, num_consts, held, body)
        settings = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
        arrays, ys = jax.lax.scan(once, initial, [x.array for x in values[held:]], **settings)
        stacked = [
            dataclasses.replace(x, dim=None if x.dim is None else x.dim + 1)
            for x in emitted[num_carry:]
        ]
        return [*_bound(carries, arrays), *_bound(stacked, ys)]

    def _settled(
        self,
        once: Callable[..., Any],
        carries: list[Value],
        emitted: list[Value],
        values: Sequence[Value],
        num_consts: int,
        held: int,
        body: ir.Jaxpr,
    ) -> list[Any]:
        """Initial carries, cut or summed as the body hands them on; updates `carries` in place."""
        initial = [x.array for x in values[num_consts:held]]
        slices = [jax.eval_shape(lambda x: x[0], x.array) for x in values[held:]]
        for _ in range(len(carries) + 1):
            jax.eval_shape(once, initial, slices)
            changed = False
            for i, (now, then) in enumerate(zip(list(carries), emitted, strict=False)):
                if now.is_whole and not then.is_whole:
                    whole = values[num_consts + i]
                    if then.summed:
                        initial[i] = whole.array / self.batch.count
                    else:
                        assert then.dim is not None
                        initial[i] = whole.cut(then.dim, self.batch)
                    carries[i], changed = dataclasses.replace(then, free=False), True
                elif not now.is_whole and (now.dim, now.summed) != (then.dim, then.summed):
                    if then.is_whole:
                        raise CannotCut("a loop carries rows of the batch in, and none out")
                    raise CannotCut("a loop carries rows of the batch along changing dimensions")
                elif now.free and not then.free:
                    carries[i], changed = dataclasses.replace(now, free=False), True
            if not changed:
                break
        return initial


def _bare(value: Value) -> Value:
    return dataclasses.replace(value, array=None, smaller=None)


def _bound(values: Sequence[Value], arrays: Iterable[Any]) -> list[Value]:
    """The same values with other arrays: those of a region or loop that they entered or left."""
    return [
        dataclasses.replace(x, array=array, smaller=None)
        for x, array in zip(values, arrays, strict=True)
    ]


def _sliced(value: Value, atom: Any) -> Value:
    """One iteration's slice of a scanned operand."""
    if value.dim == 0:
        raise CannotCut("a loop runs over the rows of the batch")
    return dataclasses.replace(_bare(value), dim=None if value.dim is None else value.dim - 1)


def _cotangent(found: Value, operand: Value, batch: Cut) -> Any:
    """An operand's cotangent in this part.

    A whole operand gets a share: the parts' gradients are added up, and a sum's are shares already.
    """
    if operand.dim is not None:
        return found.cut(operand.dim, batch)
    if found.dim is None:
        return found.array
    raise CannotCut("the gradient of what all rows share has rows of its own")


def has_random_bits(eqn: ir.JaxprEqn) -> bool:
    """Whether an equation that contains others draws random numbers inside."""
    nested = (v for v in eqn.params.values() if isinstance(v, (ir.ClosedJaxpr, ir.Jaxpr)))
    return any(
        inner.primitive.name == "random_bits"
        for jaxpr in nested
        for inner in ir.equations(ir.closed(jaxpr)[0])
    )
