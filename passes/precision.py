"""precision: matrix products and convolutions in a narrow type, everything else as it was.

    before   y:f32 = dot_general x:f32 w:f32
    after    xn:bf16 = convert x;  wn:bf16 = convert w      (once a variable and scope)
             y:f32 = dot_general[preferred_element_type=float32] xn wn

Softmax, logarithms, exponentials, reductions, the statistics of norms and the loss keep their
types; parameters stay stored as they are, and a slice of a stack is cast inside the loop over it,
so that what is gathered for use is the narrow copy. (Micikevicius et al., "Mixed Precision
Training", 2017, arXiv:1710.03740, section 3: storage wide, products narrow, accumulation wide.)
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from passes import ir
from passes.errors import PassError
from passes.program import Program, Role


@dataclasses.dataclass(frozen=True)
class MixedPrecision:
    """A policy of types for a program that was traced in a wide one.

    Products whose operands are wider than `compute` are narrowed to it; others are left alone, and
    so are those that ask for a precision of their own, and the bodies of custom derivatives. A
    policy of the program's own type changes nothing.

    The backward pass multiplies the cotangents of results, which have the type `accumulate`, with
    narrow operands. `accumulate` equal to `compute` makes it narrow throughout, and rounds each
    result once more; the units of TPUs and GPUs add up in float32 either way.

    Attributes:
      compute: of the operands of products.
      accumulate: in which products add up; the result is then of the type that it had before.
      gradients: to which the gradients of parameters are rounded as they leave the program, before
        they are summed over devices; their type remains the parameter's. None: not at all, but
        those that come from a narrowed operand are of type `compute` anyway.
    """

    compute: str = "bfloat16"
    accumulate: str = "float32"
    gradients: str | None = None
    name: str = dataclasses.field(default="precision", init=False, repr=False)

    def apply(self, program: Program) -> Program:
        """The program under the policy, with a note; the same object where nothing changes.

        Raises:
          PassError: a type is not a floating one, or `accumulate` is narrower than `compute`.
        """
        compute, accumulate = _float(self.compute, "compute"), _float(self.accumulate, "accumulate")
        gradients = None if self.gradients is None else _float(self.gradients, "gradients")
        if accumulate.itemsize < compute.itemsize:
            raise PassError(
                f"accumulate={self.accumulate!r} is narrower than compute={self.compute!r}: sums "
                "would lose what products keep; accumulate in that type or a wider one"
            )
        work = _Work(compute, accumulate, gradients)
        jaxpr, consts = ir.closed(program.jaxpr)
        parameters = frozenset(program.with_role(Role.PARAMETER))
        changed = work.rewritten(jaxpr, parameters if gradients is not None else frozenset())
        if not work.narrowed and not work.rounded:
            return program
        result = dataclasses.replace(program, jaxpr=ir.ClosedJaxpr(changed, consts))
        return result.noting(work.note())


def _float(name: str, field: str) -> Any:
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise PassError(f"{field}={name!r} is not a floating type: write 'bfloat16' or 'float32'")
    return dtype


class _Work:
    """One application of a policy: what was changed, and bodies that equations share."""

    def __init__(self, compute: Any, accumulate: Any, gradients: Any) -> None:
        self.compute = compute
        self.accumulate = accumulate
        self.gradients = gradients
        self.narrowed = self.kept = self.rounded = 0
        self._bodies: dict[Any, tuple[Any, Any]] = {}  # the first keeps the object, and so its id

    def note(self) -> str:
        """What was done, in a sentence."""
        said = f"{self.narrowed} products of {self.compute} accumulated in {self.accumulate}"
        if self.kept:
            said += f"; {self.kept} left alone, which ask for a precision of their own"
        if self.rounded:
            said += f"; gradients rounded to {self.gradients} at {self.rounded} places"
        return said

    def rewritten(self, jaxpr: ir.Jaxpr, parameters: frozenset[int]) -> ir.Jaxpr:
        """The program under the policy, same inputs and results.

        Args:
          jaxpr: a program.
          parameters: positions of inputs whose gradients are to be rounded.
        """
        scope = _Scope(self, {jaxpr.invars[i] for i in parameters})
        for eqn in jaxpr.eqns:
            scope.append(eqn)
        results = [scope.rounded_parameter(x) for x in jaxpr.outvars]
        return jaxpr.replace(eqns=scope.eqns, outvars=results)

    def body(self, value: Any, parameters: frozenset[int]) -> Any:
        """A parameter of an equation that is a program, under the policy."""
        key = id(value), parameters
        found = self._bodies.get(key)
        if found is None:
            jaxpr, consts = ir.closed(value)
            before = self.narrowed, self.rounded
            changed: Any = self.rewritten(jaxpr, parameters)
            if (self.narrowed, self.rounded) == before:
                changed = value
            elif isinstance(value, ir.ClosedJaxpr):
                changed = ir.ClosedJaxpr(changed, consts)
            found = self._bodies[key] = (value, changed)
        return found[1]


class _Scope:
    """The equations of one program in the making."""

    def __init__(self, work: _Work, parameters: set[ir.Var]) -> None:
        self.work = work
        self.parameters = parameters
        self.eqns: list[ir.JaxprEqn] = []
        self._narrow: dict[ir.Var, ir.Var] = {}
        self._rounded: dict[ir.Var, ir.Var] = {}

    def append(self, eqn: ir.JaxprEqn) -> None:
        bodies = _bodies(eqn)
        if bodies:
            self._append_with_bodies(eqn, bodies)
            return
        if any(map(self._is_parameter, eqn.invars)) and not self._is_rounding_cast(eqn):
            eqn = eqn.replace(invars=[self.rounded_parameter(x) for x in eqn.invars])
        if eqn.primitive.name not in ir.PRODUCTS or not self._is_wide(eqn):
            self._remember_widening(eqn)
            self.eqns.append(eqn)
        elif _asks_for_precision(eqn):
            self.work.kept += 1
            self.eqns.append(eqn)
        else:
            self.work.narrowed += 1
            self._append_product(eqn)

    def _is_parameter(self, atom: Any) -> bool:
        return not ir.is_literal(atom) and atom in self.parameters

    def _append_with_bodies(self, eqn: ir.JaxprEqn, bodies: "Sequence[_Body]") -> None:
        operands: list[Any] = list(eqn.invars)
        for position in _carried(eqn):  # what a loop carries is a parameter at first only
            operands[position] = self.rounded_parameter(operands[position])
        changed: dict[str, Any] = {}
        for body in bodies:
            given = operands[body.start : body.stop]
            positions = frozenset(i for i, x in enumerate(given) if self._is_parameter(x))
            made = self.work.body(body.value, positions)
            changed[body.parameter] = (*changed.get(body.parameter, ()), made)
        params = dict(eqn.params)
        for name, made in changed.items():
            params[name] = made if isinstance(eqn.params[name], tuple) else made[0]
        self.eqns.append(eqn.replace(invars=operands, params=params))

    def _is_wide(self, eqn: ir.JaxprEqn) -> bool:
        dtypes = [ir.spec(x).dtype for x in eqn.invars]
        compute = self.work.compute
        floating = all(jnp.issubdtype(d, jnp.floating) for d in dtypes)
        return floating and any(d.itemsize > compute.itemsize for d in dtypes)

    def _append_product(self, eqn: ir.JaxprEqn) -> None:
        work = self.work
        operands = [self._narrowed(x, eqn) for x in eqn.invars]
        wanted = ir.spec(eqn.outvars[0]).dtype

        def product(*values: Any) -> Any:
            made = _product(eqn, values, work.accumulate)
            return lax.convert_element_type(made, wanted)

        self._splice(product, operands, eqn)

    def _narrowed(self, atom: Any, user: ir.JaxprEqn) -> Any:
        compute = self.work.compute
        if ir.spec(atom).dtype.itemsize <= compute.itemsize:
            return atom
        found = None if ir.is_literal(atom) else self._narrow.get(atom)
        if found is None:
            found = self._spliced(lambda x: lax.convert_element_type(x, compute), atom, user)
            if not ir.is_literal(atom):
                self._narrow[atom] = found
        return found

    def _remember_widening(self, eqn: ir.JaxprEqn) -> None:
        """Narrowing what was just widened gives back the operand."""
        if eqn.primitive.name == "convert_element_type" and not ir.is_literal(eqn.invars[0]):
            source: Any = eqn.invars[0]
            if ir.spec(source).dtype == self.work.compute:
                self._narrow[eqn.outvars[0]] = source

    def rounded_parameter(self, atom: Any) -> Any:
        """A parameter behind an identity that rounds its gradient; anything else as it is."""
        if not self._is_parameter(atom):
            return atom
        found = self._rounded.get(atom)
        if found is None:
            dtype = ir.spec(atom).dtype
            gradients = self.work.gradients
            floating = jnp.issubdtype(dtype, jnp.floating)
            if not floating or dtype.itemsize <= gradients.itemsize:
                return atom
            self.work.rounded += 1
            found = self._spliced(_rounding(gradients), atom, None)
            self._rounded[atom] = found
        return found

    def _is_rounding_cast(self, eqn: ir.JaxprEqn) -> bool:
        """Whether the cotangent is of the wanted type where it leaves the equation."""
        gradients = self.work.gradients
        if eqn.primitive.name == "convert_element_type":
            return bool(ir.spec(eqn.outvars[0]).dtype == gradients)
        narrows = eqn.primitive.name in ir.PRODUCTS and self._is_wide(eqn)
        return narrows and not _asks_for_precision(eqn) and bool(self.work.compute == gradients)

    def _spliced(self, function: Callable[[Any], Any], atom: Any, user: Any) -> ir.Var:
        jaxpr = jax.make_jaxpr(function)(ir.spec(atom)).jaxpr
        made = ir.Var(jaxpr.outvars[0].aval)
        self._add(jaxpr, [atom], [made], user)
        return made

    def _splice(self, function: Callable[..., Any], atoms: Sequence[Any], eqn: ir.JaxprEqn) -> None:
        jaxpr = jax.make_jaxpr(function)(*map(ir.spec, atoms)).jaxpr
        self._add(jaxpr, atoms, eqn.outvars, eqn)

    def _add(
        self, jaxpr: ir.Jaxpr, atoms: Sequence[Any], results: Sequence[ir.Var], user: Any
    ) -> None:
        """Append the equations of a traced function of `atoms`, its results called `results`."""
        env: dict[Any, Any] = dict(zip(jaxpr.invars, atoms, strict=True))
        last: dict[Any, Any] = dict(zip(jaxpr.outvars, results, strict=True))
        for inner in jaxpr.eqns:
            operands = [x if ir.is_literal(x) else env[x] for x in inner.invars]
            made = [last.get(x) or ir.Var(x.aval) for x in inner.outvars]
            env.update(zip(inner.outvars, made, strict=True))
            inner = inner.replace(invars=operands, outvars=made)
            if user is not None:
                inner = inner.replace(source_info=user.source_info, ctx=user.ctx)
            self.eqns.append(inner)


def _product(eqn: ir.JaxprEqn, values: Sequence[Any], accumulate: Any) -> Any:
    """The product of other values, added up in a type.

    The CPU compiler does not know a narrow matrix times a narrow array with several free dimensions
    if the sum is wide (an expert's kernel before its tokens), but it does the other way round.
    """
    params = {**eqn.params, "preferred_element_type": accumulate}
    if eqn.primitive.name != "dot_general":
        return eqn.primitive.bind(*values, **params)
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    batch = len(left_batch)
    free = [x.ndim - len(dims) - batch for x, dims in zip(values, (left, right), strict=True)]
    if free[0] != 1 or free[1] < 2:
        return eqn.primitive.bind(*values, **params)
    params["dimension_numbers"] = (right, left), (right_batch, left_batch)
    made = eqn.primitive.bind(*values[::-1], **params)
    return jnp.moveaxis(made, -1, batch)


def _asks_for_precision(eqn: ir.JaxprEqn) -> bool:
    asked = eqn.params.get("precision")
    every = asked if isinstance(asked, tuple) else (asked,)
    return any(one is not None and one != lax.Precision.DEFAULT for one in every)


def _rounding(dtype: Any) -> Callable[[Any], Any]:
    """An identity whose cotangent is rounded to `dtype`."""

    @jax.custom_vjp
    def rounding(x: Any) -> Any:
        return x

    def forward(x: Any) -> tuple[Any, None]:
        return x, None

    def backward(_: None, cotangent: Any) -> tuple[Any]:
        return (cotangent.astype(dtype).astype(cotangent.dtype),)

    rounding.defvjp(forward, backward)
    return rounding


@dataclasses.dataclass(frozen=True)
class _Body:
    """A program that an equation runs.

    Attributes:
      parameter: the equation's parameter that holds it.
      value: it.
      start, stop: of the equation's operands, those that are its inputs.
    """

    parameter: str
    value: Any
    start: int
    stop: int


def _carried(eqn: ir.JaxprEqn) -> range:
    """Positions of the operands that a loop's body makes anew."""
    if eqn.primitive.name == "scan":
        constants, carries = ir.scan_counts(eqn)
        return range(constants, constants + carries)
    if eqn.primitive.name == "while":
        return range(len(eqn.invars))
    return range(0)


def _bodies(eqn: ir.JaxprEqn) -> list[_Body]:
    """The programs that an equation runs, but those of custom derivatives and kernels."""
    name, params, count = eqn.primitive.name, eqn.params, len(eqn.invars)
    if name == "while":
        return [_Body("body_jaxpr", params["body_jaxpr"], params["cond_nconsts"], count)]
    if name == "cond":
        return [_Body("branches", branch, 1, count) for branch in params["branches"]]
    if name == "scan" or (name in ir.CALLS and "custom" not in name):
        parameter = "jaxpr" if name == "scan" else ir.CALLS[name]
        return [_Body(parameter, params[parameter], 0, count)] if parameter in params else []
    return []
