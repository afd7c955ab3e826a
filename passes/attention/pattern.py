"""Attention in a program: weights = softmax(steps(query . key)), result = weights . value.

Found by the softmax over a dimension that a matrix product then contracts, and the matrix product
with batch dimensions whose result that softmax is of. Nothing is said about names or about the
order of dimensions: whatever an einsum, `jax.nn.dot_product_attention` or a library's module makes
of it is kept, and redone for blocks.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from passes import ir
from passes.attention.band import Band, band_of
from passes.attention.scopes import Scope
from passes.attention.softmax import Softmax, softmax_of
from passes.attention.steps import (
    ELEMENTWISE,
    Builder,
    Dims,
    Steps,
    UnrecognisedError,
    operand_dims,
)

_SEARCHED = 200  # values looked at, from a softmax backwards, for the product it is of
_CHANGES = 8  # elementwise operations between a softmax and a product, to be reported


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A matrix product of two operands of attention.

    Attributes:
      params: of `dot_general`.
      first: whether the query (or the weights) are its left operand.
    """

    params: dict[str, Any]
    first: bool


@dataclasses.dataclass(frozen=True, eq=False)
class HeadDim:
    """A dimension along which attention is independent and that may be cut instead of positions.

    Attributes:
      dim: of the softmax's operand.
      size: its size.
      query, result: the dimension of the query, and of the result.
      key, value: of the key and value; None where those are shared along it.
    """

    dim: int
    size: int
    query: int
    result: int
    key: int | None
    value: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """One attention of a program.

    Attributes:
      scope: the program whose equation `eqn` makes the result.
      eqn: the product of weights and values.
      operands: variables of query, key, value, in `scopes` of their own.
      scopes: where the operands are variables.
      scores, result: the two products.
      steps: what lies between the first and the softmax.
      weights_dtype: the type in which weights meet values.
      weights_order: the dimensions of the softmax, in the order of the weights.
      query_dim, key_dim, value_dim: the dimension of positions of each operand.
      result_dim: of the result.
      result_dims: for each dimension of the result that of the softmax, None for value's own.
      queries, keys: how many positions.
      shape: of the softmax's operand.
      heads: dimensions that may be cut instead, the best first.
      band: which positions the mask lets see each other.
      line: source line, or empty.
    """

    scope: Scope
    eqn: ir.JaxprEqn
    operands: tuple[ir.Var, ir.Var, ir.Var]
    scopes: tuple[Scope, Scope, Scope]
    scores: Product
    result: Product
    steps: Steps
    weights_dtype: Any
    weights_order: tuple[int, ...]
    query_dim: int
    key_dim: int
    value_dim: int
    result_dim: int
    result_dims: Dims
    queries: int
    keys: int
    shape: tuple[int, ...]
    heads: tuple[HeadDim, ...]
    band: Band
    line: str


@dataclasses.dataclass(frozen=True, eq=False)
class Refusal:
    """Attention that is left alone, and why."""

    line: str
    reason: str

    def __str__(self) -> str:
        return f"attention{f' at {self.line}' if self.line else ''} is left alone: {self.reason}"


def find(scope: Scope) -> "Iterator[Attention | Refusal]":
    """Attention in a scope and all within it, in order."""
    for place in scope.nested():
        for eqn in place.jaxpr.eqns:
            if eqn.primitive.name != "dot_general":
                continue
            for side in (0, 1):
                found = _at(eqn, side, place)
                if found is not None:
                    yield found
                    break


@dataclasses.dataclass(frozen=True)
class _Dot:
    """Where the dimensions of a product's operands go in its result."""

    batch: tuple[tuple[int, ...], tuple[int, ...]]
    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    free: tuple[tuple[int, ...], tuple[int, ...]]

    @classmethod
    def of(cls, eqn: ir.JaxprEqn) -> "_Dot":
        contracted, batch = (
            tuple(tuple(int(d) for d in side) for side in pair)
            for pair in eqn.params["dimension_numbers"]
        )
        free = tuple(
            tuple(d for d in range(len(_shape(x))) if d not in (*c, *b))
            for x, c, b in zip(eqn.invars, contracted, batch, strict=True)
        )
        return cls((batch[0], batch[1]), (contracted[0], contracted[1]), (free[0], free[1]))

    def place(self, side: int, dim: int) -> int:
        """The dimension of the result to which an operand's dimension goes."""
        if dim in self.batch[side]:
            return self.batch[side].index(dim)
        ahead = len(self.free[0]) if side else 0
        return len(self.batch[0]) + ahead + self.free[side].index(dim)


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _at(eqn: ir.JaxprEqn, side: int, scope: Scope) -> Attention | Refusal | None:
    """Attention whose result `eqn` is, its weights the operand number `side`."""
    found = _weights(eqn.invars[side], scope)
    if found is None:
        return _changed_weights(eqn, side, scope)
    softmax, order = found
    dot = _Dot.of(eqn)
    contracted = [order[d] for d in dot.contracted[side]]
    product = _product_before(softmax)
    if contracted != [softmax.dim] or product is None:
        return None
    try:
        return _attention(eqn, side, scope, softmax, order, *product)
    except UnrecognisedError as error:
        return Refusal(ir.source_line(eqn) or ir.source_line(product[0]), str(error))


def _weights(atom: Any, scope: Scope) -> tuple[Softmax, tuple[int, ...]] | None:
    """The softmax that an operand is, but for casts and transposes, and the order of its dims."""
    order = tuple(range(len(_shape(atom))))
    while True:
        softmax = softmax_of(atom, scope)
        if softmax is not None:
            return softmax, order
        eqn, scope = scope.maker(atom)
        name = eqn.primitive.name if eqn is not None else ""
        if eqn is None or name not in ("convert_element_type", "transpose", "copy", "name"):
            return None
        if name == "transpose":
            order = tuple(int(eqn.params["permutation"][d]) for d in order)
        atom = eqn.invars[0]


def _changed_weights(eqn: ir.JaxprEqn, side: int, scope: Scope) -> Refusal | None:
    """Says so where weights are changed after the softmax, as by dropout."""
    dot = _Dot.of(eqn)
    if len(dot.contracted[side]) != 1:
        return None
    reached: list[tuple[Any, Scope, int]] = [(eqn.invars[side], scope, 0)]
    for atom, place, depth in reached:
        maker, where = place.maker(atom)
        if maker is not None and maker.primitive.name == "exp":
            return _unnormalised(eqn, side, maker, where)
        softmax = softmax_of(atom, place) if depth else None
        if softmax is not None and softmax.dim == dot.contracted[side][0]:
            if _product_before(softmax) is None:
                return None
            reason = "its weights are changed after the softmax (dropout?)"
            return Refusal(ir.source_line(eqn), reason)
        if maker is None or maker.primitive.name not in ELEMENTWISE or depth == _CHANGES:
            continue
        same = [x for x in maker.invars if _shape(x) == _shape(eqn.invars[side])]
        reached.extend((x, where, depth + 1) for x in same)
    return None


def _unnormalised(eqn: ir.JaxprEqn, side: int, maker: ir.JaxprEqn, scope: Scope) -> Refusal | None:
    """Says so where exponentials of scores meet values before they are divided by their sum."""
    dim = _Dot.of(eqn).contracted[side][0]
    if len(_shape(maker.outvars[0])) != len(_shape(eqn.invars[side])):
        return None
    if _product_before(Softmax(maker.outvars[0], scope, dim)) is None:
        return None
    reason = "its weights meet the values before they are normalised: use jax.nn.softmax"
    return Refusal(ir.source_line(eqn), reason)


def _product_before(softmax: Softmax) -> tuple[ir.JaxprEqn, Scope, Dims] | None:
    """The nearest product with batch dimensions from which the scores are made."""
    every = tuple(range(len(_shape(softmax.scores))))
    reached: list[tuple[Any, Scope, Dims]] = [(softmax.scores, softmax.scope, every)]
    for atom, scope, dims in reached:
        eqn, place = scope.maker(atom)
        if eqn is None or len(reached) > _SEARCHED:
            continue
        if eqn.primitive.name == "dot_general":
            dot = _Dot.of(eqn)
            if dot.batch[0] and dot.free[0] and dot.free[1] and softmax.dim in dims:
                return eqn, place, dims
            continue
        into = operand_dims(eqn, dims)
        if into is not None:
            reached.extend((x, place, d) for x, d in zip(eqn.invars, into, strict=True))
    return None


def _attention(
    eqn: ir.JaxprEqn,
    side: int,
    scope: Scope,
    softmax: Softmax,
    order: tuple[int, ...],
    product: ir.JaxprEqn,
    place: Scope,
    dims: Dims,
) -> Attention:
    dot, last = _Dot.of(product), _Dot.of(eqn)
    key_place = dims.index(softmax.dim)
    key_side = 1 if key_place >= len(dot.batch[0]) + len(dot.free[0]) else 0
    if key_place < len(dot.batch[0]):
        raise UnrecognisedError("keys are a batch dimension of query times key")
    key, query = product.invars[key_side], product.invars[1 - key_side]
    key_dim = next(d for d in dot.free[key_side] if dot.place(key_side, d) == key_place)
    if any(_shape(key)[d] > 1 for d in dot.free[key_side] if d != key_dim):
        raise UnrecognisedError("the key has another dimension that the query lacks")
    keys = _shape(key)[key_dim]
    query_dim = _positions_of(query, list(dot.free[1 - key_side]), keys)
    query_along = dims[dot.place(1 - key_side, query_dim)]
    if query_along is None:
        raise UnrecognisedError("query positions are merged with another dimension")
    builder = Builder(product.outvars[0], query_along, softmax.dim)
    shape = _shape(softmax.scores)
    steps = builder.build(softmax.scores, softmax.scope, tuple(range(len(shape))))
    value = eqn.invars[1 - side]
    value_dim = last.contracted[1 - side][0]
    result_dims = _result_dims(last, side, order)
    operands = [place.resolve(query), place.resolve(key), scope.resolve(value)]
    if any(ir.is_literal(x) for x, _ in operands) or query_along not in result_dims:
        raise UnrecognisedError("an operand is a literal")
    weights: Any = eqn.invars[side].aval
    found = Attention(
        scope=scope,
        eqn=eqn,
        operands=(operands[0][0], operands[1][0], operands[2][0]),
        scopes=(operands[0][1], operands[1][1], operands[2][1]),
        scores=Product(dict(product.params), key_side == 1),
        result=Product(dict(eqn.params), side == 0),
        steps=steps,
        weights_dtype=weights.dtype,
        weights_order=order,
        query_dim=query_dim,
        key_dim=key_dim,
        value_dim=value_dim,
        result_dim=result_dims.index(query_along),
        result_dims=result_dims,
        queries=_shape(query)[query_dim],
        keys=keys,
        shape=shape,
        heads=(),
        band=band_of(steps),
        line=ir.source_line(eqn) or ir.source_line(product),
    )
    sides = (dot, 1 - key_side, dims), (last, side, order)
    return dataclasses.replace(found, heads=tuple(_heads(found, *sides)))


def _positions_of(query: Any, free: Sequence[int], keys: int) -> int:
    """Which of a query's own dimensions its positions are: as many as keys, or most."""
    sizes = {d: _shape(query)[d] for d in free}
    alike = [d for d in free if sizes[d] == keys]
    if alike:
        return alike[0]
    return max(free, key=sizes.__getitem__)


def _result_dims(dot: _Dot, side: int, order: tuple[int, ...]) -> Dims:
    """For each dimension of the result the softmax's dimension that it is."""
    found: list[int | None] = [None] * (len(dot.batch[0]) + len(dot.free[0]) + len(dot.free[1]))
    for d in (*dot.batch[side], *dot.free[side]):
        found[dot.place(side, d)] = order[d]
    return tuple(found)


def _heads(
    found: Attention,
    first: tuple[_Dot, int, Dims],
    last: tuple[_Dot, int, tuple[int, ...]],
) -> list[HeadDim]:
    """Dimensions other than positions that can be cut: of keys, too, first; then the innermost."""
    for step in found.steps.steps:
        if step is not None and any(
            d is None and n > 1 for n, d in zip(step.shape, step.dims, strict=True)
        ):
            return []
    dot, query_side, dims = first
    product, side, order = last
    heads = []
    for along, size in enumerate(found.shape):
        if along in (found.steps.query, found.steps.key) or along not in dims or size == 1:
            continue
        if along not in found.result_dims:
            continue
        place = dims.index(along)
        of = [
            {dot.place(s, d): d for d in (*dot.batch[s], *dot.free[s])}.get(place) for s in (0, 1)
        ]
        weight = order.index(along)
        value = (
            product.batch[1 - side][product.batch[side].index(weight)]
            if weight in product.batch[side]
            else None
        )
        query, key = of[query_side], of[1 - query_side]
        if query is None:
            continue
        result = found.result_dims.index(along)
        heads.append(HeadDim(along, size, query, result, key, value))
    return sorted(heads, key=lambda h: (h.key is None or h.value is None, -h.query))
