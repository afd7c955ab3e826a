"""A loop's body that computes its tokens in two groups, each of which can be kept on its own.

    tokens [0, k)   a value of theirs can be saved or kept on the host
    tokens [k, n)   while the same value of the others is made again, or the other way round

The unit of JAX's checkpoint regions is the equation: a part of a value can be made again only where
an equation of its own makes it. So what computes each token alone (products with parameters, norms,
activations; of attention, each query against all keys) becomes two equations, by the rules of
`cut_rules`; what mixes tokens gets its operands put together, and runs once.

The mixture is MEMO's ("MEMO: Fine-grained Tensor Management For Ultra-long Context LLM Training",
2024, token-wise recomputation and swapping), with two differences: which values of a group are
kept is chosen value by value, and they may stay on the device, too.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from passes import ir
from passes.cut_evaluate import Evaluator, has_random_bits
from passes.cut_rules import CannotCut, bind
from passes.cut_values import Value
from passes.equation_cost import CostModel
from passes.errors import PassError
from passes.remat_body import differentiable, floating_of, pushforward
from passes.remat_trace import Loop
from passes.spec import Spec

_EIGHTHS = 8
_TILES = (128, 8, 1)


@dataclasses.dataclass(frozen=True)
class TokenSplit:
    """Where tokens are cut.

    Attributes:
      dim: of what the loop carries.
      size: tokens along it.
      first: of the first group.
    """

    dim: int
    size: int
    first: int


@dataclasses.dataclass(frozen=True)
class TokenGroup:
    """Tokens `[start, stop)`: a `cut_values.Cut`.

    Attributes:
      size: tokens of the whole.
      start, stop: of the group.
      index: which group this is.
    """

    size: int
    start: int
    stop: int
    index: int

    @property
    def count(self) -> float:
        """How many times the group goes into the whole."""
        return self.size / (self.stop - self.start)

    def share(self, size: int) -> int:
        """The group's share of a dimension of which tokens are the major part."""
        return size // self.size * (self.stop - self.start)

    def rows(self, x: Any, dim: int) -> Any:
        """The group's share of a whole array along a dimension of which tokens are major."""
        minor = x.shape[dim] // self.size
        return jax.lax.slice_in_dim(x, self.start * minor, self.stop * minor, axis=dim)


def token_splits(
    loop: Loop, specs: Mapping[ir.Var, Spec], costs: CostModel
) -> tuple[TokenSplit, ...]:
    """Splits of a loop's tokens that are worth a trial: none where every dimension is sharded.

    Tokens lie along the last dimension, but for the features, that no mesh axis shards: positions,
    or rows where positions are sharded. The first group has about 1, 2, 3 or 4 eighths of them, in
    whole tiles; as either group can be kept, these are all the eighths.
    """
    carries = [x for x in loop.carries if differentiable(x) and len(ir.spec(x).shape) > 1]
    if not carries:
        return ()
    widest = max(carries, key=lambda x: math.prod(ir.spec(x).shape))
    spec, shape = specs.get(widest, ()), ir.spec(widest).shape
    for dim in reversed(range(len(shape) - 1)):
        size = shape[dim]
        if costs.degree(spec[dim : dim + 1]) == 1 and size > 1:
            unit = next(x for x in _TILES if size % x == 0 and size >= 2 * x)
            firsts = {max(1, round(size * k / _EIGHTHS / unit)) * unit for k in range(1, 5)}
            return tuple(TokenSplit(dim, size, first) for first in sorted(firsts))
    return ()


def split_tokens(
    loop: Loop, split: TokenSplit, specs: Mapping[ir.Var, Spec]
) -> tuple[ir.ClosedJaxpr, Mapping[ir.Var, Spec]]:
    """A loop's body computed in two groups of tokens, and how its new variables are sharded.

    Args:
      loop: the loop; its operands and results stay whole.
      split: where; carries that have no such dimension are whole in both groups.
      specs: of the body's variables.
    """
    made: list[tuple[ir.Var, Any]] = []

    def run(*operands: Any) -> list[Any]:
        # Of queries and keys, those stay whole after whom less has to be put together again.
        tried = [_Grouped(split, whole_side) for whole_side in (1, 0)]
        results = [one.run(loop, operands) for one in tried]
        best = min((0, 1), key=lambda k: tried[k].joined)
        made[:] = tried[best].made()
        return [*results[best], *(array for _, array in made)]

    traced, consts = ir.closed(jax.make_jaxpr(run)(*(ir.spec(x) for x in loop.body.invars)))
    count = len(loop.body.outvars)
    found: dict[Any, Spec] = {
        new: specs.get(old, ()) for new, old in zip(traced.invars, loop.body.invars, strict=True)
    }
    for new, (old, _) in zip(traced.outvars[count:], made, strict=True):
        if not ir.is_literal(new) and old in specs:
            found.setdefault(new, specs[old])
    for eqn in traced.eqns:
        if eqn.primitive.name == "slice" and eqn.invars[0] in found:  # of what is whole, a mask
            found.setdefault(eqn.outvars[0], found[eqn.invars[0]])
    return ir.ClosedJaxpr(ir.with_results(traced, traced.outvars[:count]), consts), found


@dataclasses.dataclass(eq=False)
class _Tokens:
    """A value whose tokens lie along a dimension; groups and the whole are made of each other."""

    dim: int
    whole: Any = None
    parts: list[Any] | None = None


class _Grouped:
    """Evaluation of a body, equation by equation.

    Attributes:
      split: where tokens are cut.
      whole_side: the operand that stays whole in a product of tokens with tokens, if it may be
        either.
      joined: elements of what was put together.
      eqn: what is evaluated.
    """

    def __init__(self, split: TokenSplit, whole_side: int) -> None:
        self.split, self.whole_side, self.joined = split, whole_side, 0
        self.eqn: ir.JaxprEqn | None = None
        self.groups = (
            TokenGroup(split.size, 0, split.first, 0),
            TokenGroup(split.size, split.first, split.size, 1),
        )
        self.env: dict[Any, Any] = {}  # an array, or _Tokens

    def run(self, loop: Loop, operands: Sequence[Any]) -> list[Any]:
        """The body's results."""
        dim, size = self.split.dim, self.split.size
        self.env.update(zip(loop.body.constvars, loop.consts, strict=True))
        self.env.update(zip(loop.body.invars, operands, strict=True))
        for x in loop.carries:
            shape = ir.spec(x).shape
            if len(shape) > dim and shape[dim] == size and differentiable(x):
                self.env[x] = _Tokens(dim, self.env[x])
        for eqn in loop.body.eqns:
            self.eqn = eqn
            self._equation(eqn)
        return [self._whole(ir.read(self.env, x)) for x in loop.body.outvars]

    def made(self) -> list[tuple[ir.Var, Any]]:
        """Each array that was made, with the variable of the old body that it is a part of."""
        found = []
        for var, value in self.env.items():
            arrays = [value]
            if isinstance(value, _Tokens):
                arrays = [x for x in (value.whole, *(value.parts or ())) if x is not None]
            found += [(var, x) for x in arrays]
        return found

    def _whole(self, value: Any) -> Any:
        if not isinstance(value, _Tokens):
            return value
        if value.whole is None:
            assert value.parts is not None
            self.joined += sum(x.size for x in value.parts)
            dim = value.dim
            value.whole = self._placed(lambda *x: jax.lax.concatenate(x, dim), *value.parts)
        return value.whole

    def _placed(self, function: Callable[..., Any], *arrays: Any) -> Any:
        return function(*arrays) if self.eqn is None else ir.located(function, self.eqn)(*arrays)

    def _part(self, value: Any, group: TokenGroup) -> Value:
        if not isinstance(value, _Tokens):
            return Value(value)
        if value.parts is None:
            dim = value.dim
            value.parts = [
                self._placed(functools.partial(one.rows, dim=dim), value.whole)
                for one in self.groups
            ]
        return Value(value.parts[group.index], value.dim)

    def _equation(self, eqn: ir.JaxprEqn) -> None:
        values = [ir.read(self.env, x) for x in eqn.invars]
        if any(isinstance(x, _Tokens) for x in values):
            for trial in self._trials(eqn, values):
                try:
                    parts = [self._one(eqn, trial, group) for group in self.groups]
                except (PassError, CannotCut):
                    continue  # tokens meet each other
                for var, *of_groups in zip(eqn.outvars, *parts, strict=True):
                    first: Value = of_groups[0]
                    arrays = [x.array for x in of_groups]
                    whole = first.dim is None
                    self.env[var] = arrays[0] if whole else _Tokens(first.dim or 0, parts=arrays)
                return
        results = ir.alone(eqn)(*(self._whole(x) for x in values))
        for var, result in zip(eqn.outvars, results, strict=True):
            dim = self._kept_dim(eqn, values, var)
            self.env[var] = result if dim is None else _Tokens(dim, result)

    def _trials(self, eqn: ir.JaxprEqn, values: Sequence[Any]) -> Iterator[list[Any]]:
        """Operands to try: where tokens are multiplied with tokens, one side may be whole."""
        yield list(values)
        if eqn.primitive.name == "dot_general" and all(isinstance(x, _Tokens) for x in values):
            for side in (self.whole_side, 1 - self.whole_side):
                yield [self._whole(x) if k == side else x for k, x in enumerate(values)]

    def _one(self, eqn: ir.JaxprEqn, values: Sequence[Any], group: TokenGroup) -> list[Value]:
        """An equation's results for one group.

        Raises:
          CannotCut, PassError: tokens meet each other.
        """
        if has_random_bits(eqn):
            raise CannotCut("other random numbers would be drawn")
        operands = [self._part(x, group) for x in values]
        evaluator = Evaluator(group)
        name = eqn.primitive.name
        if name == "custom_jvp_call":
            return [_custom_jvp(eqn, operands, evaluator)]
        if name == "sharding_constraint":
            return [_constrained(eqn, operands[0])]
        results = list(evaluator.equation(eqn, operands))
        if any(x.summed for x in results):
            raise CannotCut("a sum over tokens")
        return results

    def _kept_dim(self, eqn: ir.JaxprEqn, values: Sequence[Any], var: Any) -> int | None:
        """Where the tokens of a result are that was made whole: where an operand like it has them.

        An attention kernel's result has the shape of its queries. Any answer is right: it only says
        along which dimension what follows is computed in groups.
        """
        for x, value in zip(eqn.invars, values, strict=True):
            if isinstance(value, _Tokens) and ir.spec(x).shape == var.aval.shape:
                return value.dim
        return None


def _constrained(eqn: ir.JaxprEqn, operand: Value) -> Value:
    spec = getattr(eqn.params["sharding"], "spec", None)
    if operand.dim is None or spec is None or tuple(spec)[operand.dim : operand.dim + 1] != (None,):
        raise CannotCut("tokens are sharded")
    return Value(bind(eqn, [operand.array])[0], operand.dim)


def _custom_jvp(eqn: ir.JaxprEqn, operands: Sequence[Value], evaluator: Evaluator) -> Value:
    """A function with a derivative rule of its own, and its rule, for one group.

    Raises:
      CannotCut, PassError: tokens meet each other.
    """
    called = ir.callee(eqn)
    if called is None or len(eqn.outvars) != 1:
        raise CannotCut("several results")
    inside = dataclasses.replace(evaluator, derives=False)
    dims = [x.dim for x in operands]

    def values(arrays: Sequence[Any], of: Sequence[int | None]) -> list[Value]:
        return [Value(array, dim) for array, dim in zip(arrays, of, strict=True)]

    @jax.custom_jvp
    def function(*arrays: Any) -> Any:
        return inside.run(*called, values(arrays, dims))[0].array

    @function.defjvp
    def rule(arrays: Any, tangents: Any) -> Any:
        specs = [ir.spec(x) for x in eqn.invars]
        jaxpr, consts = ir.closed(jax.make_jaxpr(pushforward(eqn))(specs, floating_of(eqn, specs)))
        given = values(floating_of(eqn, tangents), floating_of(eqn, dims))
        both = inside.run(jaxpr, consts, [*values(arrays, dims), *given])
        return tuple(x.array for x in both)

    (dim,) = (x.dim for x in inside.run(*called, operands))
    if dim is None:
        raise CannotCut("a sum over tokens")
    return Value(function(*(x.array for x in operands)), dim)
