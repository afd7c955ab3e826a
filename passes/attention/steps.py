"""The way from raw scores to what the softmax takes, as steps that can be redone for one block.

    scores = q . k      ->  scale, cast, cap, mask by position, add a bias, ...  ->  softmax
    [.., queries, keys]     each elementwise in (query, key), or a change of shape

Whatever is made from positions alone (a causal mask, a window, slopes by distance) is made again
for every block. What comes from data but has no more than one of the two dimensions (segment ids, a
padding mask) is a *leaf*, cut along it. Only what has both and cannot be redone stays a whole
array.

Dimensions of every value are named by the dimension of the softmax's operand that they go along.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from passes import ir
from passes.attention.scopes import Scope

# Elementwise: of each operand as many elements as of the result, or one along a dimension.
ELEMENTWISE = frozenset(
    "add sub mul div rem max min neg abs sign exp exp2 log log1p expm1 tanh logistic sqrt rsqrt "
    "cbrt square integer_pow pow floor ceil round clamp erf sin cos select_n ge gt le lt eq ne "
    "and or not xor is_finite convert_element_type reduce_precision copy name stop_gradient".split()
)
_SHAPES = frozenset("broadcast_in_dim reshape squeeze transpose iota".split())

_MOST_CONSTANT = 1 << 26  # elements of a constant that are looked at

# For each dimension of a value, the dimension of the softmax's operand that it goes along.
Dims = tuple[int | None, ...]


class UnrecognisedError(Exception):
    """A softmax over keys is there, but not in a form that can be computed in blocks."""


class Along(enum.Enum):
    """Which side of attention an array is cut with."""

    QUERY = "query"
    KEY = "key"
    BOTH = "both"
    NEITHER = "neither"


@dataclasses.dataclass(frozen=True)
class Known:
    """A literal operand."""

    value: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One equation, to be redone for a block.

    Attributes:
      name: of its primitive.
      redo: binds the primitive.
      params: its parameters.
      operands: places of earlier values, or literals.
      shape: of its result in the whole program.
      dtype: of its result.
      dims: of its result.
    """

    name: str
    redo: Callable[..., Any]
    params: Mapping[str, Any]
    operands: tuple[int | Known, ...]
    shape: tuple[int, ...]
    dtype: Any
    dims: Dims


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """An array that the steps read.

    Attributes:
      var, scope: the variable.
      place: among the values of the steps.
      dims: of the array.
      along: how it is cut.
    """

    var: ir.Var
    scope: Scope
    place: int
    dims: Dims
    along: Along


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """All of them, in order.

    Attributes:
      scores: dimensions of the raw scores, which are value 0.
      steps: value number i + 1 is the result of step i, or leaf where that is None.
      leaves: the arrays that they read.
      result: the place of the softmax's operand.
      query, key: the dimensions of the softmax's operand along which queries and keys lie.
    """

    scores: Dims
    steps: tuple[Step | None, ...]
    leaves: tuple[Leaf, ...]
    result: int
    query: int
    key: int

    def values(
        self,
        scores: Any,
        leaves: Sequence[Any],
        sizes: Mapping[int, int],
        starts: Mapping[int, Any],
    ) -> Any:
        """The softmax's operand for one block.

        Args:
          scores: raw scores of the block.
          leaves: the block's part of each leaf.
          sizes: of the block along each dimension of the softmax's operand.
          starts: where the block begins along a dimension; 0 where not given.
        """
        values: list[Any] = [scores] + [None] * len(self.steps)
        for leaf, array in zip(self.leaves, leaves, strict=True):
            values[leaf.place] = array
        for place, step in enumerate(self.steps, 1):
            if step is not None:
                operands = [x.value if isinstance(x, Known) else values[x] for x in step.operands]
                values[place] = _redo(step, operands, sizes, starts)
        return values[self.result]


def _redo(
    step: Step, operands: list[Any], sizes: Mapping[int, int], starts: Mapping[int, Any]
) -> Any:
    pairs = zip(step.shape, step.dims, strict=True)
    shape = tuple(n if d is None else sizes[d] for n, d in pairs)
    if step.name == "broadcast_in_dim":
        return jax.lax.broadcast_in_dim(operands[0], shape, step.params["broadcast_dimensions"])
    if step.name == "reshape":
        return jax.lax.reshape(operands[0], shape)
    if step.name == "iota":
        along = step.params["dimension"]
        start = starts.get(step.dims[along], 0) if step.dims[along] is not None else 0
        offset = step.params.get("offset", 0)
        counted = jax.lax.broadcasted_iota(step.dtype, shape, along)
        return counted + jnp.asarray(start + offset, step.dtype)
    return step.redo(*operands, **step.params)


def operand_dims(eqn: ir.JaxprEqn, dims: Dims) -> list[Dims] | None:
    """Dimensions of an equation's operands, given its result's; None where it is no step."""
    name = eqn.primitive.name
    if name not in ELEMENTWISE and name not in _SHAPES:
        return None
    result = _shape(eqn.outvars[0])
    shapes = [_shape(x) for x in eqn.invars]
    if name == "iota":
        return []
    if name == "broadcast_in_dim":
        if len(shapes) > 1:
            return None
        to = [int(d) for d in eqn.params["broadcast_dimensions"]]
        return [
            tuple(dims[d] if n == result[d] else None for n, d in zip(shapes[0], to, strict=True))
        ]
    if name == "transpose":
        order = [int(d) for d in eqn.params["permutation"]]
        return [tuple(dims[order.index(d)] for d in range(len(order)))]
    if name == "squeeze":
        gone = {int(d) % len(shapes[0]) for d in eqn.params["dimensions"]}
        rest = iter(dims)
        return [tuple(None if d in gone else next(rest) for d in range(len(shapes[0])))]
    if name == "reshape":
        return _reshaped(shapes[0], result, dims)
    return [
        tuple(d if n == m else None for n, m, d in zip(shape, result, dims, strict=True))
        if shape
        else ()
        for shape in shapes
    ]


def _reshaped(shape: tuple[int, ...], result: tuple[int, ...], dims: Dims) -> list[Dims] | None:
    """A reshape may add and remove dimensions of size one; others must stay what they are."""
    if [n for n in shape if n != 1] != [n for n in result if n != 1]:
        return None
    rest = iter(d for n, d in zip(result, dims, strict=True) if n != 1)
    return [tuple(None if n == 1 else next(rest) for n in shape)]


@dataclasses.dataclass(eq=False)
class Builder:
    """Collects steps, from the softmax's operand backwards.

    Attributes:
      scores: the variable of the raw scores.
      query, key: as in `Steps`.
    """

    scores: ir.Var
    query: int
    key: int
    steps: list[Step | None] = dataclasses.field(default_factory=list)
    leaves: list[Leaf] = dataclasses.field(default_factory=list)
    scores_dims: Dims | None = None
    _places: dict[tuple[int, Dims], int] = dataclasses.field(default_factory=dict)
    _position_only: dict[ir.Var, bool] = dataclasses.field(default_factory=dict)
    _of_scores: dict[ir.Var, bool] = dataclasses.field(default_factory=dict)

    def build(self, atom: Any, scope: Scope, dims: Dims) -> Steps:
        """The steps that make the softmax's operand.

        Raises:
          UnrecognisedError: one of them cannot be redone for a block.
        """
        result = self._place(atom, scope, dims)
        if self.scores_dims is None or isinstance(result, Known):
            raise UnrecognisedError("the softmax is of something else than query times key")
        return Steps(
            self.scores_dims, tuple(self.steps), tuple(self.leaves), result, self.query, self.key
        )

    def _place(self, atom: Any, scope: Scope, dims: Dims) -> int | Known:
        atom, scope = scope.resolve(atom)
        if ir.is_literal(atom):
            return Known(atom.val)
        key = (id(atom), dims)
        if key not in self._places:
            self._places[key] = self._new(atom, scope, dims)
        return self._places[key]

    def _new(self, var: ir.Var, scope: Scope, dims: Dims) -> int:
        if var is self.scores:
            if self.scores_dims not in (None, dims):
                raise UnrecognisedError("scores are used in two arrangements")
            self.scores_dims = dims
            return 0
        eqn = scope.defines.get(var)
        both = self.query in dims and self.key in dims
        redone = eqn is not None and (both or self._from_positions(var, scope))
        into = operand_dims(eqn, dims) if eqn is not None and redone else None
        if eqn is not None and into is not None and len(eqn.outvars) == 1:
            operands = tuple(
                self._place(x, scope, d) for x, d in zip(eqn.invars, into, strict=True)
            )
            return self._step(eqn, operands, dims)
        positions = _counting(scope.constants.get(var))
        if positions is not None and _shape(var) and dims[0] in (self.query, self.key):
            return self._counted(var, positions, dims)
        band = _banded(scope.constants.get(var), dims, self.query, self.key) if both else None
        if band is not None:
            return self._compared(var, band, dims)
        if self._from_scores(var, scope):
            what = eqn.primitive.name if eqn is not None else "an input"
            raise UnrecognisedError(f"{what} between query times key and the softmax")
        self.steps.append(None)
        place = len(self.steps)
        self.leaves.append(Leaf(var, scope, place, dims, self._along(dims)))
        return place

    def _step(self, eqn: ir.JaxprEqn, operands: tuple[int | Known, ...], dims: Dims) -> int:
        result: Any = eqn.outvars[0].aval
        self.steps.append(
            Step(
                eqn.primitive.name, eqn.primitive.bind, eqn.params, operands, result.shape,
                result.dtype, dims,
            )
        )  # fmt: skip
        return len(self.steps)

    def _counted(self, var: ir.Var, first: int, dims: Dims) -> int:
        """A constant that counts up by one is made from positions, too."""
        aval: Any = var.aval
        params = {"dimension": 0, "offset": first}
        self.steps.append(
            Step("iota", jax.lax.iota_p.bind, params, (), aval.shape, aval.dtype, dims)
        )
        return len(self.steps)

    def _compared(self, var: ir.Var, band: tuple[int, int], dims: Dims) -> int:
        """A constant mask that is a band is made from positions, too."""
        shape = _shape(var)

        def add(primitive: Any, operands: tuple[int | Known, ...], dtype: Any) -> int:
            step = Step(primitive.name, primitive.bind, {}, operands, shape, dtype, dims)
            self.steps.append(step)
            return len(self.steps)

        places = []
        for along in (self.query, self.key):
            params = {"dimension": dims.index(along)}
            step = Step("iota", jax.lax.iota_p.bind, params, (), shape, np.int32, dims)
            self.steps.append(step)
            places.append(len(self.steps))
        apart = add(jax.lax.sub_p, (places[0], places[1]), np.int32)
        least, most = (Known(np.int32(x)) for x in band)
        above = add(jax.lax.ge_p, (apart, least), np.bool_)
        below = add(jax.lax.le_p, (apart, most), np.bool_)
        return add(jax.lax.and_p, (above, below), np.bool_)

    def _along(self, dims: Dims) -> Along:
        if self.query in dims:
            return Along.BOTH if self.key in dims else Along.QUERY
        return Along.KEY if self.key in dims else Along.NEITHER

    def _from_positions(self, var: ir.Var, scope: Scope) -> bool:
        """Whether a value depends on nothing but where it is."""

        def rule(eqn: ir.JaxprEqn | None, constant: Any, inputs: list[bool]) -> bool:
            if eqn is None:
                return _counting(constant) is not None
            known = operand_dims(eqn, (None,) * len(_shape(eqn.outvars[0]))) is not None
            return known and all(inputs)

        return _holds(var, scope, self._position_only, rule)

    def _from_scores(self, var: ir.Var, scope: Scope) -> bool:
        def rule(eqn: ir.JaxprEqn | None, constant: Any, inputs: list[bool]) -> bool:
            return eqn is not None and (self.scores in eqn.outvars or any(inputs))

        return _holds(var, scope, self._of_scores, rule)


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _holds(
    var: ir.Var,
    scope: Scope,
    known: dict[ir.Var, bool],
    rule: Callable[[ir.JaxprEqn | None, Any, list[bool]], bool],
) -> bool:
    """A property of a value, by a rule of (its equation, its constant, that of its operands)."""
    stack = [(var, scope)]
    while stack:
        current, place = stack[-1]
        eqn = place.defines.get(current)
        resolved = [place.resolve(x) for x in eqn.invars] if eqn is not None else []
        operands = [x for x in resolved if not ir.is_literal(x[0])]
        missing = [x for x in operands if x[0] not in known]
        if current in known or not missing:
            stack.pop()
        if current not in known and not missing:
            inputs = [known[x] for x, _ in operands]
            known[current] = rule(eqn, place.constants.get(current), inputs)
        stack.extend(missing if current not in known else ())
    return known[var]


def _counting(value: Any) -> int | None:
    """The first of consecutive integers; None for any other constant."""
    if value is None or getattr(value, "ndim", 0) != 1 or value.size < 2:
        return None
    if not np.issubdtype(value.dtype, np.integer):
        return None
    numbers = np.asarray(value)
    first = int(numbers[0])
    return first if np.array_equal(numbers, np.arange(first, first + numbers.size)) else None


def _banded(value: Any, dims: Dims, query: int, key: int) -> tuple[int, int] | None:
    """The least and greatest distance at which a constant mask is true, if it is true between."""
    if value is None or value.dtype != np.bool_ or value.size > _MOST_CONSTANT:
        return None
    if any(n > 1 for n, d in zip(value.shape, dims, strict=True) if d not in (query, key)):
        return None
    rows, columns = (value.shape[dims.index(along)] for along in (query, key))
    mask = np.moveaxis(np.asarray(value), (dims.index(query), dims.index(key)), (0, 1))
    mask = mask.reshape(rows, columns)
    apart = np.subtract.outer(np.arange(rows), np.arange(columns))
    if not mask.any():
        return None
    least, most = int(apart[mask].min()), int(apart[mask].max())
    inside = (apart >= least) & (apart <= most)
    return (least, most) if np.array_equal(mask, inside) else None
