"""What one part of the batch computes of each equation: one rule a primitive.

A rule gets an equation, the values of its operands (at least one of which is cut) and the split,
and returns the values of its results. It raises `CannotCut` where rows of the batch meet each
other in a way that parts cannot compute alone.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from passes import ir
from passes.cut_values import Cut, Value


class CannotCut(Exception):
    """The parts of a batch cannot compute an equation each on its own; says why."""


Rule = Callable[[ir.JaxprEqn, Sequence[Value], Cut], list[Value]]

_SAME_SHAPE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bitcast_convert_type cbrt ceil
    clamp copy copy_p cos cosh convert_element_type digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul
    name ne neg nextafter not one_minus_square or polynomial population_count pow real
    reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor""".split()
)
# Sums stay sums under these, whatever the other operands are as long as they are whole.
_LINEAR = frozenset(
    """neg convert_element_type copy name stop_gradient reshape broadcast_in_dim transpose squeeze
    reduce_sum expand_dims""".split()
)


def bind(eqn: ir.JaxprEqn, arrays: Sequence[Any], **changed: Any) -> list[Any]:
    """The results of a plain equation's primitive on other operands, some parameters changed."""
    # Through a program of one equation, so that the source line and the scope stay.
    return ir.alone(eqn.replace(params={**eqn.params, **changed}))(*arrays)


def _free(operands: Sequence[Value]) -> bool:
    return all(x.free for x in operands)


def _only_cut(operands: Sequence[Value]) -> Value:
    return next(x for x in operands if x.dim is not None)


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def same_shape(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    """All operands and results have one shape; scalars may stand beside them."""
    dim = _only_cut(operands).dim
    assert dim is not None
    arrays = [
        x.cut(dim, batch) if len(_shape(atom)) > dim else x.array
        for x, atom in zip(operands, eqn.invars, strict=True)
    ]
    return [Value(r, dim, free=_free(operands)) for r in bind(eqn, arrays)]


def broadcast_in_dim(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    source = operands[0].dim
    assert source is not None
    dim = eqn.params["broadcast_dimensions"][source]
    shape = list(eqn.params["shape"])
    if shape[dim] != _shape(eqn.invars[0])[source]:
        raise CannotCut("one row of the batch is repeated")
    shape[dim] = batch.share(shape[dim])
    result = bind(eqn, [operands[0].array], shape=tuple(shape))[0]
    return [Value(result, dim, free=operands[0].free)]


def reshape(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    old, new, source = _shape(eqn.invars[0]), list(eqn.params["new_sizes"]), operands[0].dim
    assert source is not None
    before = int(np.prod(old[:source], dtype=np.int64))
    for dim, size in enumerate(new):
        if int(np.prod(new[:dim], dtype=np.int64)) == before and size != 1:
            if size % batch.size:
                raise CannotCut(f"rows are split or mixed by a reshape of {old} to {tuple(new)}")
            new[dim] = batch.share(size)
            result = bind(eqn, [operands[0].array], new_sizes=tuple(new))[0]
            return [Value(result, dim, free=operands[0].free)]
    raise CannotCut(f"the batch is not the major part of any dimension of {old} as {tuple(new)}")


def transpose(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    permutation = eqn.params["permutation"]
    dim = list(permutation).index(operands[0].dim)
    return [Value(bind(eqn, [operands[0].array])[0], dim, free=operands[0].free)]


def squeeze(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    source, rank = operands[0].dim, len(_shape(eqn.invars[0]))
    assert source is not None
    gone = {d % rank for d in eqn.params["dimensions"]}
    if source in gone:
        raise CannotCut("the batch has one row")
    dim = source - sum(d < source for d in gone)
    return [Value(bind(eqn, [operands[0].array])[0], dim, free=operands[0].free)]


def reduction(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    """A reduction over other dimensions, or a sum over the batch."""
    source = operands[0].dim
    assert source is not None
    axes = [d % len(_shape(eqn.invars[0])) for d in eqn.params["axes"]]
    arrays = [x.cut(source, batch) for x in operands]
    if source in axes:
        if eqn.primitive.name != "reduce_sum":
            raise CannotCut(f"{eqn.primitive.name} over the rows of the batch")
        return [Value(bind(eqn, arrays)[0], summed=True, free=_free(operands))]
    dim = source - sum(d < source for d in axes)
    return [Value(r, dim, free=_free(operands)) for r in bind(eqn, arrays)]


def along(parameter: str) -> Rule:
    """An operation along the dimension that a parameter names."""

    def rule(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
        source = _only_cut(operands).dim
        assert source is not None
        if eqn.params[parameter] % len(_shape(eqn.invars[0])) == source:
            raise CannotCut(f"{eqn.primitive.name} along the rows of the batch")
        arrays = [x.cut(source, batch) for x in operands]
        return [Value(r, source, free=_free(operands)) for r in bind(eqn, arrays)]

    return rule


def tile(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    source = operands[0].dim
    assert source is not None
    if eqn.params["reps"][source] != 1:
        raise CannotCut("the rows of the batch are repeated")
    return [Value(bind(eqn, [operands[0].array])[0], source, free=operands[0].free)]


def stack(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    source = _only_cut(operands).dim
    assert source is not None
    arrays = [x.cut(source, batch) for x in operands]
    dim = source + (eqn.params["axis"] <= source)
    return [Value(bind(eqn, arrays)[0], dim, free=_free(operands))]


def unstack(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    source = operands[0].dim
    assert source is not None
    if eqn.params["axis"] == source:
        raise CannotCut("rows of the batch are taken apart")
    dim = source - (eqn.params["axis"] < source)
    return [Value(r, dim, free=operands[0].free) for r in bind(eqn, [operands[0].array])]


def rev(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    if operands[0].dim in eqn.params["dimensions"]:
        raise CannotCut("rows of the batch are reversed")
    return [Value(bind(eqn, [operands[0].array])[0], operands[0].dim, free=operands[0].free)]


def pad(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    source = operands[0].dim
    if source is None or any(eqn.params["padding_config"][source]):
        raise CannotCut("rows of the batch are padded")
    arrays = [x.array for x in operands]
    return [Value(bind(eqn, arrays)[0], source, free=_free(operands))]


def slice_(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    source = operands[0].dim
    assert source is not None
    begin, end = eqn.params["start_indices"][source], eqn.params["limit_indices"][source]
    step = (eqn.params["strides"] or [1] * (source + 1))[source]
    if (begin, end, step) != (0, _shape(eqn.invars[0])[source], 1):
        raise CannotCut(f"rows {begin} to {end} of the batch are picked out")
    limits = list(eqn.params["limit_indices"])
    limits[source] = batch.share(limits[source])
    results = bind(eqn, [operands[0].array], limit_indices=tuple(limits))
    return [Value(results[0], source, free=operands[0].free)]


def dynamic_slice(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    source = operands[0].dim
    if source is None or any(not x.is_whole for x in operands[1:]):
        raise CannotCut("where a slice begins depends on a row of the batch")
    sizes = list(eqn.params["slice_sizes"])
    if sizes[source] != _shape(eqn.invars[0])[source]:
        raise CannotCut("rows of the batch are picked out")
    sizes[source] = batch.share(sizes[source])
    results = bind(eqn, [x.array for x in operands], slice_sizes=tuple(sizes))
    return [Value(results[0], source, free=_free(operands))]


def dynamic_update_slice(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    source = _only_cut(operands[:2]).dim if any(x.dim is not None for x in operands[:2]) else None
    if source is None or _shape(eqn.invars[0])[source] != _shape(eqn.invars[1])[source]:
        raise CannotCut("rows of the batch are replaced")
    arrays = [*(x.cut(source, batch) for x in operands[:2]), *(x.array for x in operands[2:])]
    return [Value(bind(eqn, arrays)[0], source, free=_free(operands))]


def dot_general(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    (contract, batched), free = eqn.params["dimension_numbers"], _free(operands)
    side = 0 if operands[0].dim is not None else 1
    source = operands[side].dim
    assert source is not None
    other = operands[1 - side]
    for pairs, is_sum in ((batched, False), (contract, True)):
        if source in pairs[side]:
            place = list(pairs[side]).index(source)
            partner = other.cut(pairs[1 - side][place], batch)
            arrays = [operands[0].array, operands[1].array]
            arrays[1 - side] = partner
            result = bind(eqn, arrays)[0]
            return [Value(result, None if is_sum else place, is_sum, free)]
    if not other.is_whole:
        raise CannotCut("every row of the batch is multiplied with every other")
    used = [*contract[side], *batched[side]]
    place = source - sum(d < source for d in used) + len(batched[side])
    if side == 1:
        place += len(_shape(eqn.invars[0])) - len(contract[0]) - len(batched[0])
    return [Value(bind(eqn, [x.array for x in operands])[0], place, free=free)]


def convolution(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    numbers = eqn.params["dimension_numbers"]
    if operands[0].dim != numbers.lhs_spec[0] or not operands[1].is_whole:
        raise CannotCut("a convolution runs over the rows of the batch")
    if eqn.params["batch_group_count"] != 1:
        raise CannotCut("a convolution groups the rows of the batch")
    result = bind(eqn, [x.array for x in operands])[0]
    return [Value(result, numbers.out_spec[0], free=_free(operands))]


def gather(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    """Lookups: rows of indices in a whole table, or row by row in as many rows of a table."""
    numbers, sizes = eqn.params["dimension_numbers"], list(eqn.params["slice_sizes"])
    table, indices = operands
    result_rank = len(_shape(eqn.outvars[0]))
    offsets = list(numbers.offset_dims)
    places = [d for d in range(result_rank) if d not in offsets]  # of the dimensions of indices
    if indices.dim is not None:
        if table.dim is not None:
            pairs = zip(
                numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
            )
            if (table.dim, indices.dim) not in set(pairs):
                raise CannotCut("one row of the batch is looked up by another")
        elif indices.dim in numbers.start_indices_batching_dims:
            place = list(numbers.start_indices_batching_dims).index(indices.dim)
            table = dataclasses.replace(
                table, array=table.cut(numbers.operand_batching_dims[place], batch)
            )
        dim = places[indices.dim]
    else:
        assert table.dim is not None
        if table.dim in numbers.operand_batching_dims:
            place = list(numbers.operand_batching_dims).index(table.dim)
            index_dim = numbers.start_indices_batching_dims[place]
            indices = dataclasses.replace(indices, array=indices.cut(index_dim, batch))
            dim = places[index_dim]
        else:
            hidden = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
            full = sizes[table.dim] == _shape(eqn.invars[0])[table.dim]
            if table.dim in hidden or not full:
                raise CannotCut("rows of the batch are looked up")
            window = [d for d in range(len(sizes)) if d not in hidden]
            dim = offsets[window.index(table.dim)]
            sizes[table.dim] = batch.share(sizes[table.dim])
    result = bind(eqn, [table.array, indices.array], slice_sizes=tuple(sizes))[0]
    return [Value(result, dim, free=_free(operands))]


def scatter(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    """Row by row (batching dimensions) only."""
    numbers = eqn.params["dimension_numbers"]
    table, indices, updates = operands
    pairs = list(
        zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    )
    cut = _only_cut(operands)
    scattered = [
        d for d in range(len(_shape(eqn.invars[2]))) if d not in numbers.update_window_dims
    ]
    for own, index_dim in pairs:
        update_dim = scattered[index_dim]
        dims = (own, index_dim, update_dim)
        if any(x.dim == d for x, d in zip(operands, dims, strict=True) if x is cut):
            arrays = [x.cut(d, batch) for x, d in zip((table, indices, updates), dims, strict=True)]
            return [Value(bind(eqn, arrays)[0], own, free=_free(operands))]
    raise CannotCut("rows of the batch are scattered into one array")


def keyed(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    """Operations on a batch of random keys, each used alone."""
    dim = _only_cut(operands).dim
    assert dim is not None
    arrays = [x.cut(dim, batch) if len(x.shape) > dim else x.array for x in operands]
    if eqn.primitive.name == "random_wrap" and dim >= len(_shape(eqn.outvars[0])):
        raise CannotCut("the words of a random key are rows of the batch")
    return [Value(r, dim, free=_free(operands)) for r in bind(eqn, arrays)]


def linear_of_sum(eqn: ir.JaxprEqn, operands: Sequence[Value], batch: Cut) -> list[Value]:
    """An equation of sums: what is linear in them adds up, too."""
    name, free = eqn.primitive.name, _free(operands)
    summed = [x.summed for x in operands]
    if any(x.dim is not None for x in operands):
        raise CannotCut(
            f"{name} brings a sum over the whole batch back to its rows (a normalisation by "
            "statistics of the batch does)"
        )
    arrays = [x.array for x in operands]
    choice = name == "select_n" and not summed[0]
    if choice or name in ("add", "add_any", "sub"):
        for i in range(1 if choice else 0, len(operands)):
            if not summed[i]:  # a whole term would be added once a part
                if not _is_floating(eqn.invars[i]):
                    raise CannotCut(f"{name} adds an integer to a sum over the whole batch")
                arrays[i] = arrays[i] / batch.count
    elif not (
        (name in _LINEAR and not _rounds(eqn))
        or (name in ("mul", "dot_general") and sum(summed) == 1)
        or (name == "div" and summed == [True, False] and not _rounds(eqn))
    ):
        raise CannotCut(f"{name} is not linear, and it is applied to a sum over the whole batch")
    return [Value(r, None, True, free) for r in bind(eqn, arrays)]


def _is_floating(atom: Any) -> bool:
    return bool(jnp.issubdtype(atom.aval.dtype, jnp.inexact))


def _rounds(eqn: ir.JaxprEqn) -> bool:
    """Whether a cast or a division gives integers of what may lie between them, or booleans."""
    source: Any = eqn.invars[0]
    result: Any = eqn.outvars[0]
    if eqn.primitive.name == "div":
        return not _is_floating(result)
    if eqn.primitive.name != "convert_element_type" or _is_floating(result):
        return False
    return _is_floating(source) or result.aval.dtype == jnp.bool_


TABLE: Mapping[str, Rule] = {
    **dict.fromkeys(_SAME_SHAPE, same_shape),
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split(),
        reduction,
    ),
    **dict.fromkeys("cumsum cumlogsumexp cummax cummin cumprod split".split(), along("axis")),
    **dict.fromkeys(
        "random_bits random_fold_in random_split random_unwrap random_wrap".split(), keyed
    ),
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": along("dimension"),
    "conv_general_dilated": convolution,
    "dot_general": dot_general,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "gather": gather,
    "pad": pad,
    "reshape": reshape,
    "rev": rev,
    "scatter": scatter,
    "scatter-add": scatter,
    "scatter_add": scatter,
    "slice": slice_,
    "sort": along("dimension"),
    "squeeze": squeeze,
    "stack": stack,
    "tile": tile,
    "top_k": along("axis"),
    "transpose": transpose,
    "unstack": unstack,
}
